"""Whether codes and scales are what the packed format allows, read once for each tensor and each write."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import is_fake
from torch.utils.weak import WeakTensorKeyDictionary

from tritpress.errors import InputError
from tritpress.ops import reference

_CHUNK = 1 << 20  # bytes read at a time, so that what is computed from them stays in the cache


def known(*tensors: Tensor) -> bool:
    """Whether there are values to look at: not in meta or fake tensors, nor while torch traces or records a
    CUDA graph.
    """
    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return False
    if any(tensor.is_meta or is_fake(tensor) for tensor in tensors):
        return False
    return not (any(tensor.is_cuda for tensor in tensors) and torch.cuda.is_current_stream_capturing())


def check_shapes(codes: Tensor, scales: Tensor, in_features: int, group_size: int) -> None:
    """Raise `InputError` unless codes are uint8 [planes, out, ceil(in / 4)] and scales float16
    [planes, out, groups].
    """
    if codes.dtype != torch.uint8 or codes.ndim != 3:
        raise InputError(f"codes must be uint8 [planes, out, bytes], not {codes.dtype} {list(codes.shape)}")
    planes, out, width = codes.shape
    groups = -(-in_features // reference.group_width(in_features, group_size)) if in_features else 0
    if in_features < 1 or width != -(-in_features // 4):
        raise InputError(f"codes of {width} bytes a row do not hold {in_features} inputs (4 to a byte)")
    if scales.dtype != torch.float16 or tuple(scales.shape) != (planes, out, groups):
        raise InputError(
            f"scales must be float16 [{planes}, {out}, {groups}], not {scales.dtype} {list(scales.shape)}"
        )


def check_codes(codes: Tensor, in_features: int) -> None:
    """Raise `InputError` where uint8 [..., ceil(in / 4)] holds the code 3, or padding other than 1."""
    width = codes.shape[-1]
    for rows in codes.reshape(-1, width).split(max(1, _CHUNK // width)):
        if (rows & (rows >> 1) & 0x55).any():
            raise InputError("codes hold the value 3, which stands for nothing: they are 0, 1 or 2 (T + 1)")
    used = 2 * (in_features % 4)
    if used and ((codes[..., -1] >> used) != (0x55 >> used)).any():
        raise InputError("codes are padded with something other than 1 (T = 0)")


def check_scales(scales: Tensor) -> None:
    """Raise `InputError` where scales are negative, NaN or infinite, as the kernels do."""
    if scales.numel():
        low, high = (float(value) for value in scales.aminmax())  # NaN comes through as both
        if not (low >= 0 and high < float("inf")):
            raise InputError(f"scales must be finite and not negative, but lie between {low} and {high}")


def versions(codes: Tensor, scales: Tensor) -> tuple[int | None, ...]:
    """Changes with every write that torch counts. Inference tensors have no count: None stands for it."""
    return (
        codes.data_ptr(),
        None if codes.is_inference() else codes._version,
        scales.data_ptr(),
        None if scales.is_inference() else scales._version,
    )


# codes -> (scales, versions, in_features, group_size) as they were found right. The scales are compared by
# identity: others can come to lie at the same address.
_found_right: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def check_once(codes: Tensor, scales: Tensor, in_features: int, group_size: int) -> None:
    """Raise `InputError` where shapes, dtypes or values are wrong. Values are read once and after each write
    that torch counts (`packed_matrix` says which those are); not while they are not `known`.
    """
    state = (*versions(codes, scales), in_features, group_size)
    held = _found_right.get(codes)
    if held is not None and held[0]() is scales and held[1] == state:
        return
    check_shapes(codes, scales, in_features, group_size)
    if known(codes, scales):
        check_codes(codes, in_features)
        check_scales(scales)
        _found_right[codes] = weakref.ref(scales), state


def forget(codes: Tensor) -> None:
    """Have the values read again at the next use."""
    _found_right.pop(codes, None)
