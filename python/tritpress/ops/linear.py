"""`tritpress::ternary_linear`: x times a packed ternary weight, as an operator that torch can trace.

On CPU with int8 activations it runs the Rust kernels on a `PackedMatrix` that is built once for each codes
tensor and dropped with it. Elsewhere, and with float32 activations, the weight is unpacked and torch
multiplies. The gradient flows to x alone: the codes are constants here (training is `BitLinear`'s work).
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
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


def use_threads(threads: int) -> None:
    """Threads of torch and of the CPU kernels alike: what is timed with both is timed with equal means."""
    set_threads(threads)
    torch.set_num_threads(threads)


class _Packed(NamedTuple):
    matrix: Any
    scales: weakref.ref[Tensor]
    key: tuple[Any, ...]
    contents: tuple[Any, ...]
    """Codes and scales as they were, where torch does not count the writes to them."""


_matrices: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_matrix(
    codes: Tensor, scales: Tensor, in_features: int, group_size: int, format: str = "2bit"
) -> Any:
    """The kernels' own copy of a weight, made on first use and kept as long as `codes` lives.

    Another scales tensor, another format or a write to codes or scales that torch counts makes it anew.
    Writes through `.data` or a numpy array over the same memory are not counted: call `forget` after them.
    For tensors made under `torch.inference_mode` torch counts nothing: a second copy of them is kept and
    compared at every call, which takes longer than a product with one token (`TernaryLinear` takes a copy
    that is counted instead).

    Raises `InputError` where shapes, dtypes or values are not the packed format's.
    """
    key = (*values.versions(codes, scales), in_features, group_size, format)
    held = _matrices.get(codes)
    if held is not None and held.scales() is scales and held.key == key and _unwritten(held, codes, scales):
        return held.matrix
    from tritpress._core import CoreError, PackedMatrix

    arrays = codes.detach().contiguous().numpy(), scales.detach().contiguous().numpy()
    try:
        matrix = PackedMatrix(
            *arrays,
            group_size=group_size,
            shape=(codes.shape[-2], in_features),
            format=format,  # type: ignore[arg-type]
        )
    except CoreError as error:
        raise InputError(str(error)) from None
    contents = tuple(array.copy() for array in arrays) if None in key else ()
    _matrices[codes] = _Packed(matrix, weakref.ref(scales), key, contents)
    return matrix


def _unwritten(held: _Packed, codes: Tensor, scales: Tensor) -> bool:
    """Whether tensors whose writes torch does not count hold what they held."""
    if not held.contents:
        return True
    pairs = zip(held.contents, (codes, scales))
    return all(np.array_equal(kept, tensor.detach().numpy()) for kept, tensor in pairs)


def kernel_bytes(codes: Tensor) -> int:
    """Bytes of the kernels' copy of a weight, and of what it is compared with; 0 while there is none."""
    held = _matrices.get(codes)
    return 0 if held is None else int(held.matrix.nbytes) + sum(array.nbytes for array in held.contents)


def forget(codes: Tensor) -> None:
    """Drop the kernels' copy of a weight, and what is known of its values: the next use reads them anew."""
    _matrices.pop(codes, None)
    values.forget(codes)


def _wrong_width(x: Tensor, in_features: int) -> str:
    given = f"[..., {int(x.shape[-1])}]" if x.ndim else "[]"  # int: its value where it is a symbol
    return f"x must be [..., {in_features}] for this weight, not {given}"


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
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise InputError(_wrong_width(x, in_features))
    if activation_bits == 8 and x.device.type == "cpu":
        matrix = packed_matrix(codes, scales, in_features, group_size, format)
        tokens = x.detach().reshape(-1, in_features).float().contiguous().numpy()
        try:
            if tokens.shape[0] == 1:
                y = matrix.matvec(tokens[0], threads=get_threads())
            else:
                y = matrix.matmul(tokens, threads=get_threads())
        except ValueError as error:  # the kernels' own: NaN or infinity in x
            raise InputError(str(error)) from None
        return torch.from_numpy(y.reshape(*x.shape[:-1], codes.shape[-2])).to(x.dtype)
    values.check_once(codes, scales, in_features, group_size)
    weight = reference.dequantize(codes, scales, in_features, group_size)
    inputs = reference.int8_activations(x) if activation_bits == 8 else x.float()
    return torch.nn.functional.linear(inputs, weight).to(x.dtype)


@_ternary_linear.register_fake
def _(x: Tensor, codes: Tensor, scales: Tensor, in_features: int, *others: Any) -> Tensor:
    # A width that is a symbol gets a guard, or an assertion at run time where its value is not known.
    right = x.ndim > 0 and x.shape[-1] == in_features
    torch._check_with(InputError, right, lambda: _wrong_width(x, in_features))
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


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # grad_x is linear in the gradient that came in, so this is the product itself, without rounding to int8.
    codes, scales = ctx.saved_tensors
    return _ternary_linear(grad, codes, scales, ctx.in_features, ctx.group_size, 0), None, None, None, None


torch.library.register_autograd(
    "tritpress::ternary_linear_backward", _second_backward, setup_context=_setup_context
)


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
    through that rounding, and can be differentiated again. `format`: how the CPU kernels hold the codes; the
    result is the same bit for bit.

    The CPU kernels add the planes' products in float32; the other ways multiply with the weight that stands
    in dequantized files, the planes' sum rounded to float16 (a part in 2,048 of each weight at most, and
    infinite beyond 65,504).

    Raises `InputError` for x of another width, for `activation_bits` other than 8 and None, for NaN and
    infinity in x where the CPU kernels round it (elsewhere they pass through), and at the first use of
    codes that hold a 3 or padding other than 1 and of scales that are negative, NaN or infinite: those are
    read once, not at each call.
    """
    if activation_bits not in (8, None):
        raise InputError(f"activation_bits must be 8 or None, not {activation_bits!r}")
    return _ternary_linear(x, codes, scales, in_features, group_size, activation_bits or 0, format)
