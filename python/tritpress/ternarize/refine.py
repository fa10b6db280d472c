"""Codes and scales of a whole tensor refined over the same quadratic that the sweep has gone through once.

Coordinate descent on the codes (as in QuantEase, arXiv 2309.01885; here each weight takes the best of its
3^P points) and ridge least squares of all the scales of a row at once, in turn while the loss falls.

Shapes: R rows (outputs), C columns (inputs) in coding order, P planes; blocks as in `sweep.Curvature`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritpress.ternarize import loops as rust
from tritpress.ternarize import points as pt
from tritpress.ternarize.points import FitSpec
from tritpress.ternarize.zeros import ZeroBudget, choose_flips

PASSES = 2

_NORMAL_BYTES = 32 << 20
"""Memory for the normal equations of the rows that are solved at a time."""

Blocks = list[tuple[int, slice]]


def decode(trits: Tensor, scales: Tensor, blocks: Blocks) -> Tensor:
    """Planes [P, R, C] in coding order with scales [P, R, groups] -> float32 [R, C]."""
    q = trits.new_empty(trits.shape[1:])
    for group, block in blocks:
        q[:, block] = (trits[:, :, block] * scales[:, :, group, None]).sum(0)
    return q


def quadratic(error: Tensor, h: Tensor) -> float:
    """tr(E H E^T)."""
    return float(((error @ h) * error).sum(dtype=torch.float64))


def refine(
    w: Tensor,
    h: Tensor,
    trits: Tensor,
    scales: Tensor,
    blocks: Blocks,
    spec: FitSpec,
    loss: float,
    passes: int | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Better (trits, scales) than those given, whose loss is `loss`, and theirs; never worse ones."""
    best = (trits, scales, loss)
    wh = w @ h
    for _ in range(PASSES if passes is None else passes):
        scales = joint_scales(wh, h, best[0], best[1], blocks)
        if spec.threshold is not None:
            trits, loss = best[0], quadratic(w - decode(best[0], scales, blocks), h)
        else:
            trits, loss = descend(w, h, best[0], scales, blocks, spec)
        if loss >= best[2]:
            break
        best = (trits, scales, loss)
    return best


def joint_scales(wh: Tensor, h: Tensor, trits: Tensor, scales: Tensor, blocks: Blocks) -> Tensor:
    """All scales of a row at once by ridge least squares, given W H [R, C]: float32 [P, R, groups], rounded
    to float16's values."""
    planes, rows, _ = trits.shape
    unknowns = len(blocks) * planes
    step = max(1, _NORMAL_BYTES // (4 * unknowns * unknowns))
    out = torch.empty_like(scales)
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        out[:, piece] = _joint_scales(wh[piece], h, trits[:, piece], scales[:, piece], blocks)
    return out


def _joint_scales(wh: Tensor, h: Tensor, trits: Tensor, scales: Tensor, blocks: Blocks) -> Tensor:
    planes, rows, _ = trits.shape
    groups = len(blocks)
    normal = wh.new_empty(rows, groups, planes, groups, planes)
    right = wh.new_empty(rows, groups, planes)
    for i, (_, block) in enumerate(blocks):
        for p in range(planes):
            right[:, i, p] = (trits[p, :, block] * wh[:, block]).sum(1)
            projected = trits[p, :, block] @ h[block, block.start :]  # what lies before is known by symmetry
            for other in range(planes):
                sums = _sums_of_groups(projected * trits[other, :, block.start :], blocks[i:])
                normal[:, i, p, i:, other] = sums
                normal[:, i:, other, i, p] = sums
    previous = torch.stack([scales[:, :, group] for group, _ in blocks], 1).permute(2, 1, 0)  # [R, groups, P]
    solved = pt.ridge_solve(normal.flatten(3, 4).flatten(1, 2), right.flatten(1), previous.flatten(1))
    solved = solved.reshape(previous.shape)
    # a scale below zero would need its codes turned: rare, and the old scale is then kept
    fresh = pt.round_scales(torch.where(solved > 0, solved, previous))
    out = torch.empty_like(scales)
    for i, (group, _) in enumerate(blocks):
        out[:, :, group] = fresh[:, i].T
    return out


def _sums_of_groups(products: Tensor, blocks: Blocks) -> Tensor:
    """Sums over the columns of each group: [R, C] of consecutive groups -> [R, groups]."""
    width = blocks[0][1].stop - blocks[0][1].start
    if all(block.stop - block.start == width for _, block in blocks):
        return products.view(len(products), -1, width).sum(2)
    first = blocks[0][1].start
    return torch.stack([products[:, b.start - first : b.stop - first].sum(1) for _, b in blocks], 1)


def descend(
    w: Tensor, h: Tensor, trits: Tensor, scales: Tensor, blocks: Blocks, spec: FitSpec
) -> tuple[Tensor, float]:
    """One pass of coordinate descent over the codes, scales fixed: (codes, their loss)."""
    trits = trits.clone()
    q = decode(trits, scales, blocks)
    gradient = (w - q) @ h
    counts = pt.zero_counts(spec.planes).to(w.device)
    diagonal = h.diagonal()
    budget = ZeroBudget(spec, w.numel() * spec.planes)
    for group, block in blocks:
        table = pt.points(scales[:, :, group].T)
        local = gradient[:, block].clone()
        inner = h[block, block]
        before = q[:, block].clone()
        price = budget.price(before + local / diagonal[block], table, diagonal[block])
        index = torch.empty(before.shape, dtype=torch.int64, device=w.device)
        if rust.serves(w):
            values = before.clone()
            rust.descend_group(values, local, table, spec.planes, price, inner, index)
            q[:, block] = values
        else:
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
    # what each group's change has done to the gradient is in it: it is (W - Q) H of the new codes
    return trits, float(((w - q) * gradient).sum(dtype=torch.float64))


def settle_zeros(
    w: Tensor, h: Tensor, trits: Tensor, scales: Tensor, blocks: Blocks, budget: ZeroBudget
) -> None:
    """Bring the zeros to the budget exactly, in place, by turning the codes at which it costs least."""
    zeros = int((trits == 0).sum())
    excess = zeros - (budget.total or 0)
    if excess == 0 or (excess < 0 and not budget.exact):
        return
    q = decode(trits, scales, blocks)
    aim = q + ((w - q) @ h) / h.diagonal()
    price = torch.empty_like(q)
    turned = torch.empty(q.shape, dtype=torch.int64, device=q.device)
    for group, block in blocks:
        table = pt.points(scales[:, :, group].T)
        index = pt.index_of(trits[:, :, block])
        price[:, block], turned[:, block] = choose_flips(
            aim[:, block], table, index, trits.shape[0], fewer=excess > 0
        )
    price *= h.diagonal()
    count = min(abs(excess), int(torch.isfinite(price).sum()))
    if count:
        flips = price.flatten().topk(count, largest=False, sorted=False).indices
        planes = pt.trits_of(turned.flatten()[flips], trits.shape[0])
        trits.view(trits.shape[0], -1)[:, flips] = planes
