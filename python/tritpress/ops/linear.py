"""`tritpress::ternary_linear`: x times a packed ternary weight, as an operator that torch can trace.

On CPU with int8 activations it runs the Rust kernels on a `PackedMatrix` that is built once for each codes
tensor and dropped with it. Elsewhere, and with float32 activations, the weight is unpacked and torch
multiplies. The gradient flows to x alone: the codes are constants here (training is `BitLinear`'s work).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from tritpress.config import MemoryFormat
from tritpress.errors import InputError, UsageError
from tritpress.ops import reference, values

_threads: int | None = None


def set_threads(threads: int | None) -> None:
    """Threads of the CPU kernels from now on; None: the kernels' own choice (`TRITPRESS_NUM_THREADS`)."""
    global _threads
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be 1 or more, not {threads}")
    _threads = threads


def get_threads() -> int | None:
    """What `set_threads` said last."""
    return _threads


@dataclass
class _Packed:
    matrix: Any
    key: tuple[Any, ...]


_matrices: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def packed_matrix(
    codes: Tensor, scales: Tensor, in_features: int, group_size: int, format: str = "2bit"
) -> Any:
    """The kernels' own copy of a weight, made on first use and kept as long as `codes` lives.

    A change in place of codes or scales, or another format, makes it anew. Raises `InputError` where shapes,
    dtypes or values are not the packed format's.
    """
    state = codes.data_ptr(), _version(codes), scales.data_ptr(), _version(scales)
    key = (*state, in_features, group_size, format)
    held = _matrices.get(codes)
    if held is None or held.key != key:
        from tritpress._core import CoreError, PackedMatrix

        try:
            matrix = PackedMatrix(
                codes.detach().contiguous().numpy(),
                scales.detach().contiguous().numpy(),
                group_size=group_size,
                shape=(codes.shape[-2], in_features),
                format=format,  # type: ignore[arg-type]
            )
        except CoreError as error:
            raise InputError(str(error)) from None
        held = _Packed(matrix, key)
        _matrices[codes] = held
    return held.matrix


def kernel_bytes(codes: Tensor) -> int:
    """Bytes of the kernels' copy of a weight; 0 while there is none."""
    held = _matrices.get(codes)
    return 0 if held is None else int(held.matrix.nbytes)


def forget(codes: Tensor) -> None:
    """Drop the kernels' copy of a weight, and what is known of its values: the next use reads them anew."""
    _matrices.pop(codes, None)
    values.forget(codes)


@torch.library.custom_op("tritpress::ternary_linear", mutates_args=())
def _ternary_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    in_features: int,
    group_size: int,
    activation_bits: int,
    format: str = "2bit",
) -> Tensor:
    if activation_bits == 8 and x.device.type == "cpu":
        matrix = packed_matrix(codes, scales, in_features, group_size, format)
        tokens = x.detach().reshape(-1, in_features).float().contiguous().numpy()
        if tokens.shape[0] == 1:
            y = torch.from_numpy(matrix.matvec(tokens[0], threads=get_threads()))
        else:
            y = torch.from_numpy(matrix.matmul(tokens, threads=get_threads()))
        return y.reshape(*x.shape[:-1], codes.shape[-2]).to(x.dtype)
    values.check_once(codes, scales, in_features, group_size)
    weight = reference.dequantize(codes, scales, in_features, group_size)
    inputs = reference.int8_activations(x) if activation_bits == 8 else x.float()
    return torch.nn.functional.linear(inputs, weight).to(x.dtype)


@_ternary_linear.register_fake
def _(x: Tensor, codes: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[-2])


@torch.library.custom_op("tritpress::ternary_linear_backward", mutates_args=())
def _ternary_linear_backward(
    grad: Tensor, codes: Tensor, scales: Tensor, in_features: int, group_size: int
) -> Tensor:
    weight = reference.dequantize(codes, scales, in_features, group_size)
    return (grad.float() @ weight).to(grad.dtype)


@_ternary_linear_backward.register_fake
def _(grad: Tensor, codes: Tensor, scales: Tensor, in_features: int, group_size: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_features)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, scales, ctx.in_features, ctx.group_size, *_ = inputs
    ctx.save_for_backward(codes, scales)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, scales = ctx.saved_tensors
    grad_x = _ternary_linear_backward(grad, codes, scales, ctx.in_features, ctx.group_size)
    return grad_x, None, None, None, None, None, None


torch.library.register_autograd("tritpress::ternary_linear", _backward, setup_context=_setup_context)


def ternary_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    in_features: int,
    group_size: int,
    activation_bits: int | None = 8,
    format: MemoryFormat = "2bit",
) -> Tensor:
    """x [..., in] times the packed weight's transpose -> [..., out] in x's dtype (computed in float32).

    `codes` uint8 [planes, out, ceil(in / 4)], `scales` float16 [planes, out, groups]. With
    `activation_bits=8` each token is rounded to int8 by its largest value; the gradient passes straight
    through that rounding. `format`: how the CPU kernels hold the codes; the result is the same bit for bit.

    Raises `InputError` at the first use of codes that hold a 3 or padding other than 1, and of scales that
    are negative, NaN or infinite. They are read once, not at each call.
    """
    return _ternary_linear(x, codes, scales, in_features, group_size, activation_bits or 0, format)
