"""What a person wants to see of one pressed tensor: histograms, curves over the threshold, a block picture.

Everything is taken from a sample of evenly spaced rows, so that its cost does not grow with the tensor.
Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HISTOGRAM_BINS = 256
HISTOGRAM_LIMIT = 4.0
"""Histograms span -4 to 4 times the group's mean |w|; what lies outside counts in the end bins."""

THRESHOLDS = np.arange(97, dtype=np.float64) / 32
"""Thresholds of the curves, relative to the group's mean |w|: 0 to 3 in steps of 1/32."""

SHARES = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
"""Shares of zero codes at which a tensor of several planes is fitted anew."""

SCALE_BINS = 64
BLOCKS = 64
"""Blocks along each side of the picture, fewer where the tensor has fewer rows or columns."""

SAMPLED_WEIGHTS = 1 << 16
LARGEST_SAMPLE = 1 << 19
"""Weights that are looked at: some 65,000, more only where 64 rows hold more."""

REFITTED_WEIGHTS = 1 << 14
"""Weights that are fitted again at several thresholds, all planes of them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TensorDetails:
    """One pressed tensor against its source's weight, over `sampled_rows` of its `rows` rows (all experts).

    Attributes:
        histogram_before, histogram_after: int [256], counts of w / mean|w| of the group, before and after.
        histogram_edges: float [257].
        scale_histogram, scale_edges: int [64], float [65]; the scales of all planes, evenly spaced in their
            logarithm (scales of 0 count in the first bin).
        scales: float [planes, 3], least, median and largest scale of each plane.
        thresholds: float [97], 0 to 3 times the group's mean |w|.
        zeros_at, error_at: float [97], what fitting one plane with that threshold gives: share of zero codes,
            and squared error over squared norm with the best scale, the mean |w| of what is kept.
        all_zeros_at, all_error_at: float [97], the same for all planes of the tensor, each plane fitted to
            what the ones before it leave, with that threshold; zeros are over all planes' codes.
        planned_zeros, planned_error: those two figures of fitting the tensor as it was planned (its weights
            alone): what a change of the threshold is to be compared with.
        planned_threshold: the threshold that it was planned with, None where the fit chose the zeros.
        shares, error_at_share: float [11], the error of all planes when the fit is held to a share of zero
            codes and chooses which codes those are; None with one plane, where they are the smallest weights.
        block_before, block_after, block_error: float32 [<= 64, <= 64]; mean weight before and after, and root
            mean square of their difference, in each block of an even grid.
        sign_flips: share of the source's nonzero weights that came out with the other sign.
        zeros_in_value: share of weights that came out as exactly 0.
        zeros_by_plane: float [planes], share of zero codes in each plane.
        cosine, relative_error: between source and result; the error is squared, over the squared norm.
        threshold_used: median over groups of the largest |w| / mean|w| whose code in the first plane is 0;
            None where no group has such a code.
    """

    histogram_before: NDArray[np.int64]
    histogram_after: NDArray[np.int64]
    histogram_edges: Floats
    scale_histogram: NDArray[np.int64]
    scale_edges: Floats
    scales: Floats
    thresholds: Floats
    zeros_at: Floats
    error_at: Floats
    all_zeros_at: Floats
    all_error_at: Floats
    planned_zeros: float
    planned_error: float
    block_before: NDArray[np.float32]
    block_after: NDArray[np.float32]
    block_error: NDArray[np.float32]
    rows: int
    cols: int
    sampled_rows: int
    sign_flips: float
    zeros_in_value: float
    zeros_by_plane: Floats
    cosine: float
    relative_error: float
    planes: int
    group_size: int
    threshold_used: float | None
    planned_threshold: float | None = None
    shares: Floats | None = None
    error_at_share: Floats | None = None


def sample_rows(rows: int, cols: int) -> NDArray[np.int64]:
    """Indices of the rows that are looked at: evenly spaced, all of them where they are few."""
    cols = max(cols, 1)
    count = max(SAMPLED_WEIGHTS // cols, min(BLOCKS, LARGEST_SAMPLE // cols), 1)
    if rows <= count:
        return np.arange(rows, dtype=np.int64)
    return ((np.arange(count, dtype=np.int64) * 2 + 1) * rows) // (2 * count)


def measure(
    weight: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    group_size: int,
    rows: int | None = None,
    cosine: float | None = None,
    relative_error: float | None = None,
    planned: Mapping[str, Any] | None = None,
) -> TensorDetails:
    """Details of a tensor from a sample of its rows.

    Args:
        weight: float32 [n, in], the source's sampled rows.
        codes: uint8 [planes, n, ceil(in / 4)], scales: float16 [planes, n, groups], of the same rows.
        group_size: inputs that share a scale; 0 is the whole row.
        rows: rows of the whole tensor, `n` by default.
        cosine, relative_error: of the whole tensor where they are known; else those of the sample.
        planned: how the tensor is fitted: fit, threshold, sparsity, max_sparsity (as `tritpress.ternarize`).
    """
    n, cols = weight.shape
    planes = codes.shape[0]
    width = group_size or max(cols, 1)
    starts = np.arange(0, cols, width)
    lengths = np.diff(np.append(starts, cols))
    groups = len(starts)
    w = np.ascontiguousarray(weight, dtype=np.float32)
    trits = _trits(codes, cols)
    spread = np.asarray(scales, dtype=np.float32)
    value = np.zeros_like(w)
    for plane in range(planes):
        value += np.repeat(spread[plane], lengths, axis=1) * trits[plane]
    size = np.abs(w)
    mean = np.add.reduceat(size, starts, axis=1, dtype=np.float64) / lengths
    wide = np.repeat(np.where(mean > 0, mean, np.inf), lengths, axis=1)
    relative = size / wide
    zeros_at, error_at = _curves(size, relative, starts, lengths)
    all_zeros_at, all_error_at, error_at_share, fitted = _plane_curves(w, group_size, planes, planned or {})
    if planes == 1:
        all_zeros_at, all_error_at = zeros_at, error_at
    first_zero = trits[0] == 0
    largest = np.maximum.reduceat(np.where(first_zero, relative, -1.0), starts, axis=1)
    largest = largest[largest >= 0]
    error = w - value
    sums = [float(np.vdot(a, b)) for a, b in ((w, w), (value, value), (w, value), (error, error))]
    norms = np.sqrt(sums[0]) * np.sqrt(sums[1])
    nonzero = np.count_nonzero(w)
    edges = np.linspace(-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT, HISTOGRAM_BINS + 1)
    scale_counts, scale_edges = _scale_histogram(spread)
    return TensorDetails(
        histogram_before=_histogram(w / wide),
        histogram_after=_histogram(value / wide),
        histogram_edges=edges,
        scale_histogram=scale_counts,
        scale_edges=scale_edges,
        scales=np.stack(
            [spread.min((1, 2)), np.median(spread.reshape(planes, -1), axis=1), spread.max((1, 2))], axis=1
        ).astype(np.float64),
        thresholds=THRESHOLDS,
        zeros_at=zeros_at,
        error_at=error_at,
        all_zeros_at=all_zeros_at,
        all_error_at=all_error_at,
        planned_zeros=fitted[0],
        planned_error=fitted[1],
        block_before=_blocks(w),
        block_after=_blocks(value),
        block_error=np.sqrt(_blocks(error * error)),
        rows=n if rows is None else rows,
        cols=cols,
        sampled_rows=n,
        sign_flips=float(np.count_nonzero(w * value < 0) / nonzero) if nonzero else 0.0,
        zeros_in_value=float(1 - np.count_nonzero(value) / max(value.size, 1)),
        zeros_by_plane=1 - np.count_nonzero(trits, axis=(1, 2)) / max(w.size, 1),
        cosine=cosine if cosine is not None else (sums[2] / norms if norms else float(sums[0] == sums[1])),
        relative_error=relative_error
        if relative_error is not None
        else (sums[3] / sums[0] if sums[0] else 0.0),
        planes=planes,
        group_size=group_size or cols,
        threshold_used=float(np.median(largest)) if groups and largest.size else None,
        planned_threshold=(planned or {}).get("threshold"),
        shares=None if error_at_share is None else SHARES,
        error_at_share=error_at_share,
    )


def _trits(codes: np.ndarray, cols: int) -> NDArray[np.int8]:
    """int8 [planes, n, in] from packed codes."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    spread = (codes[..., None] >> shifts) & 3
    return spread.reshape(*codes.shape[:-1], -1)[..., :cols].astype(np.int8) - 1


def _curves(
    size: np.ndarray, relative: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[Floats, Floats]:
    """Share of zeros and relative error of a one-plane fit at every threshold.

    A weight is kept at threshold k / 32 where 32 |w| / mean > k. Counting weights and their sums by the first
    threshold that drops them, group by group, gives every threshold at once: of a group with squared norm S
    and kept weights of sum A and number B the best scale leaves S - A^2 / B.
    """
    n, cols = size.shape
    count, groups = len(THRESHOLDS), len(starts)
    dropped = np.minimum(np.ceil(relative * 32), count).astype(np.int64)
    column = np.repeat(np.arange(groups), lengths)
    place = (dropped + (np.arange(n)[:, None] * groups + column) * (count + 1)).ravel()
    cells = n * groups * (count + 1)
    kept = np.bincount(place, minlength=cells).reshape(-1, count + 1)
    sums = np.bincount(place, weights=size.ravel(), minlength=cells).reshape(-1, count + 1)
    kept = np.cumsum(kept[:, :0:-1], axis=1)[:, ::-1]  # those dropped later than threshold k
    sums = np.cumsum(sums[:, :0:-1], axis=1)[:, ::-1]
    gain = np.divide(sums * sums, kept, out=np.zeros_like(sums), where=kept > 0).sum(axis=0)
    norm = float(np.square(size, dtype=np.float64).sum())
    zeros = 1 - kept.sum(axis=0) / max(n * cols, 1)
    error = np.clip((norm - gain) / norm, 0.0, 1.0) if norm else np.zeros(count)
    return zeros, error


def _plane_curves(
    w: np.ndarray, group_size: int, planes: int, planned: Mapping[str, Any]
) -> tuple[Floats, Floats, Floats | None, tuple[float, float]]:
    """Zeros and error of all planes at every threshold, error at every one of `SHARES`, and zeros and error
    as planned, by fitting a few rows again.

    Fitted at every sixteenth of a threshold up to 1.5 and every quarter beyond, straight lines between.
    """
    from tritpress import _core

    n = max(1, min(len(w), REFITTED_WEIGHTS // max(w.shape[1], 1)))
    some = np.ascontiguousarray(w[(np.arange(n) * 2 + 1) * len(w) // (2 * n)])

    def fitted(**options: Any) -> tuple[float, float]:
        codes, scales = _core.ternarize(some, group_size=group_size, planes=planes, threads=1, **options)
        sums = _core.layer_statistics(some, codes, scales, group_size)
        error = sums["sum_err2"] / sums["sum_w2"] if sums["sum_w2"] else 0.0
        return sum(sums["zeros_per_plane"]) / (some.size * planes), error

    as_planned = fitted(**planned)
    if planes == 1:
        return THRESHOLDS, THRESHOLDS, None, as_planned
    points = np.concatenate([np.arange(24) / 16, np.arange(6, 13) / 4])
    made = np.array([fitted(threshold=float(t)) for t in points])
    fit = planned.get("fit", "exact")
    held = np.array([fitted(fit=fit, sparsity=float(share))[1] for share in SHARES])
    zeros, error = (np.interp(THRESHOLDS, points, column) for column in made.T)
    return zeros, error, held, as_planned


def _histogram(relative: np.ndarray) -> NDArray[np.int64]:
    place = ((relative + HISTOGRAM_LIMIT) * (HISTOGRAM_BINS / (2 * HISTOGRAM_LIMIT))).astype(np.int64)
    return np.bincount(np.clip(place, 0, HISTOGRAM_BINS - 1).ravel(), minlength=HISTOGRAM_BINS)


def _scale_histogram(scales: np.ndarray) -> tuple[NDArray[np.int64], Floats]:
    positive = scales[scales > 0]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1e-4, 1.0)
    if high / low < 1.01:
        low, high = low / 1.01, high * 1.01
    edges = np.geomspace(low, high, SCALE_BINS + 1)
    place = np.searchsorted(edges, scales.ravel(), side="right") - 1
    return np.bincount(np.clip(place, 0, SCALE_BINS - 1), minlength=SCALE_BINS), edges


def _blocks(values: np.ndarray) -> NDArray[np.float32]:
    """Mean of each block of an even grid: float32 [<= 64, <= 64]."""
    n, cols = values.shape
    rows_at = np.arange(min(BLOCKS, n)) * n // max(min(BLOCKS, n), 1)
    cols_at = np.arange(min(BLOCKS, cols)) * cols // max(min(BLOCKS, cols), 1)
    sums = np.add.reduceat(np.add.reduceat(values, cols_at, axis=1), rows_at, axis=0, dtype=np.float64)
    counts = np.diff(np.append(rows_at, n))[:, None] * np.diff(np.append(cols_at, cols))
    return (sums / counts).astype(np.float32)
