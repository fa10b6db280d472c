"""One tensor, second order: a GPTQ sweep over groups, then joint refinement of codes and scales.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds one input column at a time and lets the columns still
open make up for the error, by the inverse Hessian of the layer's inputs. Here a group's scales are fitted at
the group's start on the weights as the sweep has left them, then improved within the group: with the codes
fixed, the scales that are best *given that later columns compensate* are a small least-squares problem in
the Cholesky factor's own coordinates. After the sweep, coordinate descent on the codes (as in QuantEase,
arXiv 2309.01885) and a joint least squares of all the row's scales go in turn over the same quadratic.

Shapes: R rows (outputs), C columns (inputs), G inputs in a group, P planes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritpress.ternarize import loops as rust
from tritpress.ternarize import points as pt
from tritpress.ternarize.bitnet import tensor_scales
from tritpress.ternarize.first import fit_group
from tritpress.ternarize.points import FitSpec
from tritpress.ternarize.refine import decode, quadratic, refine, settle_zeros
from tritpress.ternarize.zeros import ZeroBudget

DAMPING = 0.01
GROUP_ROUNDS = 3
"""Times that a group is coded anew with better scales."""


@dataclass
class Fitted:
    """trits int8 [P, R, C]; scales float32 [P, R, groups], values of float16; loss tr((W - Q) H (W - Q)^T)
    after the sweep and after refinement, H damped.
    """

    trits: Tensor
    scales: Tensor
    sweep_loss: float
    loss: float

    def decoded(self, at: Curvature) -> Tensor:
        """The weight that the codes stand for: float32 [R, C]."""
        out = torch.empty(self.trits.shape[1:], device=self.trits.device)
        out[:, at.order] = decode(self.trits[:, :, at.order].float(), self.scales, at.blocks)
        return out


@dataclass
class Curvature:
    """A layer's input moments, made ready for sweeps over every weight that reads that input.

    Attributes:
        order: columns in coding order.
        blocks: (group, slice of columns in coding order), in coding order.
        hessian: damped, in coding order, float32 [C, C].
        factor: upper Cholesky factor of its inverse, float32 [C, C].
    """

    order: Tensor
    blocks: list[tuple[int, slice]]
    hessian: Tensor
    factor: Tensor


def damped(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """float64 Hessian with `damping` times its mean diagonal added; inputs that never fire get that alone."""
    h = hessian.to(torch.float64, copy=True)
    mean = float(h.diagonal().mean())
    h.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return h


def curvature(hessian: Tensor, group_size: int) -> Curvature:
    """Order, damp and factor the second moments [C, C] of a layer's inputs."""
    width = group_size or len(hessian)
    h = damped(hessian)
    order, blocks = _group_order(h.diagonal(), width)
    # Each of these is 8 bytes for every pair of inputs, so none is kept longer than it is needed.
    h = h[order[:, None], order]
    lower = torch.linalg.cholesky(h)
    single = h.float()
    del h
    inverse = torch.cholesky_inverse(lower)
    del lower
    return Curvature(order, blocks, single, torch.linalg.cholesky(inverse, upper=True).float())


def _group_order(diagonal: Tensor, width: int) -> tuple[Tensor, list[tuple[int, slice]]]:
    """Columns in coding order: groups by falling mean of the diagonal, columns likewise within their group.

    Errors of what comes first can still be made up for by what comes later, so what matters most goes first;
    whole groups move, so that scales stay where the format has them.
    """
    parts = list(diagonal.split(width))
    means = [float(part.mean()) for part in parts]
    order, blocks, position = [], [], 0
    for group in sorted(range(len(parts)), key=lambda g: (-means[g], g)):
        inner = torch.argsort(parts[group], descending=True, stable=True)
        order.append(group * width + inner)
        blocks.append((group, slice(position, position + len(inner))))
        position += len(inner)
    return torch.cat(order), blocks


def sweep(
    weight: Tensor, at: Curvature, spec: FitSpec, rounds: int = GROUP_ROUNDS, passes: int | None = None
) -> Fitted:
    """Ternary planes for weight [R, C] that keep (W - Q) H (W - Q)^T small.

    `rounds` and `passes` (of refinement; None for its own number) trade time for quality.
    """
    if spec.fit == "bitnet" and spec.fixed_scales is None:
        found = tensor_scales(weight.float().cpu().numpy(), spec.planes)
        spec = replace(spec, fixed_scales=tuple(map(float, found)), max_sparsity=None)
    w = weight.float()[:, at.order]
    budget = ZeroBudget(spec, weight.numel() * spec.planes)
    trits = w.new_empty(spec.planes, *w.shape)
    scales = w.new_empty(spec.planes, len(w), len(at.blocks))
    left = w.clone()
    for group, block in at.blocks:
        factor = at.factor[block, block]
        chosen, index, error = _code_group(left[:, block], factor, spec, budget, rounds)
        budget.spend(index)
        trits[:, :, block] = pt.trits_of(index, spec.planes)
        scales[:, :, group] = chosen.T
        left[:, block.stop :] -= error @ at.factor[block, block.stop :]
    sweep_loss = loss = quadratic(w - decode(trits, scales, at.blocks), at.hessian)
    if spec.fit == "exact":
        trits, scales, loss = refine(w, at.hessian, trits, scales, at.blocks, spec, loss, passes)
    if budget.total is not None and spec.fit == "exact":
        settle_zeros(w, at.hessian, trits, scales, at.blocks, budget)
    back = torch.empty_like(trits)
    back[:, :, at.order] = trits
    return Fitted(back.to(torch.int8), scales, sweep_loss, loss)


def _code_group(
    weights: Tensor, factor: Tensor, spec: FitSpec, budget: ZeroBudget, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales of one group: (scales [R, P], index [R, G], error [R, G] in the factor's
    coordinates)."""
    column_weights = factor.diagonal().square().reciprocal()
    scales = fit_group(weights, column_weights, spec)
    if spec.threshold is not None:
        return _code_by_threshold(weights, factor, scales, spec)
    best: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    target = torch.linalg.solve_triangular(factor, weights, upper=True, left=False)
    price = None
    for turn in range(rounds if spec.fit == "exact" else 1):
        table = pt.points(scales)
        price = budget.price(weights, table, column_weights)
        index, error = _sweep_group(weights, factor, table, price, spec.planes)
        loss = error.square().sum(1)
        if price is not None:
            loss = loss + price * pt.count_zeros(index, spec.planes).sum(1)
        if best is None:
            best = (loss, scales, index, error)
        else:
            better = (loss < best[0])[:, None]
            best = (
                torch.minimum(loss, best[0]),
                torch.where(better, scales, best[1]),
                torch.where(better, index, best[2]),
                torch.where(better, error, best[3]),
            )
        if turn + 1 < rounds:
            trits = pt.trits_of(best[2], spec.planes)
            tall = factor.expand(spec.planes, -1, -1)
            basis = torch.linalg.solve_triangular(tall, trits, upper=True, left=False)
            scales = pt.round_scales(pt.least_squares_scales(basis, target, best[1]).abs())
    assert best is not None
    return best[1], best[2], best[3]


def _sweep_group(
    weights: Tensor, factor: Tensor, table: Tensor, price: Tensor | None, planes: int
) -> tuple[Tensor, Tensor]:
    """Nearest points column by column, each error passed on to the columns after it."""
    rows, width = weights.shape
    w = weights.clone(memory_format=torch.contiguous_format)
    index = torch.empty(rows, width, dtype=torch.int64, device=w.device)
    if rust.serves(w):
        rust.sweep_group(w, table, planes, price, factor, index)
        return index, w
    error = torch.empty_like(w)
    counts = pt.zero_counts(planes).to(w.device)
    for i in range(width):
        pivot = factor[i, i]
        cost = (w[:, i : i + 1] - table).square_()
        if price is not None:
            cost += counts * (price * pivot * pivot)
        index[:, i] = cost.argmin(1)
        value = table.gather(1, index[:, i : i + 1]).squeeze(1)
        error[:, i] = (w[:, i] - value) / pivot
        if i + 1 < width:
            w[:, i + 1 :].addr_(error[:, i], factor[i, i + 1 :], alpha=-1.0)
    return index, error


def _code_by_threshold(
    weights: Tensor, factor: Tensor, scales: Tensor, spec: FitSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes set by the threshold alone (relative to the group's mean |w|, plane by plane); scales by least
    squares."""
    residual = weights
    planes = []
    for plane in range(spec.planes):
        assert spec.threshold is not None
        trits = pt.threshold_trits(residual, spec.threshold)
        planes.append(trits)
        residual = residual - scales[:, plane : plane + 1] * trits
    trits = torch.stack(planes)
    index = pt.index_of(trits)
    quantized = pt.points(scales).gather(1, index)
    error = torch.linalg.solve_triangular(factor, weights - quantized, upper=True, left=False)
    return scales, index, error
