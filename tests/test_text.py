"""Splits that never mix, windows that anyone can redo."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tritpress.errors import InputError
from tritpress.formats.huggingface import load_tokenizer
from tritpress.reference import reference_model_path
from tritpress.text import (
    SPLITS,
    Document,
    Splits,
    TrainingWindows,
    builtin_splits,
    check_known,
    load_splits,
    split_of,
    token_windows,
)
from tritpress.text.documents import read_documents
from tritpress.text.duplicates import drop_near_duplicates


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(reference_model_path())


class Letters:
    """A tokenizer of one token a character that counts what it is given."""

    eos_token_id: int | None = 0

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, texts: list[str], **_) -> dict:
        self.seen += sum(map(len, texts))
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def _all(splits: Splits) -> list[Document]:
    return [document for split in SPLITS for document in getattr(splits, split)]


def test_what_is_no_token_of_the_model_is_refused_by_name() -> None:
    check_known([], 3, "nothing")
    check_known([0, 7], None, "what is not looked at")
    check_known(np.array([0, 2]), 3, "all")
    with pytest.raises(InputError, match=r"gives token 3 for a task's text, the model knows 3 \(0 to 2\)"):
        check_known([0, 3, 1], 3, "a task's text")


def test_the_builtin_split_follows_the_rule() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    expected: dict[str, set[str]] = {split: set() for split in SPLITS}
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        folder = name.rpartition("/")[0]
        if any(word in folder for word in ("test", "lib2to3", "site-packages")) or not path.exists():
            continue
        if len(path.read_text(encoding="utf-8", errors="replace")) > 200_000:
            continue
        h = int(hashlib.md5(name.encode()).hexdigest(), 16) % 25
        expected[{0: "held_out", 1: "validation", 2: "calibration"}.get(h, "fine_tuning")].add(name)
    splits = builtin_splits()
    assert [d.name for d in splits.held_out] == sorted(expected["held_out"]) != []
    missing = 0
    for split in SPLITS:
        names = [d.name for d in getattr(splits, split)]
        assert names == sorted(names) and set(names) <= expected[split]
        missing += len(expected[split]) - len(names)
    assert missing == splits.left_out > 0
    assert "standard library" in splits.source
    assert not any("unittest/" in d.name or "lib2to3/" in d.name for d in _all(splits))


def test_nothing_held_out_of_the_builtin_text_is_like_what_was_seen() -> None:
    splits = builtin_splits()
    names = {d.name for d in splits.fine_tuning}
    assert "encodings/cp858.py" in {d.name for d in splits.held_out}
    assert "encodings/cp850.py" not in names and "json/decoder.py" in {d.name for d in _all(splits)}
    parts = {split: list(getattr(splits, split)) for split in SPLITS}
    assert drop_near_duplicates(parts) == (parts, [])


def test_the_hash_can_be_redone() -> None:
    splits = builtin_splits()
    text = b"".join(d.name.encode() + b"\0" + d.text.encode() + b"\0" for d in splits.held_out)
    assert splits.sha256("held_out") == hashlib.sha256(text).hexdigest()
    assert len({splits.sha256(split) for split in SPLITS}) == 4


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def _many(count: int) -> dict[str, str]:
    return {f"d/{i:04d}.txt": f"document {i}\n" * 150 for i in range(count)}


def test_many_documents_are_split_by_their_path(tmp_path: Path) -> None:
    splits = load_splits([_write(tmp_path, _many(300))])
    assert len(_all(splits)) == 300
    for split in SPLITS:
        assert getattr(splits, split) and all(split_of(d.name) == split for d in getattr(splits, split))
    again = load_splits([str(tmp_path)])
    assert [splits.sha256(s) for s in SPLITS] == [again.sha256(s) for s in SPLITS]


def test_many_small_documents_fill_every_part(tmp_path: Path) -> None:
    splits = load_splits([_write(tmp_path, {f"{i}.txt": f"note {i}\n" * 20 for i in range(100)})])
    sizes = {split: len(getattr(splits, split)) for split in SPLITS}
    assert sizes == {"held_out": 13, "validation": 13, "calibration": 13, "fine_tuning": 61}


def test_where_a_folder_lies_changes_nothing(tmp_path: Path) -> None:
    first, second = (load_splits([_write(tmp_path / place, _many(120))]) for place in ("a", "b/c"))
    assert [first.sha256(s) for s in SPLITS] == [second.sha256(s) for s in SPLITS]


@pytest.mark.parametrize("documents", [1, 3, 30])
def test_few_documents_are_cut_at_line_ends(tmp_path: Path, documents: int) -> None:
    files = {
        f"{n}.md": "".join(f"line {i} of {n}, some words to fill it\n" for i in range(3000 // documents))
        for n in range(documents)
    }
    splits = load_splits([_write(tmp_path, files)])
    sections = _all(splits)
    assert all(getattr(splits, split) for split in SPLITS)
    assert all(len(d.text) >= 2000 and d.text.endswith("\n") for d in sections)
    text = "".join(d.text for d in sorted(sections, key=lambda d: (d.name.partition("#")[0], d.name)))
    assert sorted(text) == sorted("".join(files.values()))  # nothing lost
    assert max(len(d.text) for d in sections) < 4100


def test_a_text_of_one_long_line_is_cut_too(tmp_path: Path) -> None:
    _write(tmp_path, {"a.txt": " ".join(str(i) for i in range(20_000))})
    splits = load_splits([tmp_path])
    assert all(getattr(splits, split) for split in SPLITS)


def test_identical_documents_are_never_in_two_splits(tmp_path: Path) -> None:
    files = _many(200) | {f"copy/{i:04d}.txt": f"document {i}\n" * 150 + "\n" for i in range(200)}
    splits = load_splits([_write(tmp_path, files)])
    assert len(_all(splits)) == 200
    assert len({d.text.strip() for d in _all(splits)}) == 200
    repeated = _write(tmp_path / "r", {"a.txt": "the very same line\n" * 50_000})
    with pytest.raises(InputError, match="different text"):
        load_splits([repeated])


def test_jsonl_lines_are_documents(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {i} " * 4, "id": i}) for i in range(200)]
    splits = load_splits([_write(tmp_path, {"a.jsonl": "\n".join(lines) + "\n\n"}) / "a.jsonl"])
    assert len(_all(splits)) == 200


def test_the_same_relative_path_in_two_folders(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", {f"{i}.txt": f"one {i}" for i in range(100)})
    second = _write(tmp_path / "b", {f"{i}.txt": f"two {i}" for i in range(100)})
    assert len(_all(load_splits([first, second]))) == 200
    assert len(_all(load_splits([first, first, first / "1.txt"]))) == 100  # a file given twice is read once


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    _write(tmp_path, _many(100) | {".git/x.txt": "hidden", ".y.txt": "hidden", "z.csv": "other"})
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    assert len(_all(load_splits([tmp_path]))) == 100


# ------------------------------------------------------------------------------------------------ windows


def test_windows_as_documented(tokenizer) -> None:
    docs = [Document("b", "def f():\n    return 1\n"), Document("a", "import os\n")]
    tokens: list[int] = []
    for document in sorted(docs, key=lambda d: d.name):
        tokens += ([tokenizer.eos_token_id] if tokens else []) + tokenizer(
            document.text, add_special_tokens=False
        ).input_ids
    windows = token_windows(tokenizer, docs, window=4)
    assert windows.dtype == np.int64 and windows.shape == (len(tokens) // 4, 4)
    np.testing.assert_array_equal(windows.reshape(-1), tokens[: windows.size])


def test_a_limit_takes_windows_evenly() -> None:
    docs = [Document("a", "".join(chr(33 + i) for i in range(90)))]
    every = token_windows(Letters(), docs, window=3)
    some = token_windows(Letters(), docs, window=3, limit=7, seed=5)
    np.testing.assert_array_equal(some, every[[i * 30 // 7 for i in range(7)]])
    np.testing.assert_array_equal(token_windows(Letters(), docs, window=3, limit=30), every)


def test_a_tokenizer_without_eos_joins_directly() -> None:
    letters = Letters()
    letters.eos_token_id = None
    windows = token_windows(letters, [Document("a", "ab"), Document("b", "cd")], window=4)
    assert windows.tolist() == [[97, 98, 99, 100]]


@pytest.mark.parametrize("windows", [token_windows, lambda *a, **k: TrainingWindows(*a, **k).take(0, 1)])
def test_tokens_that_the_model_does_not_know(windows) -> None:
    letters = Letters()
    letters.eos_token_id = 200  # added to the tokenizer, not to the model: none is put between documents
    docs = [Document("a", "ab"), Document("b", "cd")]
    found = windows(letters, docs, window=4, vocabulary=200)
    assert sorted(found[0].tolist()) == sorted(map(ord, "abcd"))
    with pytest.raises(InputError, match=r"gives token 100 for the text b, the model knows 100 \(0 to 99\)"):
        windows(letters, docs, window=4, vocabulary=100)


def test_too_little_text_for_a_window() -> None:
    with pytest.raises(InputError, match="do not fill one window of 16"):
        token_windows(Letters(), [Document("a", "short")], window=16)
    with pytest.raises(InputError, match=r"do not fill one window of 16|does not fill one window of 16"):
        TrainingWindows(Letters(), [Document("a", "short")], window=16).take(0, 1)


def _stream(docs: int = 40, **more) -> tuple[Letters, TrainingWindows]:
    letters = Letters()
    texts = [Document(f"{i:03d}", chr(40 + i) * (50 + i)) for i in range(docs)]
    return letters, TrainingWindows(letters, texts, window=10, **more)


def test_training_windows_depend_on_their_number_alone() -> None:
    _, one = _stream(pool_characters=300)
    _, other = _stream(pool_characters=300)
    stretch = one.take(0, 700)  # beyond three epochs
    np.testing.assert_array_equal(other.take(650, 50), stretch[650:])
    np.testing.assert_array_equal(other.take(3, 5), stretch[3:8])
    np.testing.assert_array_equal(np.concatenate([one.take(i, 1) for i in range(120, 140)]), stretch[120:140])


def test_training_windows_tokenize_only_what_is_used() -> None:
    letters, stream = _stream(docs=60, pool_characters=300)
    stream.take(0, 5)
    assert letters.seen < 500
    total = sum(50 + i for i in range(60))
    assert total > 4000


def test_an_epoch_holds_every_document_once() -> None:
    _, stream = _stream(pool_characters=300)
    count = stream.epoch_windows()
    seen = np.bincount(stream.take(0, count).reshape(-1), minlength=100)
    total = sum(50 + i for i in range(40))
    assert total * 0.85 < seen[40:80].sum() <= total
    assert (seen[40:80] <= [50 + i for i in range(40)]).all()


def test_training_windows_tell_their_epoch() -> None:
    _, stream = _stream(pool_characters=300)
    count = stream.epoch_windows()
    assert stream.epoch_at(0) == 0 and stream.epoch_at(count) == 1
    told = [stream.epoch_at(i) for i in range(3 * count)]
    assert told == sorted(told) and 2 < told[-1] < 3.1


def test_training_windows_follow_the_seed() -> None:
    first, second = _stream(seed=1)[1].take(0, 50), _stream(seed=2)[1].take(0, 50)
    assert (first != second).any() and (first == _stream(seed=1)[1].take(0, 50)).all()


# ------------------------------------------------------------------------------------------------ bad input


def test_text_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.* does not exist"):
        load_splits([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no text was given"):
        load_splits([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"there is no text in .*empty"):
        load_splits([tmp_path / "empty"])
    (tmp_path / "binary.txt").write_bytes(b"ELF\0\1")
    with pytest.raises(InputError, match=r"binary\.txt is a binary file"):
        load_splits([tmp_path])
    (tmp_path / "binary.txt").unlink()
    (tmp_path / "latin.md").write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.md is not UTF-8 text \(byte 3\)"):
        load_splits([tmp_path / "latin.md"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 of .*a.jsonl is not JSON"),
        ('{"txt": 1}', 'no field "text"'),
        ("[1]", 'no field "text"'),
        (r'{"text": "half a \ud83d pair"}', "line 2 of .*a.jsonl: .*half of a surrogate pair"),
        (r'{"text": "\ude00"}', "line 2 of .*a.jsonl: .*half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line)
    with pytest.raises(InputError, match=message):
        load_splits([tmp_path])


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(r'{"text": "\ud83d\ude00"}' + "\n")
    assert read_documents([tmp_path])[0].text == "\U0001f600"


def test_too_little_text_says_how_much_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a few words\n")
    with pytest.raises(InputError, match=r"has 12 characters.*at least 8000 characters"):
        load_splits([tmp_path])
