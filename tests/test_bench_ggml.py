"""ggml's product in `tritpress bench`: the bytes that it is given, and its result where it is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from tritpress import bench_ggml


def test_the_blocks_are_those_of_the_format() -> None:
    """TQ2_0 by its definition: weight 128 h + 32 q + i is bits 2 q of byte 32 h + i, less 1, scaled."""
    trits = np.random.default_rng(0).integers(-1, 2, (5, 768), dtype=np.int8)
    blocks = bench_ggml.ternary_blocks(trits, 0.5)
    assert blocks.shape == (5, 3 * 66) and blocks.dtype == np.uint8
    found = np.empty_like(trits, dtype=np.float32)
    for row, bytes_ in enumerate(blocks):
        for number, block in enumerate(bytes_.reshape(3, 66)):
            scale = block[64:].view(np.float16)[0]
            for at in range(256):
                half, quarter, i = at // 128, at % 128 // 32, at % 32
                code = block[32 * half + i] >> (2 * quarter) & 3
                found[row, 256 * number + at] = (float(code) - 1) * scale
    np.testing.assert_array_equal(found, trits * np.float32(0.5))


def test_there_is_no_column_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with bench_ggml.products((16, 256), np.ones((1, 256), np.float32), 1, 1) as run:
        assert run is None


@pytest.mark.parametrize("threads", [1, 2])
def test_its_product_is_the_matrix_product(threads: int) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    rng = np.random.default_rng(1)
    trits = rng.integers(-1, 2, (48, 512), dtype=np.int8)
    x = rng.integers(-127, 128, (3, 512)).astype(np.float32)
    x[:, ::256] = 127  # so that its own int8 activations are these whole numbers
    with bench_ggml.products(trits.shape, x, 2, threads, trits) as run:
        assert run is not None
        for i in range(3):
            np.testing.assert_allclose(run(i), x @ trits.T.astype(np.float32), rtol=1e-5, atol=1e-3)
    with bench_ggml.products((16, 300), x[:, :300].copy(), 1, threads) as run:
        assert run is None
