"""The packed layout in plain torch: unpack, dequantize, and int8 activations. Runs on every device.

Source of the layout: the packed format's 2-bit codes (input c is bits 2(c mod 4) of byte c/4, value T + 1)
and float16 scales per row and group of inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(codes: Tensor, cols: int) -> Tensor:
    """uint8 [..., ceil(cols / 4)] -> int8 [..., cols] with values -1, 0, +1."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=codes.device)
    lanes = (codes.unsqueeze(-1) >> shifts) & 3
    return lanes.flatten(-2)[..., :cols].to(torch.int8) - 1


def pack(trits: Tensor) -> Tensor:
    """int8 [..., cols] with values -1, 0, +1 -> uint8 [..., ceil(cols / 4)]; padding is 0 (code 1)."""
    cols = trits.shape[-1]
    lanes = (trits + 1).to(torch.uint8)
    if cols % 4:
        lanes = torch.nn.functional.pad(lanes, (0, 4 - cols % 4), value=1)
    lanes = lanes.unflatten(-1, (-1, 4))
    return lanes[..., 0] | (lanes[..., 1] << 2) | (lanes[..., 2] << 4) | (lanes[..., 3] << 6)


def group_width(cols: int, group_size: int) -> int:
    """Inputs that share a scale: `group_size`, or all of them when it is 0 (the whole row)."""
    return group_size or cols


def expand_scales(scales: Tensor, cols: int, group_size: int) -> Tensor:
    """float16 [..., groups] -> float32 [..., cols], each scale repeated over its group's inputs."""
    return scales.float().repeat_interleave(group_width(cols, group_size), dim=-1)[..., :cols]


def dequantize(codes: Tensor, scales: Tensor, cols: int, group_size: int) -> Tensor:
    """Weight that the packed pair stands for: float32 [..., out, cols], rounded once to float16.

    `codes` uint8 [planes, ..., out, ceil(cols / 4)], `scales` float16 [planes, ..., out, groups]. The planes
    are summed in order in float32, as every reader of the format does, so that all give the same bits. Values
    are taken as they are; `tritpress.ops.values` refuses those that the format does not allow.
    """
    weight = unpack(codes[0], cols).float() * expand_scales(scales[0], cols, group_size)
    for plane in range(1, codes.shape[0]):
        weight += unpack(codes[plane], cols).float() * expand_scales(scales[plane], cols, group_size)
    return weight.half().float()


def int8_activations(x: Tensor) -> Tensor:
    """float [..., in] -> float32 [..., in] as the kernels see it: q * (max|x| / 127) per token, q an int8.

    Half-way cases round to even; a zero vector stays zero.
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127.0
    quantized = torch.round(x / torch.where(scale > 0, scale, 1.0)).clamp_(-127, 127)
    return quantized * scale
