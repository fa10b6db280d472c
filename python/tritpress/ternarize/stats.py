"""Figures of one pressed tensor: zeros, error against the source's weight, histograms. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

HISTOGRAM_LIMIT = 4
"""Histograms span -4 to 4 times the group's mean |w| in 128 bins; what lies outside counts in the end
bins."""


def layer_statistics(
    weight: np.ndarray, codes: np.ndarray, scales: np.ndarray, group_size: int
) -> dict[str, Any]:
    """Statistics of a tensor: {sparsity, zeros_all_planes, mse, relative_error, cosine, histogram}.

    Args:
        weight: float32 or float16 [.., out, in]; leading dimensions (experts) count as more rows.
        codes: uint8 [planes, .., out, ceil(in / 4)].
        scales: float16 [planes, .., out, groups].
        group_size: inputs that share a scale; 0 is the whole row.
    """
    from tritpress import _core

    planes = codes.shape[0]
    return summary(
        _core.layer_statistics(
            np.ascontiguousarray(weight.reshape(-1, weight.shape[-1])),
            np.ascontiguousarray(codes.reshape(planes, -1, codes.shape[-1])),
            np.ascontiguousarray(scales.reshape(planes, -1, scales.shape[-1])),
            group_size,
        )
    )


def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The Rust core's sums as figures.

    `sparsity` is the share of zero codes over all planes, `zeros_all_planes` the share of weights that are 0
    in every plane, `mse` the mean squared error of the weights, `relative_error` the squared error over the
    squared norm (None for a tensor of zeros), `cosine` that between weights and reconstruction (1 for a
    tensor of zeros that stays zero).
    """
    weights, per_plane = sums["weights"], sums["zeros_per_plane"]
    norms = math.sqrt(sums["sum_w2"]) * math.sqrt(sums["sum_d2"])
    same = sums["sum_w2"] == sums["sum_d2"] == 0.0
    return {
        "sparsity": sum(per_plane) / (weights * len(per_plane)),
        "zeros_all_planes": sums["zeros_all_planes"] / weights,
        "mse": sums["sum_err2"] / weights,
        "relative_error": sums["sum_err2"] / sums["sum_w2"] if sums["sum_w2"] else None,
        "cosine": sums["sum_wd"] / norms if norms else float(same),
        "histogram": {
            "lo": -HISTOGRAM_LIMIT,
            "hi": HISTOGRAM_LIMIT,
            "before": [int(n) for n in sums["histogram_before"]],
            "after": [int(n) for n in sums["histogram_after"]],
        },
    }


def add(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Sums of two pieces of one tensor (experts, row chunks)."""
    total: dict[str, Any] = {}
    for key, value in first.items():
        other = second[key]
        total[key] = [a + b for a, b in zip(value, other)] if isinstance(value, list) else value + other
    return total
