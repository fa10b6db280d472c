"""Weights -> ternary codes and scales. This module needs numpy alone; calibrated methods sit beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Ternary", "ternarize"]


@dataclass(frozen=True)
class Ternary:
    """A matrix [out, in] as the sum over planes of scale * T, T in {-1, 0, 1}, in the layout of packed files.

    codes: uint8 [planes, out, ceil(in / 4)]; input c is bits 2(c mod 4) of byte c // 4, value T + 1,
        padding 1.
    scales: float16 [planes, out, groups], not negative; one for each `group_size` inputs of a row.
    group_size: inputs that share a scale; 0 is the whole row (one group).
    shape: (out, in).
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    group_size: int
    shape: tuple[int, int]

    @property
    def planes(self) -> int:
        """How many (T, scale) pairs are summed; only one plane is a 1.58-bit matrix."""
        return self.codes.shape[0]

    @property
    def sparsity(self) -> float:
        """Share of zero codes, over the codes of all planes; 0 for an empty matrix."""
        trits = self.trits()
        return float((trits == 0).mean()) if trits.size else 0.0

    def trits(self) -> NDArray[np.int8]:
        """The codes unpacked: int8 [planes, out, in] of -1, 0 and 1."""
        from tritpress import _core

        return _core.unpack(self.codes, self.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """float32 [out, in]: the sum over planes of scale * T, planes in order, not rounded further."""
        from tritpress import _core

        return _core.dequantize(self.codes, self.scales, self.shape[1], self.group_size)


def ternarize(
    w: NDArray[np.float32] | NDArray[np.float16],
    *,
    fit: Literal["exact", "twn", "absmean", "bitnet"] = "exact",
    group_size: int = 64,
    planes: int = 1,
    threshold: float | None = None,
    sparsity: float | None = None,
    max_sparsity: float | None = None,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> Ternary:
    """Ternarize the numpy array `w`, float32 or float16 [out, in]. No torch needed.

    fit: how the scale and codes of one row and group are found.
        "exact": the least-squares optimum; with the weights sorted by falling |w|, the first
        k = argmax A_k**2 / B_k are kept (A_k = sum h|w|, B_k = sum h) at the scale A_k / B_k;
        "twn": zero where |w| <= 0.7 mean|w|, scale the mean of the rest (Ternary Weight Networks);
        "absmean": scale mean|w|, codes clip(round(w / scale), -1, 1) (BitNet b1.58's rule, in groups);
        "bitnet": the same with one scale for the whole tensor, as BitNet has it; takes neither threshold nor
        sparsity.
    group_size: inputs that share a scale: 32, 64, 128, 256, or 0 for the whole row.
    planes: each further plane is fitted to what the planes before it leave.
    threshold: zero where |w| <= threshold * mean|w| of the group, instead of the fit's own rule.
    sparsity: share of zero codes (0 to 1) to reach in every plane, at the least error for that share;
        excludes `threshold`.
    max_sparsity: share of zero codes not to exceed in any plane. A weight of exactly 0 stays 0 all the same.
    importance: float32 [in], not negative: the weights h of the squared error, such as the diagonal of the
        calibration Hessian; 1 everywhere if None.
    threads: threads to use (`TRITPRESS_NUM_THREADS`, else all); the result does not depend on it.

    The scale is rounded to fp16 before the codes and the next plane's residual are taken against it; one that
    underflows is 0 with codes 0.

    Raises `tritpress._core.CoreError` (a ValueError) for a wrong dtype, shape or option, for NaN and infinity
    (with their place), and for a scale beyond fp16.
    """
    from tritpress import _core

    if fit == "bitnet":
        from tritpress.ternarize.bitnet import bitnet

        if threshold is not None or sparsity is not None:
            raise ValueError("fit 'bitnet' sets its own zeros: it takes neither threshold nor sparsity")
        codes, scales = bitnet(w, planes=planes, group_size=group_size, importance=importance)
        return Ternary(codes, scales, group_size, (w.shape[0], w.shape[1]))
    codes, scales = _core.ternarize(
        w,
        fit=fit,
        group_size=group_size,
        planes=planes,
        threshold=threshold,
        sparsity=sparsity,
        max_sparsity=max_sparsity,
        importance=importance,
        threads=threads,
    )
    return Ternary(codes, scales, group_size, (w.shape[0], w.shape[1]))
