"""The benches' rows, on shapes small enough for a test."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tritpress
from rich.console import Console
from tritpress import _core, bench, bench_generate, bench_pack, bench_rows, bench_start
from tritpress.console.tables import print_bench
from tritpress.errors import UsageError

KEYS = {
    "op", "rows", "cols", "n", "threads", "where", "isa", "format", "group_size", "us", "gb_s", "gop_s",
    "floor_us", "ratio_floor", "torch_us", "ratio_torch",
}  # fmt: skip

NULL = {
    "matvec": set(),
    "matmul": set(),
    "start": {"where", "gb_s", "gop_s"},
    "decode": {"rows", "cols", "where"},
    "generate": {"rows", "cols", "where", "gb_s", "gop_s", "floor_us", "ratio_floor"},
    "pack": {"n", "where", "gop_s", "group_size"},
    "unpack": {"n", "where", "gop_s", "group_size"},
} | {op: {"n", "where", "gop_s"} for op in ("stream", "ternarize", "dequantize", "repack")}
"""What has no meaning for an op, beside torch's figures."""

TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench_rows, "SECONDS", 0.01)
    monkeypatch.setattr(bench, "SHAPES", [(64, 256), (128, 256)])
    monkeypatch.setattr(bench, "TWO_PLANES", [(64, 256)])
    monkeypatch.setattr(bench, "MATMUL_SHAPES", [(64, 256), (128, 256)])
    monkeypatch.setattr(bench, "TOKENS", [2])
    monkeypatch.setattr(bench, "MORE_TOKENS", [3])
    monkeypatch.setattr(bench, "MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(bench, "REFERENCE_TOKENS", 2)
    monkeypatch.setattr(bench, "REFERENCE_TEXTS", 1)
    monkeypatch.setattr(bench, "_torch_runners", lambda *arguments: {})
    monkeypatch.setattr(bench_pack, "SHAPE", (96, 256))
    monkeypatch.setattr(bench_start, "SHAPE", (96, 250))
    monkeypatch.setattr(bench_start, "REPEATS", 1)
    monkeypatch.setattr(bench_generate, "MODELS", {"tiny": TINY})
    monkeypatch.setattr(bench_generate, "MEASURED", ("tiny",))
    monkeypatch.setattr(bench_generate, "CONTEXTS", (4,))
    monkeypatch.setattr(bench_generate, "PROMPT", 8)
    monkeypatch.setattr("tritpress.decoder.weights.DENSE_HEAD_WEIGHTS", 0)


def check(row: dict[str, Any]) -> None:
    """All keys in their order, a value wherever one has a meaning, and ratios of what stands beside them."""
    assert tuple(row)[: len(bench_rows.KEYS)] == bench_rows.KEYS and set(bench_rows.KEYS) == KEYS
    empty = {key for key in KEYS if row[key] is None} - {"torch_us", "ratio_torch"}
    assert empty == NULL[row["op"]], row
    few = _core.isa() == "amx" and row["n"] is not None and row["n"] < (6 if row["format"] == "1.6bit" else 5)
    assert row["us"] > 0 and row["format"] in ("2bit", "1.6bit")
    assert row["isa"] == ("avx512gfni" if few else _core.isa())
    if row["floor_us"] is not None:
        assert row["floor_us"] > 0 and row["ratio_floor"] == pytest.approx(
            row["us"] / row["floor_us"], rel=0.2
        )
    assert (row["torch_us"] is None) == (row["ratio_torch"] is None)
    if row["torch_us"] is not None:
        assert row["ratio_torch"] == pytest.approx(row["torch_us"] / row["us"], rel=0.05, abs=0.01)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a bench by the command's own function, checked, and shown as the command shows them."""
    found = bench.run(name, threads=1)
    assert found["machine"]["memory_gb_s_1t"] > 0 and found["machine"]["unpack_gop_s_1t"] > 0
    assert json.loads(json.dumps(found)) == found
    console = Console(file=io.StringIO(), width=300)
    print_bench(console, name, found)
    text = console.file.getvalue()
    for row in found["rows"]:
        check(row)
        assert row["threads"] == 1 and row["op"] in text
    return found["rows"]


def test_one_token_in_every_format_and_with_two_planes():
    start, *rows = rows_of("matvec")
    kinds = Counter((row["rows"], row["group_size"], row["format"], row["planes"]) for row in rows)
    one = [(64, "2bit", 1), (0, "2bit", 1), (64, "1.6bit", 1), (0, "1.6bit", 1)]
    expected = [(64, *kind) for kind in [*one, (64, "2bit", 2)]] + [(128, *kind) for kind in one]
    assert kinds == dict.fromkeys(expected, 2) and {row["where"] for row in rows} == {"memory", "cache"}
    for row in rows:
        assert row["reading_us"] > 0 and row["ratio_reading"] > 0
        operations = 2 * row["rows"] * row["cols"] * row["planes"]
        assert row["gop_s"] == pytest.approx(operations / row["us"] / 1e3, abs=0.1)
    assert start["op"] == "start" and (start["rows"], start["cols"]) == (96, 250)
    assert 0 < start["import_us"] < start["us"]
    assert start["seconds"] == pytest.approx(start["us"] / 1e6, abs=1e-4)


def test_many_tokens_in_every_format():
    rows = rows_of("matmul")
    kinds = {(row["rows"], row["group_size"], row["format"], row["n"]) for row in rows}
    formats = [(64, "2bit"), (0, "2bit"), (64, "1.6bit")]
    assert kinds == {(64, *format, n) for format in formats for n in (2, 3)} | {
        (128, *format, 2) for format in formats
    }
    assert all(row["ratio_matvecs"] > 0 for row in rows)


@pytest.mark.parametrize("threads", [1, 2])
def test_packing_in_turns_with_copies(threads):
    rows = rows_of("pack") if threads == 1 else bench_pack.bench_pack(threads)
    streams = [(row["fit"], row["max_sparsity"], row["group_size"]) for row in rows if row["op"] == "stream"]
    assert {("absmean", None, 0), ("exact", None, 0), ("exact", 0.44, 64)} <= set(streams)
    repacks = {(row["group_size"], row["format"]) for row in rows if row["op"] == "repack"}
    assert repacks == {(64, "2bit"), (0, "2bit"), (64, "1.6bit")}
    for row in rows:
        check(row)
        assert row["threads"] == threads and (row["rows"], row["cols"]) == (96, 256)
        assert row["gb_s_thread"] == pytest.approx(row["gb_s"] / threads, abs=1e-3)


def test_a_copied_file_is_as_long_as_what_the_op_writes(tmp_path):
    (tmp_path / "from").write_bytes(b"x" * (3 * bench_pack.BAND + 77))
    with (
        bench_pack.ThreadPoolExecutor(2) as workers,
        open(tmp_path / "from", "rb") as source,
        open(tmp_path / "to", "wb") as target,
    ):
        files, sizes = (source.fileno(), target.fileno()), (3 * bench_pack.BAND + 77, 12_345)
        bench_pack._copy_of_files(files, sizes, 2, workers)(0)
    assert (tmp_path / "to").read_bytes() == b"x" * 12_345


def test_generated_tokens_count_what_they_read():
    rows = rows_of("generate")
    decoded = [row for row in rows if row["op"] == "decode"]
    assert [row["format"] for row in decoded] == ["2bit", "1.6bit"]
    assert rows[: len(rows) - 2] == [row for row in rows if row["op"] == "generate"]
    block = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256
    for row in decoded:
        operations = 2 * (2 * block + 2 * 6 * 500 * 128)  # the int8 head: six planes, twice
        assert row["gop_s"] * row["us"] * 1e3 == pytest.approx(operations, rel=0.05)
        assert row["gb_s"] * row["us"] * 1e3 > 2 * block / 5


def test_a_first_product_imports_neither_torch_nor_transformers():
    code = bench_start.PRODUCT + "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, "48", "130", "1"],
        env=os.environ | {"PYTHONPATH": str(Path(tritpress.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="bench must be one of"):
        bench.run("speed")
    with pytest.raises(UsageError, match="threads"):
        bench.run("matvec", threads=0)
