"""What a group of weights can be rounded to: sums of scaled trits, and the scales that suit a group best.

Shapes: R rows, G inputs of one group, P planes, K = 3^P points. All in float32; a scale is always a value
that float16 holds, because it is rounded before any code is taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from tritpress.errors import InputError

_FP16_MAX = 65504.0


@dataclass(frozen=True)
class FitSpec:
    """How one tensor is fitted.

    Attributes:
        planes: 1 to 3 residual planes.
        group_size: inputs that share a scale; 0 is the whole row.
        fit: "exact" (least squares), "twn" (threshold 0.7 of the mean |w|),
            "absmean" (BitNet's rule) or "bitnet" (with one scale a tensor: `fixed_scales`).
        threshold: codes are 0 up to this share of the group's mean |w|; None lets the fit decide.
        sparsity: share of zero codes over all planes to hit; None lets the fit decide.
        max_sparsity: ceiling on that share; None for no ceiling.
        fixed_scales: one scale a plane for every group, in place of a fit ("bitnet"); values of float16.
    """

    planes: int = 1
    group_size: int = 64
    fit: str = "exact"
    threshold: float | None = None
    sparsity: float | None = None
    max_sparsity: float | None = None
    fixed_scales: tuple[float, ...] | None = None

    @property
    def zero_share(self) -> float | None:
        """The share of zeros that binds: the target's, else the ceiling's."""
        return self.sparsity if self.sparsity is not None else self.max_sparsity


@cache
def combinations(planes: int) -> Tensor:
    """Every choice of trits over the planes: float32 [K, P]."""
    return torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=planes)))


@cache
def zero_counts(planes: int) -> Tensor:
    """Number of zero trits in each combination: float32 [K]."""
    return (combinations(planes) == 0).sum(1).float()


def round_scales(scales: Tensor) -> Tensor:
    """Nearest float16 values, as float32. Raises `InputError` above 65504, which float16 cannot hold."""
    if not bool((scales <= _FP16_MAX).all()):
        raise InputError(f"a group needs the scale {float(scales.max()):g}, above float16's {_FP16_MAX:g}")
    return scales.half().float()


def points(scales: Tensor) -> Tensor:
    """Values that scales [R, P] can stand for: [R, K]. Summed over planes in order, as decoding does.

    Infinite where a plane whose scale is 0 would have a nonzero code, so that it is never taken.
    """
    table = combinations(scales.shape[1]).to(scales.device)
    values = scales[:, :1] * table[:, 0]
    for plane in range(1, scales.shape[1]):
        values = values + scales[:, plane : plane + 1] * table[:, plane]
    if bool((scales == 0).any()):
        empty = ((scales[:, None, :] == 0) & (table != 0)).any(-1)
        values = values.masked_fill(empty, torch.inf)
    return values


def nearest(weights: Tensor, table: Tensor, penalty: Tensor | None = None) -> Tensor:
    """Index of the point nearest to each weight [R, G] in table [R, K]: int64 [R, G].

    `penalty` [K] is added to the squared distance (a price on zeros).
    """
    cost = (weights.unsqueeze(-1) - table.unsqueeze(1)).square_()
    if penalty is not None:
        cost += penalty
    return cost.argmin(-1)


def trits_of(index: Tensor, planes: int) -> Tensor:
    """int64 [..] indices of combinations -> float32 [P, ..] trits."""
    return combinations(planes).to(index.device)[index].movedim(-1, 0)


def index_of(trits: Tensor) -> Tensor:
    """[P, ..] trits -> int64 [..] indices of combinations."""
    index = torch.zeros(trits.shape[1:], dtype=torch.int64, device=trits.device)
    for plane in trits:
        index = index * 3 + plane.to(torch.int64) + 1
    return index


def count_zeros(index: Tensor, planes: int) -> Tensor:
    """int64 [..] indices of combinations -> float32 [..] number of zero trits."""
    return zero_counts(planes).to(index.device)[index]


def threshold_trits(weights: Tensor, threshold: float) -> Tensor:
    """sign(w) above `threshold` times the row's mean |w|, else 0: [R, G]."""
    limit = threshold * weights.abs().mean(1, keepdim=True)
    return weights.sign() * (weights.abs() > limit)


def least_squares_scales(basis: Tensor, target: Tensor, previous: Tensor) -> Tensor:
    """Scales [R, P] that bring sum_p scale_p basis_p [P, R, G] nearest to target [R, G], by ridge least
    squares.

    A plane with no nonzero code keeps its previous scale. Signs are the caller's to fold into the codes.
    """
    normal = torch.einsum("prg,qrg->rpq", basis, basis)
    return ridge_solve(normal, torch.einsum("prg,rg->rp", basis, target), previous)


def ridge_solve(normal: Tensor, right: Tensor, previous: Tensor) -> Tensor:
    """Solve normal [R, N, N] x = right [R, N], drawn a little towards `previous` [R, N].

    An unknown that nothing depends on (a plane without a nonzero code) keeps its previous value. By Cholesky:
    torch's batched LU (2.15 with MKL and several threads) comes to no end from some 190 unknowns on.
    """
    diagonal = normal.diagonal(dim1=1, dim2=2)
    dead = diagonal <= 0
    ridge = 1e-4 * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    right = torch.where(dead, previous, right + ridge * previous)
    normal = normal + torch.diag_embed(torch.where(dead, torch.ones_like(ridge), ridge))
    factor, failed = torch.linalg.cholesky_ex(normal)
    solved = torch.cholesky_solve(right[..., None], factor)[..., 0]
    for row in failed.nonzero().flatten().tolist():  # not positive definite by rounding
        solved[row] = torch.linalg.solve(normal[row].double(), right[row].double()).float()
    return solved
