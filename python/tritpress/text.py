"""Text for a run, split by document into four parts that never mix.

calibration (statistics), fine_tuning, validation (early stopping, planner) and held_out (the two
evaluations). The part of a document follows from its name alone: h = int(md5(name), 16) % 25 gives 0
held_out, 1 validation, 2 calibration, the rest fine_tuning. No torch here; tokenizers are anything callable
like those of transformers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.errors import InputError

SPLITS = ("calibration", "fine_tuning", "validation", "held_out")
SUFFIXES = (".txt", ".md", ".py", ".jsonl")
BUILTIN_LIMIT = 200_000
"""Characters above which a file of the standard library is left out."""
SECTION = 2000
"""Least characters of a section when documents are few."""
FEW_DOCUMENTS = 50
LEAST_PART = 4000
"""Characters below which a part is too small for the rule that goes by the hash alone."""
_FEW_SECTIONS = 200
_LONG_LINE = 8000


@dataclass(frozen=True)
class Document:
    """A piece of text that is never divided between splits."""

    name: str
    text: str


@dataclass(frozen=True)
class Splits:
    """The four parts, each sorted by document name; `source` says in words where the text is from."""

    source: str
    calibration: list[Document]
    fine_tuning: list[Document]
    validation: list[Document]
    held_out: list[Document]

    def sha256(self, split: str) -> str:
        """Hash of one part: for each document in order its name, a zero byte, its text, a zero byte
        (UTF-8).
        """
        digest = hashlib.sha256()
        for document in getattr(self, split):
            digest.update(document.name.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(document.text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def split_of(name: str) -> str:
    """The part that a document of that name (forward slashes) belongs to."""
    return _part(_hash(name) % 25)


def _hash(name: str) -> int:
    return int(hashlib.md5(name.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest(), 16)


def _part(remainder: int) -> str:
    return {0: "held_out", 1: "validation", 2: "calibration"}.get(remainder, "fine_tuning")


# ------------------------------------------------------------------------------------------------ built-in


def builtin_splits() -> Splits:
    """The running interpreter's own standard library, `*.py`.

    Left out: every folder whose path below the library contains `test`, `lib2to3` or `site-packages`, and
    files above 200,000 characters.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for folder, folders, files in os.walk(root):
        below = Path(folder).relative_to(root).as_posix()
        if below != "." and any(word in below for word in ("test", "lib2to3", "site-packages")):
            folders.clear()  # every path further down contains the same word
            continue
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                text = _read_library_file(path)
                if text is not None and len(text) <= BUILTIN_LIMIT:
                    documents.append(Document(path.relative_to(root).as_posix(), text))
    if not documents:
        raise InputError(
            f"{root} has no Python sources, so the built-in text is missing; give some with --text"
        )
    parts: dict[str, list[Document]] = {part: [] for part in SPLITS}
    for document in sorted(documents, key=lambda d: d.name):
        parts[split_of(document.name)].append(document)
    version = sysconfig.get_python_version()
    return Splits(source=f"standard library of Python {version}", **parts)


def _read_library_file(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a dangling link, as distributions leave some
        return None


# ------------------------------------------------------------------------------------------------ the user's


def load_splits(paths: Sequence[str | Path]) -> Splits:
    """Split the user's files and folders (`.txt`, `.md`, `.py`, `.jsonl` with a field "text").

    A document is a file or a line of a `.jsonl`; its name is the path relative to the folder given. Empty
    documents are passed over and of identical ones the first by name is kept, so that none is in two parts.
    With fewer than 50 documents, or a part below 4000 characters, documents are cut at line ends into
    sections of at least 2000 characters, which then are the documents; with fewer than 200 of those, or a
    part that is still too small, the parts go by the rank of the hash instead of its remainder (rank % 8: 0
    held_out, 1 validation, 2 calibration), so that none is empty.

    Raises `InputError` for a missing path, a file that is not UTF-8 text, a bad line, and too little text.
    """
    if not paths:
        raise InputError("no text was given")
    documents = _unique(_read_all(paths))
    source = ", ".join(str(path) for path in paths)
    if not documents:
        raise InputError(f"there is no text in {source}: expected {', '.join(SUFFIXES)} files")
    if len(documents) >= FEW_DOCUMENTS:
        parts = _by_remainder(documents)
        if _is_enough(parts):
            return Splits(source, **parts)
    sections = _unique(section for document in documents for section in _sections(document))
    parts = _by_remainder(sections) if len(sections) >= _FEW_SECTIONS else {}
    if not parts or not _is_enough(parts):
        parts = _by_rank(sections)
    if not all(parts.values()):
        total = sum(len(document.text) for document in documents)
        raise InputError(
            f"the text in {source} has {total} characters, which is too little to keep calibration, "
            "fine-tuning, "
            f"validation and held-out text apart: give at least {4 * SECTION} characters of different text "
            f"({16 * SECTION} or more are better)"
        )
    return Splits(source, **parts)


def _unique(documents: Iterable[Document]) -> list[Document]:
    seen: set[bytes] = set()
    kept = []
    for document in sorted(documents, key=lambda d: d.name):
        digest = hashlib.sha256(document.text.strip().encode("utf-8", "surrogatepass")).digest()
        if document.text.strip() and digest not in seen:
            seen.add(digest)
            kept.append(document)
    return kept


def _is_enough(parts: dict[str, list[Document]]) -> bool:
    """Whether every part has text enough to be measured or trained with."""
    return all(sum(len(document.text) for document in part) >= LEAST_PART for part in parts.values())


def _by_remainder(documents: list[Document]) -> dict[str, list[Document]]:
    parts: dict[str, list[Document]] = {part: [] for part in SPLITS}
    for document in documents:
        parts[split_of(document.name)].append(document)
    return parts


def _by_rank(documents: list[Document]) -> dict[str, list[Document]]:
    parts: dict[str, list[Document]] = {part: [] for part in SPLITS}
    for rank, document in enumerate(sorted(documents, key=lambda d: (_hash(d.name), d.name))):
        parts[_part(rank % 8)].append(document)
    return {part: sorted(found, key=lambda d: d.name) for part, found in parts.items()}


def _sections(document: Document) -> list[Document]:
    """Cut after the first line end past 2000 characters; a line beyond 8000 is cut at a space."""
    text, start, cuts = document.text, 0, [0]
    space = re.compile(r"\s")
    while len(text) - start >= 2 * SECTION:
        line = text.find("\n", start + SECTION)
        end = line + 1 if line >= 0 else len(text)
        if end - start > _LONG_LINE:
            blank = space.search(text, start + _LONG_LINE)
            end = min(end, blank.end() if blank else len(text))
        if len(text) - end < SECTION:
            break  # the rest would be too short: it stays with this section
        cuts.append(end)
        start = end
    cuts.append(len(text))
    pieces = [text[a:b] for a, b in itertools.pairwise(cuts) if b > a]
    return [Document(f"{document.name}#{i:05d}", piece) for i, piece in enumerate(pieces)]


def _read_all(paths: Sequence[str | Path]) -> list[Document]:
    documents: dict[str, Document] = {}
    read: set[Path] = set()
    for given in paths:
        root = Path(given)
        if not root.exists():
            raise InputError(f"the text {root} does not exist")
        files = _files_below(root) if root.is_dir() else [root]
        for path in files:
            real = path.resolve()
            if real in read:
                continue
            read.add(real)
            name = path.relative_to(root).as_posix() if root.is_dir() else path.name
            for document in _read_file(path, name):
                unique, n = document.name, 1
                while unique in documents:  # the same relative path below two given folders
                    n += 1
                    unique = f"{document.name}@{n}"
                documents[unique] = Document(unique, document.text)
    return list(documents.values())


def _files_below(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, n) for n in files if n.endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _read_file(path: Path, name: str) -> list[Document]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the text {path}: {error.strerror}") from None
    if b"\0" in raw:
        raise InputError(f"{path} is a binary file, not text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix != ".jsonl":
        return [Document(name, text)]
    documents = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise InputError(f"line {number} of {path} is not JSON") from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise InputError(f'line {number} of {path} has no field "text" with a string')
        documents.append(Document(f"{name}#{number:08d}", value["text"]))
    return documents


# ------------------------------------------------------------------------------------------------ tokens


def tokenize(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Token numbers of each text, int64, without special tokens."""
    if not texts:
        return []
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(one, dtype=np.int64) for one in ids]


def _join(tokenizer: Any, documents: Sequence[Document]) -> np.ndarray:
    """The documents' tokens in the order given, with the tokenizer's eos (if any) between two documents."""
    eos = getattr(tokenizer, "eos_token_id", None)
    pieces: list[np.ndarray] = []
    for tokens in tokenize(tokenizer, [document.text for document in documents]):
        if pieces and eos is not None:
            pieces.append(np.array([eos], dtype=np.int64))
        pieces.append(tokens)
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def token_windows(
    tokenizer: Any, docs: Sequence[Document], window: int = 256, limit: int | None = None, seed: int = 0
) -> np.ndarray:
    """int64 [n, window]: the documents as windows of `window` tokens.

    To redo it: sort the documents by name, tokenize each without special tokens, put the tokenizer's eos
    (if it has one) between two, cut into consecutive windows and drop the remainder, which gives m windows.
    With `limit` below m, window floor(i * m / limit) is taken for i = 0 .. limit - 1. Nothing is drawn by
    chance (`seed` is accepted for the common signature and changes nothing).

    Raises `InputError` when the text does not fill one window. Tokenizes every document: for fine-tuning
    text use `TrainingWindows`.
    """
    tokens = _join(tokenizer, sorted(docs, key=lambda d: d.name))
    count = len(tokens) // window
    if count == 0:
        raise InputError(
            f"the text has {len(tokens)} tokens, which do not fill one window of {window}; give more"
        )
    windows = tokens[: count * window].reshape(count, window)
    if limit is not None and limit < count:
        windows = windows[np.arange(limit, dtype=np.int64) * count // limit]
    return np.ascontiguousarray(windows)


class TrainingWindows:
    """An endless, deterministic sequence of training windows that tokenizes only what is used.

    Window i depends on the documents, the tokenizer, `window` and `seed` alone, so a resumed run asks for
    the same numbers and gets the same tokens. In each epoch the documents are shuffled and taken in pools
    of about `pool_characters`; a pool is tokenized, joined with eos, cut into windows (remainder dropped)
    and its windows are shuffled.
    """

    def __init__(
        self, tokenizer: Any, docs: Sequence[Document], window: int = 256, seed: int = 0,
        pool_characters: int = 1_000_000,
    ) -> None:  # fmt: skip
        self._tokenizer = tokenizer
        self._docs = sorted(docs, key=lambda d: d.name)
        self.window, self.seed, self._pool_characters = window, seed, pool_characters
        self._starts = [0]  # windows before pool k
        self._next = (0, 0)  # (epoch, position in the epoch's order) of the pool after the last known one
        self._pools: list[tuple[int, int, int]] = []  # (epoch, first document, last document + 1)
        self._cached: tuple[int, np.ndarray] | None = None
        self._order: tuple[int, np.ndarray] | None = None
        self._empty_epoch = True

    def take(self, start: int, count: int) -> np.ndarray:
        """int64 [count, window]: windows start, start + 1, .. of the sequence."""
        out = np.empty((count, self.window), dtype=np.int64)
        done = 0
        pool = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < count:
            while pool >= len(self._pools):
                self._add_pool()
            first, after = self._starts[pool], self._starts[pool + 1]
            inside = start + done - first
            if inside < after - first:
                piece = self._windows(pool)[inside : inside + count - done]
                out[done : done + len(piece)] = piece
                done += len(piece)
            pool += 1
        return out

    def epoch_windows(self) -> int:
        """Windows of the first epoch: the number of window i at which the second begins (tokenizes all text
        once).
        """
        while self._next[0] == 0:
            self._add_pool()
        return self._starts[sum(epoch == 0 for epoch, _, _ in self._pools)]

    def epoch_at(self, index: int) -> float:
        """How many epochs the windows before `index` are, counted in documents (tokenizes no text ahead)."""
        pool = int(np.searchsorted(self._starts, index, side="right")) - 1
        while pool >= len(self._pools):
            self._add_pool()
        epoch, begin, end = self._pools[pool]
        first, after = self._starts[pool], self._starts[pool + 1]
        return epoch + (begin + (end - begin) * (index - first) / max(1, after - first)) / len(self._docs)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self._docs)))
        return self._order[1]

    def _add_pool(self) -> None:
        epoch, begin = self._next
        order = self._epoch_order(epoch)
        end, characters = begin, 0
        while end < len(order) and characters < self._pool_characters:
            characters += len(self._docs[order[end]].text)
            end += 1
        self._pools.append((epoch, begin, end))
        windows = self._windows(len(self._pools) - 1)
        self._starts.append(self._starts[-1] + len(windows))
        self._empty_epoch &= len(windows) == 0
        if end >= len(order):
            if self._empty_epoch:
                raise InputError(
                    f"the fine-tuning text does not fill one window of {self.window} tokens; give more"
                )
            self._next = (epoch + 1, 0)
        else:
            self._next = (epoch, end)

    def _windows(self, pool: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != pool:
            epoch, begin, end = self._pools[pool]
            order = self._epoch_order(epoch)
            tokens = _join(self._tokenizer, [self._docs[i] for i in order[begin:end]])
            count = len(tokens) // self.window
            windows = tokens[: count * self.window].reshape(count, self.window)
            shuffled = np.random.default_rng([self.seed, epoch, begin]).permutation(count)
            self._cached = (pool, windows[shuffled])
        return self._cached[1]
