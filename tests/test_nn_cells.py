"""Codes, weights and sums in Rust against the lines in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tritpress import _core
from tritpress.nn import cells
from tritpress.nn.cells import Cells, half_levels, sum_groups, sum_planes, zero_share


def in_torch(function, *args):
    """What the lines in torch make of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_on_cpu", lambda *tensors: False)
        return function(*args)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    cols=st.integers(1, 150),
    group=st.sampled_from([16, 32, 64, 150]),
    planes=st.integers(1, 3),
    band=st.sampled_from([None, (0.0, 0.1), (0.2, 0.3), (0.5, 0.6), (0.9, 1.0)]),
    seed=st.integers(0, 2**31),
)
def test_rust_gives_the_codes_and_weights_of_torch(rows, cols, group, planes, band, seed):
    random = torch.Generator().manual_seed(seed)
    groups = -(-cols // group)
    latent = torch.randn(rows, cols, generator=random)
    latent[torch.rand(rows, cols, generator=random) < 0.05] = 0.0
    scales = torch.rand(planes, rows, groups, generator=random).half().float()
    scales[torch.rand(scales.shape, generator=random) < 0.1] = 0.0
    made = Cells(*half_levels(scales.permute(1, 2, 0)))
    codes = made.codes_of(latent, group, band)
    assert codes.dtype == torch.int8 and codes.shape == (planes, rows, cols)
    assert torch.equal(codes, in_torch(made.codes_of, latent, group, band))
    weight = sum_planes(scales, codes, group)
    assert torch.equal(weight, in_torch(sum_planes, scales, codes, group))
    gradient = torch.randn(rows, cols, generator=random)
    torch.testing.assert_close(
        sum_groups(gradient, codes, group), in_torch(sum_groups, gradient, codes, group), rtol=1e-5, atol=1e-5
    )
    assert zero_share(codes) == pytest.approx(float((codes == 0).float().mean()))


def test_threads_change_nothing():
    latent = torch.randn(300, 700)
    made = Cells(*half_levels(torch.full((300, 11, 1), 1.1)))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            codes = made.codes_of(latent, 64, (0.2, 0.3))
            found.append((codes, sum_groups(latent, codes, 64)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_what_does_not_fit_is_refused():
    latent, borders = np.zeros((2, 64), np.float32), np.zeros((2, 1, 1), np.float32)
    steps, out = np.ones((2, 1, 1, 1), np.int8), np.zeros((1, 2, 64), np.int8)
    assert _core.latent_codes(latent, borders, steps, 64, out) == 128
    for wrong in (
        lambda: _core.latent_codes(latent[:1], borders, steps, 64, out),
        lambda: _core.latent_codes(latent, borders[:1], steps, 64, out),
        lambda: _core.latent_codes(latent.astype(np.float64), borders, steps, 64, out),
        lambda: _core.latent_codes(latent, borders, steps, 64, out[..., ::2]),
        lambda: _core.latent_largest(latent, borders, -1, 64, out),
        lambda: _core.decode_trits(out, np.zeros((1, 2, 2), np.float32), 64, latent),
        lambda: _core.group_sums(latent, out, 64, np.zeros((1, 2, 2), np.float32)),
    ):
        with pytest.raises(_core.CoreError):
            wrong()
