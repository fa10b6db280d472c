"""`BitLinear`: a linear layer that trains through its own ternary codes and scales.

The forward pass uses exactly the numbers that will be written: codes in {-1, 0, +1}, scales rounded to
float16. Behind them stands a float32 latent weight; the code of a weight is that of the representable value
(a sum of planes, alpha_i * t_i) nearest to its latent, by the scales that the layer started from: the cells
stay where they are while the values in them are learned, so that a moving scale flips no code. Gradients
reach the latent straight through (Bengio et al. 2013) and each scale through sum(g * T_i), as in learned step
sizes (Esser et al. 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritpress.errors import InputError
from tritpress.nn.cells import Cells, grouped, half_levels, spread, sum_groups, sum_planes, zero_share

FP16_MAX = 65504.0
MARGIN = 0.5
"""How far from the border of its cell (as a share of the distance between the two values) a latent starts.

Half is the middle. Calibration moves many codes away from the weight's nearest value to make up for others'
errors; started near the border they flip back in the noise of the first steps and undo it."""


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
        self._cells: Cells | None = None
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
        value = sum_planes(scales_t, trits, group)
        start = value if latent is None else latent.detach().to(value)
        if start.shape != value.shape:
            raise InputError(f"a latent of {list(start.shape)} does not fit codes of {list(value.shape)}")
        if zero_band is not None:
            zeros = zero_share(trits)
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
        middle = sum_planes(self.base_scales, self._codes, self.group_size)
        self.latent.lerp_(middle, share)

    @torch.no_grad()
    def zero_share(self) -> float:
        """Share of zero codes over all planes together."""
        self._refresh()
        return zero_share(self._codes)

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
            self._cells = Cells(*half_levels(self.base_scales.permute(1, 2, 0)))
        alpha = (self.base_scales * self.gain).clamp(0.0, FP16_MAX).to(torch.float16).float()
        self._scales = alpha
        self._codes = self._cells.codes_of(self.latent, self.group_size, self.zero_band)
        if not bool(alpha.all()):  # a scale of 0 has codes of 0
            alive = spread(alpha > 0, self.group_size, self.in_features)
            self._codes = self._codes * alive
        self._weight = sum_planes(alpha, self._codes, self.group_size)
        self._key = key

    @torch.no_grad()
    def _pull_into_cells(self, value: Tensor, margin: float) -> None:
        """Clamp each latent into the cell of `value` [out, in], `margin` of the way from its borders."""
        alpha_OGP = self.base_scales.permute(1, 2, 0)
        levels = half_levels(alpha_OGP)[0]
        size, group = levels.shape[-1], self.group_size
        magnitude = grouped(value.abs(), group)
        at = torch.searchsorted(levels, magnitude.contiguous())  # the first level >= it, which is |value|
        at = at.clamp(max=size - 1)
        here = levels.gather(-1, at)
        below = levels.gather(-1, (at - 1).clamp(min=0))
        above = levels.gather(-1, (at + 1).clamp(max=size - 1))
        inside = 0.5 - margin
        low = torch.where(at == 0, -(here + inside * (above - here)), here - inside * (here - below))
        high = torch.where(at == size - 1, torch.full_like(here, torch.inf), here + inside * (above - here))
        sign = torch.where(grouped(value, group) < 0, -1.0, 1.0)
        pulled = sign * (grouped(self.latent, group) * sign).clamp(low, high)
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
            gain_grad = sum_groups(grad, ctx.codes, ctx.group) * ctx.base
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
