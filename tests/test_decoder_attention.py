"""One token's attention in the core against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritpress import _core

BLOCK = 64


@given(
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 9),
    size=st.integers(1, 80),
    blocks=st.integers(1, 9),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_that_of_the_definition(kv_heads, group, size, blocks, data, seed):
    start = data.draw(st.integers(0, blocks * BLOCK - 1))
    stop = data.draw(st.integers(start + 1, blocks * BLOCK))
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((kv_heads, group, size), dtype=np.float32)
    keys = rng.standard_normal((blocks, kv_heads, size, BLOCK), dtype=np.float32)
    values = rng.standard_normal((blocks, kv_heads, BLOCK, size), dtype=np.float32)
    found = _core.attend(q, keys, values, start, stop, threads=2)
    all_keys = keys.transpose(1, 2, 0, 3).reshape(kv_heads, size, -1)[..., start:stop].astype(np.float64)
    all_values = values.transpose(1, 0, 2, 3).reshape(kv_heads, -1, size)[:, start:stop].astype(np.float64)
    scores = q @ all_keys
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ all_values
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.shape == q.shape
    np.testing.assert_array_equal(found, _core.attend(q, keys, values, start, stop, threads=1))
    keys, values = keys.astype(np.float16), values.astype(np.float16)
    of_halves = _core.attend(q, keys, values, start, stop, threads=2)
    wide = _core.attend(q, keys.astype(np.float32), values.astype(np.float32), start, stop, threads=2)
    np.testing.assert_array_equal(of_halves, wide)


def test_nan_is_not_hidden():
    q = np.ones((1, 1, 4), np.float32)
    keys, values = np.ones((1, 1, 4, BLOCK), np.float32), np.ones((1, 1, BLOCK, 4), np.float32)
    keys[0, 0, 2, 5] = np.nan
    assert np.isnan(_core.attend(q, keys, values, 0, 10)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"q": np.zeros((3, 1, 4), np.float32)},
        {"q": np.zeros((2, 4), np.float32)},
        {"keys": np.zeros((1, 2, 4, 32), np.float32)},
        {"values": np.zeros((2, 2, BLOCK, 4), np.float32)},
        {"start": 5, "stop": 5},
        {"stop": BLOCK + 1},
        {"start": -1},
        {"q": np.zeros((2, 1, 4), np.float64)},
        {"keys": np.zeros((1, 2, 4, BLOCK), np.float16)},
        {"values": np.zeros((1, 2, BLOCK, 4), np.float16)},
        {"keys": np.zeros((1, 2, 4, BLOCK), np.float64)},
    ],
)
def test_what_does_not_fit_is_refused(change):
    arguments = {
        "q": np.zeros((2, 1, 4), np.float32),
        "keys": np.zeros((1, 2, 4, BLOCK), np.float32),
        "values": np.zeros((1, 2, BLOCK, 4), np.float32),
        "start": 0,
        "stop": 3,
    }
    _core.attend(**arguments)
    with pytest.raises(_core.CoreError):
        _core.attend(**(arguments | change))
