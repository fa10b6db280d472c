"""`TernaryLinear`: a linear layer whose weight stays packed, for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tritpress.config import MemoryFormat, check_memory_format
from tritpress.errors import InputError
from tritpress.ops import reference, values
from tritpress.ops.linear import forget, ternary_linear


class TernaryLinear(nn.Module):
    """y = x W^T + bias with W = sum over planes of scale * T, held as 2-bit codes and float16 scales.

    Args:
        codes: uint8 [planes, out, ceil(in / 4)], the packed format's own layout.
        scales: float16 [planes, out, ceil(in / group_size)].
        in_features: inputs (codes are padded to a multiple of 4).
        group_size: inputs that share a scale; 0 is the whole row.
        bias: [out] or None; kept in its dtype, added in x's.
        activation_bits: 8 runs the int8 kernels; None multiplies float32 activations by the dequantized
        weight.
        format: how the int8 kernels hold the codes in memory, "2bit" or "1.6bit"; `state_dict` is the same.

    Raises `InputError` where the shapes or dtypes disagree, where codes hold a 3 or padding other than 1, and
    where scales are negative, NaN or infinite. Values are read when the module is made, when a state is
    loaded and at the first use after another change; those of meta and fake tensors once there are any.
    Moving the module between devices moves the packed weight; `.half()` and the like leave it alone (its
    dtypes are the format's).

    The kernels compute from a copy of the packed weight, made at the first call. Every write that torch
    counts makes it anew: in-place operations, `load_state_dict`, another tensor in the place of `codes` or
    `scales`, under `torch.inference_mode` too (codes and scales that were made under it are copied, as torch
    counts no writes to them). Writes through `.data` or through a numpy array over the same memory cannot be
    seen without reading everything at each call: call `forget()` after them.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        in_features: int,
        group_size: int,
        bias: Tensor | None = None,
        activation_bits: int | None = 8,
        format: MemoryFormat = "2bit",
    ) -> None:
        super().__init__()
        check_memory_format(format)
        values.check_shapes(codes, scales, in_features, group_size)
        if bias is not None and tuple(bias.shape) != (codes.shape[1],):
            raise InputError(f"bias must be [{codes.shape[1]}], not {list(bias.shape)}")
        if activation_bits not in (8, None):
            raise InputError(f"activation_bits must be 8 or None, not {activation_bits}")
        self.in_features = in_features
        self.out_features = codes.shape[1]
        self.planes = codes.shape[0]
        self.group_size = group_size
        self.activation_bits = activation_bits
        self.format: MemoryFormat = format
        self.register_buffer("codes", _counted(codes.contiguous()))
        self.register_buffer("scales", _counted(scales.contiguous()))
        self.register_buffer("bias", bias)
        if values.known(self.codes, self.scales):
            values.check_once(self.codes, self.scales, in_features, group_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        y = ternary_linear(
            x, self.codes, self.scales, self.in_features, self.group_size, self.activation_bits, self.format
        )
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self) -> Tensor:
        """float32 [out, in], rounded once to float16: what `dequantized/` holds for this layer."""
        if values.known(self.codes, self.scales):
            values.check_once(self.codes, self.scales, self.in_features, self.group_size)
        return reference.dequantize(self.codes, self.scales, self.in_features, self.group_size)

    def forget(self) -> None:
        """Have codes and scales read anew at the next call: for after a write that torch does not count."""
        forget(self.codes)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, planes={self.planes}, "
            f"group_size={self.group_size}, bias={self.bias is not None}, "
            f"activation_bits={self.activation_bits}, format={self.format}"
        )

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        before = len(error_msgs)
        self.forget()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(error_msgs) > before:
            return  # torch refuses it already, for a shape
        self._count()
        try:
            values.check_shapes(self.codes, self.scales, self.in_features, self.group_size)
            # Only what came: a state may come in pieces, into memory that holds nothing yet.
            if prefix + "codes" in state_dict and values.known(self.codes):
                values.check_codes(self.codes, self.in_features)
            if prefix + "scales" in state_dict and values.known(self.scales):
                values.check_scales(self.scales)
        except InputError as error:
            raise InputError(f"the state for {prefix.rstrip('.') or 'this layer'}: {error}") from None

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # .half(), .float() and .to(dtype) would turn the float16 scales into another dtype: they are part of
        # the format, so only their device follows.
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        self._count()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._count()

    def _count(self) -> None:
        """Hold tensors whose writes torch counts."""
        self.codes, self.scales = _counted(self.codes), _counted(self.scales)


def _counted(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where it was made under `torch.inference_mode`."""
    if torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()
