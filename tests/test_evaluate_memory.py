"""What a loaded model holds in memory."""

from __future__ import annotations

import numpy as np
import torch
from tritpress.evaluate.memory import held_bytes
from tritpress.nn.ternary_linear import TernaryLinear


def test_tied_weights_count_once() -> None:
    embedding, head = torch.nn.Embedding(10, 8), torch.nn.Linear(8, 10, bias=False)
    assert held_bytes(torch.nn.ModuleList([embedding, head])) == 2 * 10 * 8 * 4
    head.weight = embedding.weight
    assert held_bytes(torch.nn.ModuleList([embedding, head])) == 10 * 8 * 4
    assert held_bytes(torch.nn.ReLU()) == 0


def test_the_kernels_copy_of_a_packed_weight_counts_once_it_is_made() -> None:
    import tritpress

    w = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    t = tritpress.ternarize(w, planes=2)
    layer = TernaryLinear(torch.from_numpy(t.codes), torch.from_numpy(t.scales), 128, 64)
    stored = t.codes.nbytes + t.scales.nbytes
    assert held_bytes(layer) == stored == 2 * 32 * 128 // 4 + 2 * 32 * 2 * 2
    layer(torch.ones(1, 128))
    matrix = tritpress.PackedMatrix(t.codes, t.scales, group_size=64, shape=(32, 128), format="2bit")
    assert held_bytes(layer) == stored + matrix.nbytes and matrix.nbytes >= 2 * 32 * 128 // 4
