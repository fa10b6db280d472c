"""Starting scales of a group: what a sweep codes by first, and improves.

Shapes as in `points`: R rows, G inputs of one group, P planes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritpress.ternarize import loops as rust
from tritpress.ternarize import points as pt
from tritpress.ternarize.points import FitSpec

_TWN_THRESHOLD = 0.7

ROUNDS = 4
"""Times that codes (best of 3^P) and scales (least squares) of several planes are found in turn."""


def first_scale(weights: Tensor, importance: Tensor, fit: str, max_zero_share: float | None) -> Tensor:
    """Scale of one plane for each row, weights [R, G] with importance [G]: float32 [R], before rounding.

    "exact": sort |w| descending, A_k = sum h|w|, B_k = sum h over the first k, k* = argmax A_k^2 / B_k, scale
    A_k* / B_k*; at least (1 - max_zero_share) of the codes stay nonzero. "twn": threshold 0.7 mean |w|,
    scale the mean above it. "absmean": mean |w|.
    """
    magnitude = weights.abs()
    if fit == "absmean":
        return magnitude.mean(1)
    if fit == "twn":
        kept = (magnitude > _TWN_THRESHOLD * magnitude.mean(1, keepdim=True)).float() * importance
        return (kept * magnitude).sum(1) / kept.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    ordered, order = magnitude.sort(dim=1, descending=True)
    h = importance.expand_as(magnitude).gather(1, order)
    a, b = (h * ordered).cumsum(1), h.cumsum(1)
    gain = a.square() / b
    if max_zero_share is not None:
        least = min(weights.shape[1], int((1.0 - max_zero_share) * weights.shape[1] + 0.999))
        if least > 1:
            gain[:, : least - 1] = -1.0
    best = gain.argmax(1, keepdim=True)
    return (a.gather(1, best) / b.gather(1, best)).squeeze(1)


def fit_group(weights: Tensor, importance: Tensor, spec: FitSpec) -> Tensor:
    """Starting scales of a group, weights [R, G] with importance [G]: [R, P], rounded to float16's values."""
    if spec.fixed_scales is not None:
        return weights.new_tensor(spec.fixed_scales).expand(len(weights), -1)
    residual = weights
    scales = []
    share = spec.sparsity  # a mere ceiling is left to the codes: bending the start to it costs up to a third
    for _ in range(spec.planes):
        if spec.threshold is not None:
            trits = pt.threshold_trits(residual, spec.threshold)
            kept = trits.abs() * importance
            scale = (kept * residual.abs()).sum(1) / kept.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
            scale = pt.round_scales(scale)
        else:
            scale = pt.round_scales(first_scale(residual, importance, spec.fit, share))
            trits = torch.where(residual.abs() > scale[:, None] / 2, residual.sign(), 0.0)
        scales.append(scale)
        residual = residual - scale[:, None] * trits
    fitted = torch.stack(scales, 1)
    if spec.planes == 1 or spec.threshold is not None or spec.fit != "exact":
        return fitted
    if rust.serves(fitted):
        return rust.alternate_scales(weights, importance, fitted, ROUNDS)
    root = importance.sqrt()
    for _ in range(ROUNDS):
        trits = pt.trits_of(pt.nearest(weights, pt.points(fitted)), spec.planes)
        fitted = pt.round_scales(pt.least_squares_scales(trits * root, weights * root, fitted).abs())
    return fitted
