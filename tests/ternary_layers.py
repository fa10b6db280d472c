"""A random `TernaryLinear`, the weight that it stands for, and tokens for it."""

from __future__ import annotations

import torch
from tritpress.nn.ternary_linear import TernaryLinear
from tritpress.ops import reference


def make(out=6, cols=70, group_size=32, planes=2, bias=False, activation_bits=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (planes, out, cols), generator=generator, dtype=torch.int8)
    groups = -(-cols // (group_size or cols))
    scales = torch.rand(planes, out, groups, generator=generator).half()
    b = torch.randn(out, generator=generator) if bias else None
    layer = TernaryLinear(reference.pack(trits), scales, cols, group_size, b, activation_bits)
    width = group_size or cols
    weight = sum(
        trits[p].double() * scales[p].double().repeat_interleave(width, 1)[:, :cols] for p in range(planes)
    )
    return layer, weight, trits


def tokens(cols, shape=(3, 5), seed=1):
    return torch.randn(*shape, cols, generator=torch.Generator().manual_seed(seed))
