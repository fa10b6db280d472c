"""Rows of files, near duplicates across the parts, text that the model writes itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tritpress.errors import InputError, UsageError
from tritpress.text import SPLITS, Document, drop_near_duplicates, load_splits

WORDS = [f"word{i}" for i in range(400)]


def prose(seed: int, lines: int = 60) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choices(WORDS, k=8)) for _ in range(lines)) + "\n"


def names(splits) -> dict[str, set[str]]:
    return {part: {d.name for d in getattr(splits, part)} for part in SPLITS}


def test_a_field_of_jsonl_and_a_column_of_parquet_give_the_same_documents(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [prose(seed) for seed in range(120)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in texts), encoding="utf-8")
    table = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"body": texts, "n": [1] * len(texts)}), table, row_group_size=50)
    ours, theirs = load_splits([rows], "body"), load_splits([table], "body")
    for part in SPLITS:
        one, other = getattr(ours, part), getattr(theirs, part)
        assert sorted(d.text for d in one + other)
    assert {d.text for part in SPLITS for d in getattr(theirs, part)} == set(texts)
    assert {d.name for part in SPLITS for d in getattr(theirs, part)} == {
        f"rows.parquet#{i:08d}" for i in range(1, 121)
    }


def test_endings_in_capitals_are_endings(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet
    from tritpress.text.documents import read_documents

    rows = "".join(json.dumps({"text": prose(seed)}) + "\n" for seed in range(3))
    (tmp_path / "DATA.JSONL").write_text(rows, encoding="utf-8")
    (tmp_path / "README.MD").write_text(prose(3), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": [prose(4), prose(5)]}), tmp_path / "T.Parquet")
    found = {document.name for document in read_documents([tmp_path])}
    assert found == {
        "README.MD", *(f"DATA.JSONL#{i:08d}" for i in (1, 2, 3)), *(f"T.Parquet#{i:08d}" for i in (1, 2)),
    }  # fmt: skip
    assert len(read_documents([tmp_path / "DATA.JSONL"])) == 3
    assert len(read_documents([tmp_path / "T.Parquet"])) == 2


def test_bad_rows_are_named(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"body": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r'line 2 of .*rows.jsonl has no field "text".*its fields are body'):
        load_splits([rows])
    table = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), table)
    with pytest.raises(InputError, match=r'no column "text"; its columns are body, n'):
        load_splits([table])
    with pytest.raises(InputError, match=r'column "n" holds int64, not text'):
        load_splits([table], "n")
    table.write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        load_splits([table])


def test_a_near_duplicate_in_another_part_is_left_out() -> None:
    original = prose(1)
    lines = original.splitlines()
    changed = "\n".join(f"  {line.upper()}  " for line in lines[:50]) + "\nsomething else altogether here\n"
    parts = {
        "held_out": [Document("a", original)],
        "validation": [Document("b", prose(2))],
        "calibration": [Document("c", prose(3)), Document("d", changed)],
        "fine_tuning": [
            Document("e", "\n".join(lines[:20] + prose(5, 40).splitlines())),
            Document("f", "short"),
        ],
    }
    kept, dropped = drop_near_duplicates(parts)
    assert dropped == ["d"]  # white space and case hide nothing; a third of the lines is no near duplicate
    assert [d.name for part in SPLITS for d in kept[part]] == ["c", "e", "f", "b", "a"]


def test_near_duplicates_of_short_lines_are_found_and_unlike_ones_kept() -> None:
    numbers = [f"row {i},{i * 7 % 100}" for i in range(600)]
    verse = [chr(0x4E00 + i * 37 % 5000) + chr(0x4E00 + i * 91 % 5000) for i in range(600)]
    other = [chr(0x4E00 + i * 53 % 5000) + chr(0x4E00 + i * 17 % 5000) for i in range(600)]
    for lines, left_out in ((numbers, ["near"]), (verse, ["near"]), (other, [])):
        parts: dict[str, list[Document]] = {part: [] for part in SPLITS}
        first = verse if lines is other else lines
        parts["held_out"] = [Document("first", "\n".join(first))]
        near = [*lines[:200], "one line more", *lines[200:]]
        parts["fine_tuning"] = [Document("near", "\n".join(near))]
        assert drop_near_duplicates(parts)[1] == left_out


def test_within_one_part_near_duplicates_stay() -> None:
    parts = {part: [] for part in SPLITS}
    parts["fine_tuning"] = [Document("a", prose(1)), Document("b", prose(1) + "one more line of text\n")]
    assert drop_near_duplicates(parts) == (parts, [])


def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    for seed in range(100):
        (tmp_path / f"{seed:03d}.txt").write_text(prose(seed), encoding="utf-8")
        (tmp_path / f"{seed:03d}-again.txt").write_text(prose(seed) + "a line of its own\n", encoding="utf-8")
    splits = load_splits([tmp_path])
    found = names(splits)
    everything = set().union(*found.values())
    assert splits.left_out == 200 - len(everything) > 0
    for one in SPLITS:
        for other in SPLITS:
            if one != other:
                pairs = {name[:3] for name in found[one]} & {name[:3] for name in found[other]}
                assert not pairs, (one, other, pairs)
    assert len(found["held_out"]) == sum(name in found["held_out"] for name in everything)


def test_text_written_by_the_model_itself(tiny_llama_dir: Path, tmp_path: Path) -> None:
    import tritpress as tp
    from tritpress.runs.launch import check_request

    config = tp.CompressionConfig(
        text=["self"], planes=2, calibration_tokens=512, evaluation_tokens=1024, window=32, tokens=512
    )
    check_request(tiny_llama_dir, tmp_path / "out", config)
    report = tp.compress(tiny_llama_dir, tmp_path / "out", config, runs_dir=tmp_path / "runs")
    assert report["text"]["source"] == "written by the model itself (temperature 1, seed 0)"
    assert report["text"]["held_out_tokens"] > 500
    files = sorted((tmp_path / "runs").glob("*/work/self-text-*.jsonl"))
    rows = [
        json.loads(line)
        for file in files
        for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    ]
    assert {row["part"] for row in rows} == set(SPLITS)
    assert len({row["text"] for row in rows}) > 0.9 * len(rows)
    with pytest.raises(UsageError, match="stands alone"):
        tp.compress(
            tiny_llama_dir,
            tmp_path / "other",
            tp.CompressionConfig(text=["self", str(tmp_path)]),
            runs_dir=tmp_path / "runs",
        )
