"""Holding the share of zero codes: a price on zeros that keeps a budget, paid where it costs least.

A Lagrangian: each weight takes the point with the least (squared error + price * zeros), and the price is
the one at which the zeros come out as wanted. Shapes: R rows, G inputs, K points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritpress.ternarize import loops as rust
from tritpress.ternarize.points import FitSpec, count_zeros, zero_counts


class ZeroBudget:
    """Keeps account of the zero codes of one tensor while groups are coded one after the other.

    Args:
        spec: its sparsity (a target, both ways) or max_sparsity (a ceiling) says how many zeros there may be.
        codes: number of codes of the whole tensor, all planes together.
    """

    def __init__(self, spec: FitSpec, codes: int) -> None:
        self.planes = spec.planes
        self.exact = spec.sparsity is not None
        share = None if spec.threshold is not None else spec.zero_share
        self.total = None if share is None else int(round(share * codes) if self.exact else share * codes)
        self._codes_left = codes
        self._zeros_left = self.total or 0

    def price(self, weights: Tensor, table: Tensor, column_weights: Tensor) -> Tensor | None:
        """Price on one zero for a group, in the units of column_weights * error^2; None where none is needed.

        weights [R, G], table [R, K], column_weights [G]. The group's fair share of the zeros still allowed
        is what it may use.
        """
        if self.total is None:
            return None
        codes = weights.numel() * self.planes
        allowed = self._zeros_left * codes / self._codes_left
        if rust.serves(weights):
            price = rust.zero_price(weights, column_weights, table, self.planes, allowed, self.exact)
            return weights.new_tensor(price)
        counts = zero_counts(self.planes)
        cost = (weights.unsqueeze(-1) - table.unsqueeze(1)).square() * column_weights[:, None]
        levels = [cost[..., counts == zeros].amin(-1) for zeros in range(self.planes + 1)]
        return solve_price(levels, allowed, both_ways=self.exact)

    def spend(self, index: Tensor) -> None:
        """Book the codes just taken: index [R, G] of combinations."""
        if self.total is not None:
            self._codes_left -= index.numel() * self.planes
            self._zeros_left -= int(count_zeros(index, self.planes).sum())


def solve_price(levels: list[Tensor], allowed: float, both_ways: bool) -> Tensor:
    """Price at which choosing argmin_z (levels[z] + price * z) makes about `allowed` zeros.

    `levels[z]` is the least cost of each weight with z zero codes. With `both_ways` the price may be
    negative (zeros are wanted); otherwise it is 0 where the free choice stays within the allowance.
    """

    def zeros(price: float) -> float:
        best, count = levels[0].clone(), torch.zeros_like(levels[0])
        for number, level in enumerate(levels[1:], start=1):
            priced = level + price * number
            count = torch.where(priced < best, float(number), count)
            best = torch.minimum(best, priced)
        return float(count.sum())

    if not both_ways and zeros(0.0) <= allowed:
        return levels[0].new_zeros(())
    steps = [(levels[z] - levels[z - 1]).abs() for z in range(1, len(levels))]
    spread = max(float(step.nan_to_num(0.0, 0.0, 0.0).max()) for step in steps)
    low, high = (-2.0 * spread if both_ways else 0.0), 2.0 * spread
    for _ in range(30):
        middle = (low + high) / 2
        if zeros(middle) > allowed:
            low = middle
        else:
            high = middle
    return levels[0].new_tensor(high)


def choose_flips(
    aim: Tensor, table: Tensor, index: Tensor, planes: int, fewer: bool
) -> tuple[Tensor, Tensor]:
    """For each weight its cheapest point with one zero code fewer (or more): (added squared error, index),
    [R, G].

    aim [R, G] is what the weight would be without rounding, index [R, G] the point that it has now. The
    error is infinite where there is no such point.
    """
    counts = zero_counts(planes).to(aim.device)
    cost = (aim.unsqueeze(-1) - table.unsqueeze(1)).square()
    now = cost.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    wanted = counts[index] + (-1.0 if fewer else 1.0)
    best, turned = cost.masked_fill(counts != wanted.unsqueeze(-1), torch.inf).min(-1)
    return best - now, turned
