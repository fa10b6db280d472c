"""BitNet b1.58's own fit (Ma et al. 2024, arXiv 2402.17764): one scale for the whole tensor, the mean |w|.

T = clip(round(w / scale), -1, 1). The format still stores a scale for each row (or group); they are equal.
Further planes are fitted likewise to what the planes before them leave. numpy alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tritpress.config import GROUP_SIZES

FP16_MAX = 65504.0


def tensor_scale(w: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> np.float32:
    """The mean |w| of [out, in], weighted by `importance` float32 [in] where it is given: a value of float16.

    Raises ValueError for weights that are not finite and a scale beyond float16.
    """
    if not w.size:
        return np.float32(0.0)
    h = np.ones(w.shape[1]) if importance is None else np.asarray(importance, dtype=np.float64)
    columns = np.abs(w).sum(axis=0, dtype=np.float64)
    scale = float(columns @ h) / (len(w) * float(h.sum())) if h.sum() > 0 else 0.0
    if not np.isfinite(scale):
        raise ValueError("the weights hold NaN or infinity")
    if scale > FP16_MAX:
        raise ValueError(f"the tensor needs the scale {scale:g}, above float16's {FP16_MAX:g}")
    return np.float32(np.float16(scale))


def tensor_scales(
    w: NDArray[np.float32], planes: int, importance: NDArray[np.float32] | None = None
) -> list[np.float32]:
    """The scale of each plane, fitted to what the planes before it leave of `w` [out, in]."""
    return [scale for scale, _ in _planes(w, planes, importance)]


def bitnet(
    w: NDArray[np.float32] | NDArray[np.float16],
    *,
    planes: int = 1,
    group_size: int = 0,
    importance: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """`w` [out, in] -> (codes uint8 [planes, out, ceil(in / 4)], scales float16 [planes, out, groups]).

    Raises ValueError as `tensor_scale` does, and for a wrong type, dtype, shape or option.
    """
    from tritpress import _core

    if not isinstance(w, np.ndarray) or w.dtype not in (np.float32, np.float16):
        raise ValueError("w must be a numpy array of float32 or float16")
    if w.ndim != 2:
        raise ValueError(f"w must have two dimensions, not {w.ndim}")
    if not 1 <= planes <= 3:
        raise ValueError(f"planes must be 1 to 3, not {planes}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be 32, 64, 128, 256, or 0 for the whole row, not {group_size}")
    found = list(_planes(np.asarray(w, dtype=np.float32), planes, importance))
    groups = -(-w.shape[1] // group_size) if group_size else 1
    scales = np.empty((planes, w.shape[0], groups), dtype=np.float16)
    for plane, (scale, _) in enumerate(found):
        scales[plane] = scale
    return _core.pack(np.stack([trits for _, trits in found])), scales


def _planes(
    w: NDArray[np.float32], planes: int, importance: NDArray[np.float32] | None
) -> list[tuple[np.float32, NDArray[np.int8]]]:
    found = []
    left = w
    for plane in range(planes):
        scale = tensor_scale(left, importance)
        if scale > 0:
            trits = np.clip(np.rint(left / scale), -1, 1).astype(np.int8)
        else:
            trits = np.zeros(left.shape, dtype=np.int8)
        found.append((scale, trits))
        if plane + 1 < planes:
            left = left - scale * trits
    return found
