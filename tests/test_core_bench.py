"""The benches' rows, on shapes small enough for a test."""

from __future__ import annotations

import pytest
from tritpress import bench
from tritpress.errors import UsageError

KEYS = {
    "op", "rows", "cols", "n", "threads", "where", "isa", "format", "group_size", "us", "gb_s", "gop_s",
    "floor_us", "ratio_floor", "torch_us", "ratio_torch",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", [(64, 128)])
    monkeypatch.setattr(bench, "MATMUL_SHAPES", [(64, 128)])
    monkeypatch.setattr(bench, "TOKENS", [2])
    monkeypatch.setattr(bench, "MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(bench, "_torch_runners", lambda *arguments: {})


@pytest.mark.parametrize("name", ["matvec", "matmul"])
def test_rows_have_their_figures(name):
    found = bench.run(name, threads=1)
    assert found["machine"]["memory_gb_s_1t"] > 0 and found["machine"]["unpack_gop_s_1t"] > 0
    assert found["rows"]
    for row in found["rows"]:
        assert row.keys() >= KEYS and row["us"] > 0 and row["op"] == name
        assert row["ratio_floor"] == pytest.approx(row["us"] / row["floor_us"], rel=0.2)
        if name == "matvec":
            assert row["reading_us"] > 0 and row["ratio_reading"] > 0


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="bench must be one of"):
        bench.run("speed")
    with pytest.raises(UsageError, match="threads"):
        bench.run("matvec", threads=0)
