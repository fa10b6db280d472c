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

from dataclasses import dataclass

import torch
from torch import Tensor

from tritpress.ternarize import points as pt
from tritpress.ternarize.points import FitSpec
from tritpress.ternarize.zeros import ZeroBudget

DAMPING = 0.01
GROUP_ROUNDS = 3
REFINE_PASSES = 2


@dataclass
class Fitted:
    """trits int8 [P, R, C]; scales float32 [P, R, groups], values of float16; loss before and after
    refinement."""

    trits: Tensor
    scales: Tensor
    sweep_loss: float
    loss: float


def damped(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """float64 Hessian with `damping` times its mean diagonal added; inputs that never fire get that alone."""
    h = hessian.double()
    mean = h.diagonal().mean()
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return h + torch.diag_embed(
        torch.full((h.shape[0],), float(damping * mean), dtype=h.dtype, device=h.device)
    )


def inverse_factor(h: Tensor) -> Tensor:
    """Upper Cholesky factor U of inv(h), inv(h) = U^T U, float64."""
    lower = torch.linalg.cholesky(h)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def sweep(weight: Tensor, hessian: Tensor, spec: FitSpec) -> Fitted:
    """Ternary planes for weight [R, C] that keep (W - Q) H (W - Q)^T small, H [C, C] the inputs' second
    moments."""
    rows, cols = weight.shape
    width = spec.group_size or cols
    starts = list(range(0, cols, width))
    h = damped(hessian)
    order, group_of = _group_order(h.diagonal(), starts, width)
    h = h[order][:, order]
    factor = inverse_factor(h).float()
    h = h.float()
    w = weight.float()[:, order]
    budget = ZeroBudget(spec, weight.numel() * spec.planes)
    trits = torch.empty(spec.planes, rows, cols)
    scales = torch.empty(spec.planes, rows, len(starts))
    open_w = w.clone()
    position = 0
    for group in group_of:
        stop = position + min(width, cols - starts[group])
        block = slice(position, stop)
        chosen, index, error = _code_group(open_w[:, block], factor[block, block], spec, budget)
        budget.spend(index)
        trits[:, :, block] = pt.trits_of(index, spec.planes)
        scales[:, :, group] = chosen.T
        open_w[:, stop:] -= error @ factor[block, stop:]
        position = stop
    blocks = _blocks(starts, group_of, width, cols)
    sweep_loss = _loss(w - _decode(trits, scales, blocks), h)
    loss = sweep_loss
    if spec.fit == "exact":
        trits, scales, loss = refine(w, h, trits, scales, blocks, spec)
    unordered = torch.empty_like(trits)
    unordered[:, :, order] = trits
    return Fitted(unordered.to(torch.int8), scales, sweep_loss, loss)


def _group_order(diagonal: Tensor, starts: list[int], width: int) -> tuple[Tensor, list[int]]:
    """Columns in coding order: groups by falling mean of the diagonal, columns likewise within their group.

    Errors of what comes first can still be made up for by what comes later, so what matters most goes first;
    whole groups move, so that scales stay where the format has them.
    """
    means = [float(diagonal[s : s + width].mean()) for s in starts]
    groups = sorted(range(len(starts)), key=lambda g: (-means[g], g))
    parts = [
        starts[g] + torch.argsort(diagonal[starts[g] : starts[g] + width], descending=True, stable=True)
        for g in groups
    ]
    return torch.cat(parts), groups


def _blocks(starts: list[int], groups: list[int], width: int, cols: int) -> list[tuple[int, slice]]:
    """(group, slice of columns in coding order) in coding order."""
    out, position = [], 0
    for group in groups:
        stop = position + min(width, cols - starts[group])
        out.append((group, slice(position, stop)))
        position = stop
    return out


def _code_group(
    weights: Tensor, factor: Tensor, spec: FitSpec, budget: ZeroBudget
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales of one group: (scales [R, P], index [R, G], error [R, G] in the factor's
    coordinates)."""
    column_weights = factor.diagonal().square().reciprocal()
    scales = pt.fit_group(weights, column_weights, spec)
    if spec.threshold is not None:
        return _code_by_threshold(weights, factor, scales, spec)
    best: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    target = torch.linalg.solve_triangular(factor, weights, upper=True, left=False)
    price = None
    for turn in range(GROUP_ROUNDS if spec.fit == "exact" else 1):
        table = pt.points(scales)
        price = budget.price(weights, table, column_weights)
        index, error = _sweep_group(weights, factor, table, price, spec.planes)
        loss = error.square().sum(1)
        if price is not None:
            loss = loss + price * pt.zero_counts(spec.planes)[index].sum(1)
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
        if turn + 1 < GROUP_ROUNDS:
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
    w = weights.clone()
    index = torch.empty(rows, width, dtype=torch.int64)
    error = torch.empty(rows, width)
    counts = pt.zero_counts(planes)
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
    base = 3 ** torch.arange(spec.planes - 1, -1, -1)
    index = ((trits.to(torch.int64) + 1) * base[:, None, None]).sum(0)
    quantized = pt.points(scales).gather(1, index)
    error = torch.linalg.solve_triangular(factor, weights - quantized, upper=True, left=False)
    return scales, index, error


def _decode(trits: Tensor, scales: Tensor, blocks: list[tuple[int, slice]]) -> Tensor:
    """Planes [P, R, C] in coding order with scales [P, R, groups] -> float32 [R, C]."""
    q = torch.empty(trits.shape[1:])
    for group, block in blocks:
        q[:, block] = (trits[:, :, block] * scales[:, :, group, None]).sum(0)
    return q


def _loss(error: Tensor, h: Tensor) -> float:
    return float(((error @ h) * error).sum(dtype=torch.float64))


def refine(
    w: Tensor, h: Tensor, trits: Tensor, scales: Tensor, blocks: list[tuple[int, slice]], spec: FitSpec
) -> tuple[Tensor, Tensor, float]:
    """Scales by joint least squares and codes by coordinate descent, in turn, while the loss falls."""
    best = (trits, scales, _loss(w - _decode(trits, scales, blocks), h))
    for _ in range(REFINE_PASSES):
        scales = _joint_scales(w, h, best[0], best[1], blocks)
        trits = best[0]
        if spec.threshold is None:
            trits = _descend(w, h, trits, scales, blocks, spec)
        loss = _loss(w - _decode(trits, scales, blocks), h)
        if loss >= best[2]:
            break
        best = (trits, scales, loss)
    return best


def _joint_scales(
    w: Tensor, h: Tensor, trits: Tensor, scales: Tensor, blocks: list[tuple[int, slice]]
) -> Tensor:
    """All scales of a row at once by ridge least squares: float32 [P, R, groups], rounded to float16's
    values."""
    planes, rows, _ = trits.shape
    groups = len(blocks)
    normal = torch.empty(rows, groups * planes, groups * planes)
    wh = w @ h
    right = torch.empty(rows, groups * planes)
    for i, (_, block) in enumerate(blocks):
        for p in range(planes):
            projected = trits[p, :, block] @ h[block]  # [R, C]
            right[:, i * planes + p] = (trits[p, :, block] * wh[:, block]).sum(1)
            for j, (_, other) in enumerate(blocks):
                normal[:, i * planes + p, j * planes : (j + 1) * planes] = torch.einsum(
                    "rc,prc->rp", projected[:, other], trits[:, :, other]
                )
    previous = torch.stack([scales[:, :, g] for g, _ in blocks], 2).permute(1, 2, 0).reshape(rows, -1)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    dead = diagonal <= 0
    ridge = 1e-4 * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    right = torch.where(dead, previous, right + ridge * previous)
    normal = normal + torch.diag_embed(torch.where(dead, torch.ones_like(ridge), ridge))
    solved = torch.linalg.solve(normal, right).reshape(rows, groups, planes).permute(2, 0, 1)
    # a scale below zero would need its codes turned: rare, and the old scale is then kept
    out = scales.clone()
    for i, (group, _) in enumerate(blocks):
        fresh = solved[:, :, i]
        out[:, :, group] = pt.round_scales(torch.where(fresh > 0, fresh, scales[:, :, group]))
    return out


def _descend(
    w: Tensor, h: Tensor, trits: Tensor, scales: Tensor, blocks: list[tuple[int, slice]], spec: FitSpec
) -> Tensor:
    """One pass of coordinate descent over the codes, scales fixed."""
    trits = trits.clone()
    q = _decode(trits, scales, blocks)
    gradient = (w - q) @ h
    counts = pt.zero_counts(spec.planes)
    diagonal = h.diagonal()
    budget = ZeroBudget(spec, w.numel() * spec.planes)
    for group, block in blocks:
        table = pt.points(scales[:, :, group].T)
        local = gradient[:, block].clone()
        inner = h[block, block]
        before = q[:, block].clone()
        price = budget.price(before + local / diagonal[block], table, diagonal[block])
        index = torch.empty(before.shape, dtype=torch.int64)
        for i, c in enumerate(range(block.start, block.stop)):
            aim = q[:, c] + local[:, i] / diagonal[c]
            cost = (aim[:, None] - table).square_()
            if price is not None:
                cost += counts * (price / diagonal[c])
            index[:, i] = cost.argmin(1)
            value = table.gather(1, index[:, i : i + 1]).squeeze(1)
            step = q[:, c] - value
            q[:, c] = value
            local.addr_(step, inner[i])
        gradient += (before - q[:, block]) @ h[block]
        trits[:, :, block] = pt.trits_of(index, spec.planes)
        budget.spend(index)
    return trits
