"""`BitLinear`: a linear layer that trains through its own ternary codes and scales.

The forward pass uses exactly the numbers that will be written: codes in {-1, 0, +1}, scales rounded to
float16. Behind them stands a float32 latent weight; the code of a weight is that of the representable value
(a sum of planes, alpha_i * t_i) nearest to its latent, by the scales that the layer started from: the cells
stay where they are while the values in them are learned, so that a moving scale flips no code. Gradients
reach the latent straight through (Bengio et al. 2013) and each scale through sum(g * T_i), as in learned step
sizes (Esser et al. 2020).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritpress.errors import InputError

FP16_MAX = 65504.0
MARGIN = 0.5
"""How far from the border of its cell (as a share of the distance between the two values) a latent starts.

Half is the middle. Calibration moves many codes away from the weight's nearest value to make up for others'
errors; started near the border they flip back in the noise of the first steps and undo it."""
BISECTIONS = 14


class BitLinear(nn.Module):
    """A trainable linear layer of 1 to 3 ternary planes.

    Parameters: `latent` float32 [out, in] and `gain` float32 [planes, out, groups], the learned factor on the
    scales that the layer started from (starting at 1, so that one learning rate suits every model). `bias` is
    kept as given, untrained unless the caller asks for its gradient.

    `zero_band` = (floor, ceiling) holds the share of zero codes over all planes inside these limits: where
    plain nearest values leave it, the borders between values with and without a zero code are shifted, all of
    the tensor by the same share of their distance, just as far as needed. None leaves the zeros free.
    """

    base_scales: Tensor

    def __init__(
        self,
        latent: Tensor,
        scales: Tensor,
        group_size: int,
        bias: Tensor | None = None,
        activation_bits: int | None = None,
        zero_band: tuple[float, float] | None = None,
    ) -> None:
        """`latent` [out, in], `scales` [planes, out, groups] >= 0; `group_size` 0 is the whole row."""
        super().__init__()
        self.out_features, self.in_features = latent.shape
        self.group_size = group_size or self.in_features
        self.planes, self.groups = scales.shape[0], -(-self.in_features // self.group_size)
        if tuple(scales.shape) != (self.planes, self.out_features, self.groups):
            raise InputError(
                f"scales of shape {list(scales.shape)} do not fit a weight of {list(latent.shape)} in groups "
                f"of {self.group_size}: {[self.planes, self.out_features, self.groups]} is right"
            )
        if not 1 <= self.planes <= 3:
            raise InputError(f"a ternary tensor has 1 to 3 planes, not {self.planes}")
        self.activation_bits, self.zero_band = activation_bits, zero_band
        self.latent = nn.Parameter(latent.detach().to(torch.float32).clone().contiguous())
        self.gain = nn.Parameter(torch.ones(scales.shape, device=latent.device))
        self.register_buffer("base_scales", scales.detach().to(latent.device, torch.float32).clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone(), requires_grad=False)
        self._cells: _Cells | None = None
        self._key: tuple[Any, ...] = ()
        self._cells_key: tuple[int, int] = (-1, 0)
        self._weight = self._codes = self._scales = torch.empty(0)

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray | Tensor,
        scales: np.ndarray | Tensor,
        in_features: int,
        group_size: int,
        bias: Tensor | None = None,
        latent: Tensor | None = None,
        activation_bits: int | None = None,
        zero_band: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
        margin: float = MARGIN,
    ) -> BitLinear:
        """Start from codes uint8 [planes, out, ceil(in/4)] and scales float16 [planes, out, groups].

        `latent` [out, in] (the original weight) is pulled into the cells of the given codes, `margin` of the
        way from their borders, so that the first forward pass uses these very codes; at the default only
        latents beyond the outermost value keep their original. Without it latents start at the values.
        `zero_band` is widened to hold the given codes' own share of zeros.
        """
        codes_t = torch.as_tensor(np.asarray(codes), device=device)
        scales_t = torch.as_tensor(np.asarray(scales), device=device).to(torch.float32)
        trits = unpack_trits(codes_t, in_features)
        group = group_size or in_features
        value = _sum_planes(scales_t, trits, group)
        start = value if latent is None else latent.detach().to(value)
        if start.shape != value.shape:
            raise InputError(f"a latent of {list(start.shape)} does not fit codes of {list(value.shape)}")
        if zero_band is not None:
            zeros = _zero_share(trits)
            zero_band = min(zeros, zero_band[0]), max(zeros, zero_band[1])
        layer = cls(start, scales_t, group_size, bias, activation_bits, zero_band)
        if latent is not None:
            layer._pull_into_cells(value, margin)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        self._refresh()
        weight = _StraightThrough.apply(self.latent, self.gain, self)
        if self.activation_bits == 8:
            x = fake_quantize_activations(x)
        return F.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @torch.no_grad()
    def quantized(self) -> Tensor:
        """The weight of the forward pass, float32 [out, in]: the planes' sum in order, not rounded again."""
        self._refresh()
        return self._weight

    @torch.no_grad()
    def codes_and_scales(self) -> tuple[np.ndarray, np.ndarray]:
        """What the forward pass uses, as packed: uint8 [planes, out, ceil(in/4)] and float16 scales."""
        self._refresh()
        return pack_trits(self._codes).cpu().numpy(), self._scales.to(torch.float16).cpu().numpy()

    def changed(self) -> None:
        """Say that latent or gain have new values where torch does not count it: fused optimizers."""
        self._key = ()

    @torch.no_grad()
    def pull_to_middle(self, share: float) -> None:
        """Move each latent by `share` of its way to the value, by the scales at the start, of its code in the
        last forward pass."""
        middle = _sum_planes(self.base_scales, self._codes, self.group_size)
        self.latent.lerp_(middle, share)

    @torch.no_grad()
    def zero_share(self) -> float:
        """Share of zero codes over all planes together."""
        self._refresh()
        return _zero_share(self._codes)

    @property
    def unit(self) -> float:
        """Mean scale of the last plane: about the width of a cell, in which steps of latents are measured."""
        return float(self.base_scales[-1].mean()) or 1.0

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, planes={self.planes}, "
            f"group_size={self.group_size}, bias={self.bias is not None}"
        )

    @torch.inference_mode(False)  # what is kept must also serve a later pass that has gradients
    @torch.no_grad()
    def _refresh(self) -> None:
        """Quantize again only where latent or gain changed: once an optimizer step."""
        tensors = (self.base_scales, self.latent, self.gain)
        key = tuple((tensor._version, tensor.data_ptr()) for tensor in tensors)
        if key == self._key:
            return
        if self._cells is None or key[0] != self._cells_key:
            self._cells_key = key[0]
            self._cells = _Cells(*_half_levels(self.base_scales.permute(1, 2, 0)))
        alpha = (self.base_scales * self.gain).clamp(0.0, FP16_MAX).to(torch.float16).float()
        self._scales = alpha
        self._codes = self._cells.codes_of(self.latent, self.group_size, self.zero_band)
        if not bool(alpha.all()):  # a scale of 0 has codes of 0
            alive = _spread(alpha > 0, self.group_size, self.in_features)
            self._codes = self._codes * alive
        self._weight = _sum_planes(alpha, self._codes, self.group_size)
        self._key = key

    @torch.no_grad()
    def _pull_into_cells(self, value: Tensor, margin: float) -> None:
        """Clamp each latent into the cell of `value` [out, in], `margin` of the way from its borders."""
        alpha_OGP = self.base_scales.permute(1, 2, 0)
        levels = _half_levels(alpha_OGP)[0]
        size, group = levels.shape[-1], self.group_size
        grouped = _grouped(value.abs(), group)
        at = torch.searchsorted(levels, grouped.contiguous())  # the first level >= |value|, which is |value|
        at = at.clamp(max=size - 1)
        here = levels.gather(-1, at)
        below = levels.gather(-1, (at - 1).clamp(min=0))
        above = levels.gather(-1, (at + 1).clamp(max=size - 1))
        inside = 0.5 - margin
        low = torch.where(at == 0, -(here + inside * (above - here)), here - inside * (here - below))
        high = torch.where(at == size - 1, torch.full_like(here, torch.inf), here + inside * (above - here))
        sign = torch.where(_grouped(value, group) < 0, -1.0, 1.0)
        pulled = sign * (_grouped(self.latent, group) * sign).clamp(low, high)
        self.latent.copy_(pulled.flatten(1)[:, : self.in_features])


class _StraightThrough(torch.autograd.Function):
    """Forward: the cached weight. Backward: to the latent as it is, to each gain base * sum(g * T_i)."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, gain: Tensor, layer: BitLinear) -> Tensor:
        ctx.codes, ctx.base, ctx.group = layer._codes, layer.base_scales, layer.group_size
        return layer._weight.view_as(layer._weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        gain_grad = None
        if ctx.needs_input_grad[1]:
            sums = [_grouped(grad * codes, ctx.group).sum(dim=-1) for codes in ctx.codes]
            gain_grad = torch.stack(sums) * ctx.base
        return grad, gain_grad, None


def fake_quantize_activations(x: Tensor) -> Tensor:
    """The int8 activations of the kernels (per token, absmax, half to even), straight through in backward."""
    scale = x.detach().abs().amax(dim=-1, keepdim=True).float() / 127.0
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    quantized = (x.detach() / safe).round().clamp(-127, 127) * scale
    return x + (quantized.to(x.dtype) - x).detach()


def unpack_trits(codes: Tensor, in_features: int) -> Tensor:
    """uint8 [..., ceil(in/4)] -> int8 [..., in] in {-1, 0, 1}; raises `InputError` for the invalid code 3."""
    shifts = torch.arange(0, 8, 2, device=codes.device, dtype=torch.uint8)
    trits = ((codes.unsqueeze(-1) >> shifts) & 3).flatten(-2)[..., :in_features]
    if bool((trits == 3).any()):
        raise InputError("the codes hold the value 3, which no ternary code has")
    return trits.to(torch.int8) - 1


def pack_trits(trits: Tensor) -> Tensor:
    """int8 [..., in] -> uint8 [..., ceil(in/4)]: input c is bits 2 (c mod 4) of byte c / 4, value T + 1."""
    padded = F.pad(trits, (0, -trits.shape[-1] % 4)) + 1
    quads = padded.to(torch.uint8).unflatten(-1, (-1, 4))
    return quads[..., 0] | (quads[..., 1] << 2) | (quads[..., 2] << 4) | (quads[..., 3] << 6)


def _sum_planes(alpha: Tensor, trits: Tensor, group: int) -> Tensor:
    """float32 [out, in]: sum over planes, in order, of alpha [planes, out, groups] * trits."""
    total = _grouped(trits[0], group) * alpha[0].unsqueeze(-1)
    for plane in range(1, len(trits)):
        total = total + _grouped(trits[plane], group) * alpha[plane].unsqueeze(-1)
    return total.flatten(1)[:, : trits.shape[-1]].contiguous()


def _spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    """[.., groups] -> [.., columns]: each group's value at every one of its columns."""
    return per_group.repeat_interleave(group, dim=-1)[..., :columns]


def _grouped(x: Tensor, group: int) -> Tensor:
    """[out, in] -> [out, groups, group], the last group filled up with zeros."""
    missing = -x.shape[-1] % group
    return (F.pad(x, (0, missing)) if missing else x).unflatten(-1, (-1, group))


def _half_levels(alpha_OGP: Tensor) -> tuple[Tensor, Tensor]:
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


class _Cells:
    """Which latents belong to which codes: fixed levels and borders of every group."""

    def __init__(self, levels: Tensor, codes: Tensor) -> None:
        """`levels` >= 0 ascending [out, groups, levels], `codes` int8 [out, groups, levels, planes]."""
        self.planes = codes.shape[-1]
        zeros = (codes == 0).sum(dim=-1).to(torch.int8)
        gap = levels.diff(dim=-1)
        self.middles = levels[..., :-1] + 0.5 * gap
        # towards fewer zero codes: a positive share of it makes the cells with more of them smaller
        self.lean = 0.5 * gap * zeros.diff(dim=-1).sign()
        # what each border adds to the code of every plane: sums in int8 cost far less than looking codes up
        self.steps = codes.diff(dim=-2)

    def codes_of(self, latent: Tensor, group: int, band: tuple[float, float] | None) -> Tensor:
        """int8 [planes, out, in]: the codes of the cells of `latent` [out, in], zeros held inside `band`."""
        columns, magnitude = latent.shape[-1], _grouped(latent.abs(), group)
        trits = self._codes(magnitude, self.middles, columns)
        if band is not None:
            trits = self._hold_zeros(trits, magnitude, band, columns)
        return trits * latent.sign().to(torch.int8)  # a latent of 0 has codes of 0 anyway

    def _codes(self, magnitude: Tensor, borders: Tensor, columns: int) -> Tensor:
        """int8 [planes, out, in]: the codes of the level of each magnitude [out, groups, group]."""
        trits = torch.zeros((self.planes, *magnitude.shape), dtype=torch.int8, device=magnitude.device)
        for k in range(borders.shape[-1]):
            above = (magnitude > borders[..., k : k + 1]).to(torch.int8)
            for plane in range(self.planes):
                trits[plane].addcmul_(above, self.steps[..., k : k + 1, plane])
        return trits.flatten(-2)[..., :columns]

    def _hold_zeros(
        self, trits: Tensor, magnitude: Tensor, band: tuple[float, float], columns: int
    ) -> Tensor:
        """`trits` with all borders leant by one common share, bisected, until the zeros lie inside `band`, or
        as near to it as the borders can go."""
        now, (floor, ceiling) = _zero_share(trits), band
        if floor <= now <= ceiling:
            return trits
        direction = 1.0 if now > ceiling else -1.0
        if self.planes == 1:  # in training nearly every step meets the ceiling: no bisection then
            zeros = math.floor(ceiling * trits.numel()) if direction > 0 else math.ceil(floor * trits.numel())
            return self._largest(magnitude, trits.numel() - zeros, columns)
        best, low, high = None, 0.0, 0.999
        for _ in range(BISECTIONS):
            lean_by = 0.5 * (low + high)
            trits = self._codes(magnitude, self.middles + direction * lean_by * self.lean, columns)
            share = _zero_share(trits)
            if share <= ceiling if direction > 0 else share >= floor:
                best, high = trits, lean_by
            else:
                low = lean_by
        return trits if best is None else best


    def _largest(self, magnitude: Tensor, count: int, columns: int) -> Tensor:
        """One plane with codes of 1 for the `count` magnitudes that are largest against their group's border:
        what leaning every border by the one share that gives so many comes to."""
        middle = self.middles[..., :1]
        ratio = torch.where(middle > 0, magnitude.detach() / middle, 0.0)
        flat, index = ratio.flatten(), ratio.numel() - max(1, count)
        # numpy's selection runs ten times faster than torch's
        border = flat.kthvalue(index + 1).values if flat.is_cuda else np.partition(flat.numpy(), index)[index]
        border = min(max(float(border), 0.001), 1.999)  # as far as borders can lean
        return (ratio >= border).to(torch.int8).flatten(-2)[..., :columns].unsqueeze(0)


def _zero_share(trits: Tensor) -> float:
    return 1.0 - int(trits.count_nonzero()) / trits.numel()
