"""ggml's product in `tritpress bench`: the bytes that it is given, and its result where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from tritpress import bench_ggml


def test_the_blocks_are_those_of_the_format() -> None:
    gguf = pytest.importorskip("gguf")
    trits = np.random.default_rng(0).integers(-1, 2, (5, 768), dtype=np.int8)
    trits[:, ::256] = 1  # the format's own writer takes the largest weight of a block as its scale
    blocks = bench_ggml.ternary_blocks(trits)
    expected = gguf.quants.quantize(trits.astype(np.float32), gguf.GGMLQuantizationType.TQ2_0)
    np.testing.assert_array_equal(blocks, expected)
    halves = gguf.quants.dequantize(bench_ggml.ternary_blocks(trits, 0.5), gguf.GGMLQuantizationType.TQ2_0)
    np.testing.assert_array_equal(halves, trits * np.float32(0.5))


def test_there_is_no_column_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with bench_ggml.products((16, 256), np.ones((1, 256), np.float32), 1, 1) as run:
        assert run is None


@pytest.mark.parametrize("threads", [1, 2])
def test_its_product_is_the_matrix_product(threads: int) -> None:
    pytest.importorskip("llama_cpp")
    rng = np.random.default_rng(1)
    trits = rng.integers(-1, 2, (48, 512), dtype=np.int8)
    x = rng.standard_normal((3, 512)).astype(np.float32)
    with bench_ggml.products(trits.shape, x, 2, threads, trits) as run:
        assert run is not None
        for i in range(3):
            np.testing.assert_allclose(run(i), x @ trits.T.astype(np.float32), atol=0.5)
    with bench_ggml.products((16, 300), x[:, :300].copy(), 1, threads) as run:
        assert run is None
