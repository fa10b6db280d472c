"""Which code a latent weight has, what codes stand for, and a gradient's share of each scale.

On a CPU these run in Rust (`tritpress._core`), one pass over the weights each; the lines in torch are for
other devices and give the same codes and weights.

Shapes: O rows (outputs), G groups, P planes; codes int8 [P, O, in], scales float32 [P, O, G].
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tritpress import _core

BISECTIONS = 14


def sum_planes(alpha: Tensor, trits: Tensor, group: int) -> Tensor:
    """float32 [out, in]: sum over planes, in order, of alpha [planes, out, groups] * trits."""
    if _on_cpu(alpha, trits):
        out = torch.empty(trits.shape[1:])
        _core.decode_trits(_array(trits), _array(alpha), group, out.numpy(), threads=torch.get_num_threads())
        return out
    total = grouped(trits[0], group) * alpha[0].unsqueeze(-1)
    for plane in range(1, len(trits)):
        total = total + grouped(trits[plane], group) * alpha[plane].unsqueeze(-1)
    return total.flatten(1)[:, : trits.shape[-1]].contiguous()


def sum_groups(gradient: Tensor, trits: Tensor, group: int) -> Tensor:
    """float32 [planes, out, groups]: sums over each group of gradient [out, in] * trits."""
    if _on_cpu(gradient, trits) and gradient.dtype == torch.float32:
        out = torch.empty(len(trits), gradient.shape[0], -(-gradient.shape[1] // group))
        _core.group_sums(_array(gradient), _array(trits), group, out.numpy(), threads=torch.get_num_threads())
        return out
    return torch.stack([grouped(gradient * codes, group).sum(dim=-1) for codes in trits])


def spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    """[.., groups] -> [.., columns]: each group's value at every one of its columns."""
    return per_group.repeat_interleave(group, dim=-1)[..., :columns]


def grouped(x: Tensor, group: int) -> Tensor:
    """[out, in] -> [out, groups, group], the last group filled up with zeros."""
    missing = -x.shape[-1] % group
    return (F.pad(x, (0, missing)) if missing else x).unflatten(-1, (-1, group))


def zero_share(trits: Tensor) -> float:
    """Share of zero codes over all planes together."""
    return 1.0 - int(trits.count_nonzero()) / trits.numel()


def half_levels(alpha_OGP: Tensor) -> tuple[Tensor, Tensor]:
    """The representable values >= 0 of each group, ascending [out, groups, levels], and their codes
    int8 [out, groups, levels, planes]. Level 0 is 0, with all codes 0."""
    planes = alpha_OGP.shape[-1]
    combos = torch.tensor(list(itertools.product((-1, 0, 1), repeat=planes)), device=alpha_OGP.device)
    values = combos[:, 0] * alpha_OGP[..., 0:1]
    for plane in range(1, planes):
        values = values + combos[:, plane] * alpha_OGP[..., plane : plane + 1]
    # Product order is antisymmetric with the all-zero code in the middle; a stable sort keeps it there.
    values, order = values.sort(dim=-1, stable=True)
    middle = len(combos) // 2
    codes = combos.to(torch.int8)[order[..., middle:]]
    return values[..., middle:].contiguous(), codes * (alpha_OGP > 0).to(torch.int8).unsqueeze(-2)


class Cells:
    """Which latents belong to which codes: fixed levels and borders of every group."""

    def __init__(self, levels: Tensor, codes: Tensor) -> None:
        """`levels` >= 0 ascending [out, groups, levels], `codes` int8 [out, groups, levels, planes]."""
        self.planes = codes.shape[-1]
        zeros = (codes == 0).sum(dim=-1).to(torch.int8)
        gap = levels.diff(dim=-1)
        self.middles = (levels[..., :-1] + 0.5 * gap).contiguous()
        # towards fewer zero codes: a positive share of it makes the cells with more of them smaller
        self.lean = 0.5 * gap * zeros.diff(dim=-1).sign()
        # what each border adds to the code of every plane: sums in int8 cost far less than looking codes up
        self.steps = codes.diff(dim=-2).contiguous()

    def codes_of(self, latent: Tensor, group: int, band: tuple[float, float] | None) -> Tensor:
        """int8 [planes, out, in]: the codes of the cells of `latent` [out, in], zeros held inside `band`: all
        borders leant by one common share until they are, or as near to it as the borders can go."""
        latent = latent.detach()
        trits, now = self._codes(latent, self.middles, group)
        if band is None or band[0] <= now <= band[1]:
            return trits
        floor, ceiling = band
        direction = 1.0 if now > ceiling else -1.0
        if self.planes == 1:  # in training nearly every step meets the ceiling: no bisection then
            zeros = math.floor(ceiling * trits.numel()) if direction > 0 else math.ceil(floor * trits.numel())
            return self._largest(latent, trits.numel() - zeros, group)
        best, low, high = None, 0.0, 0.999
        for _ in range(BISECTIONS):
            lean_by = 0.5 * (low + high)
            trits, share = self._codes(latent, self.middles + direction * lean_by * self.lean, group)
            if share <= ceiling if direction > 0 else share >= floor:
                best, high = trits, lean_by
            else:
                low = lean_by
        return trits if best is None else best

    def _codes(self, latent: Tensor, borders: Tensor, group: int) -> tuple[Tensor, float]:
        """(int8 [planes, out, in], share of zeros): the codes by these borders [out, groups, levels - 1]."""
        columns = latent.shape[-1]
        if _on_cpu(latent, borders):
            trits = torch.empty((self.planes, *latent.shape), dtype=torch.int8)
            zeros = _core.latent_codes(
                _array(latent),
                _array(borders),
                _array(self.steps),
                group,
                trits.numpy(),
                threads=torch.get_num_threads(),
            )
            return trits, 1.0 - (trits.numel() - zeros) / trits.numel()  # rounded as `zero_share` does
        magnitude = grouped(latent.abs(), group)
        sums = torch.zeros((self.planes, *magnitude.shape), dtype=torch.int8, device=magnitude.device)
        for k in range(borders.shape[-1]):
            above = (magnitude > borders[..., k : k + 1]).to(torch.int8)
            for plane in range(self.planes):
                sums[plane].addcmul_(above, self.steps[..., k : k + 1, plane])
        trits = sums.flatten(-2)[..., :columns] * latent.sign().to(torch.int8)
        return trits, zero_share(trits)

    def _largest(self, latent: Tensor, count: int, group: int) -> Tensor:
        """One plane with codes of -1 and 1 for the `count` latents that are largest against their group's
        border: what leaning every border by the one share that gives so many comes to."""
        middle = self.middles[..., :1]
        if _on_cpu(latent, middle):
            trits = torch.empty((1, *latent.shape), dtype=torch.int8)
            _core.latent_largest(
                _array(latent), _array(middle), count, group, trits.numpy(), threads=torch.get_num_threads()
            )
            return trits
        ratio = torch.where(middle > 0, grouped(latent.abs(), group) / middle, 0.0)
        index = ratio.numel() - max(1, count)
        border = float(ratio.flatten().kthvalue(index + 1).values)
        border = min(max(border, 0.001), 1.999)  # as far as borders can lean
        kept = (ratio >= border).to(torch.int8).flatten(-2)[..., : latent.shape[-1]]
        return (kept * latent.sign().to(torch.int8)).unsqueeze(0)


def _on_cpu(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
