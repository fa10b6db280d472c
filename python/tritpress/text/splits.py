"""Documents in four parts that never mix: calibration (statistics), fine_tuning, validation (early stopping,
planner) and held_out (the two evaluations).

The part of a document follows from its name alone: h = int(md5(name), 16) % 25 gives 0 held_out, 1
validation, 2 calibration, the rest fine_tuning.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritpress.errors import InputError
from tritpress.text.documents import FIELD, SUFFIXES, Document, read_documents
from tritpress.text.duplicates import drop_near_duplicates

SPLITS = ("calibration", "fine_tuning", "validation", "held_out")
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
class Splits:
    """The four parts, each sorted by document name; `source` says in words where the text is from."""

    source: str
    calibration: list[Document]
    fine_tuning: list[Document]
    validation: list[Document]
    held_out: list[Document]
    left_out: int = 0
    """Near duplicates of a document in another part, which are in none."""

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


def builtin_splits() -> Splits:
    """The running interpreter's own standard library, `*.py`.

    Left out: every folder whose path below the library contains `test`, `lib2to3` or `site-packages`, files
    above 200,000 characters, and near duplicates of a file in another part (`drop_near_duplicates`; the
    held-out ones stay): tables of encodings mostly, of which one is like the other.
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
    parts, dropped = drop_near_duplicates(parts)
    source = f"standard library of Python {sysconfig.get_python_version()}"
    return Splits(source, **parts, left_out=len(dropped))


def _read_library_file(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a dangling link, as distributions leave some
        return None


def load_splits(paths: Sequence[str | Path], field: str = FIELD) -> Splits:
    """Split the user's files and folders (`.txt`, `.md`, `.py`; `.jsonl` and `.parquet` with `field`).

    A document is a file or a row of a file of rows; its name is the path relative to the folder given. Empty
    documents are passed over and of identical ones the first by name is kept; near duplicates of a document
    in another part are left out (`drop_near_duplicates`), so that nothing held out is seen.
    With fewer than 50 documents, or a part below 4000 characters, documents are cut at line ends into
    sections of at least 2000 characters, which then are the documents; with fewer than 200 of those, or a
    part that is still too small, the parts go by the rank of the hash instead of its remainder (rank % 8: 0
    held_out, 1 validation, 2 calibration), so that none is empty.

    Raises `InputError` for a missing path, a file that is not UTF-8 text, a bad line, and too little text.
    """
    if not paths:
        raise InputError("no text was given")
    documents = _unique(read_documents(paths, field))
    source = ", ".join(str(path) for path in paths)
    if not documents:
        raise InputError(f"there is no text in {source}: expected {', '.join(SUFFIXES)} files")
    if len(documents) >= FEW_DOCUMENTS:
        parts = _by_remainder(documents)
        if _is_enough(parts):
            parts, dropped = drop_near_duplicates(parts)
            if _is_enough(parts):
                return Splits(source, **parts, left_out=len(dropped))
    sections = _unique(section for document in documents for section in _sections(document))
    parts = _by_remainder(sections) if len(sections) >= _FEW_SECTIONS else {}
    if not parts or not _is_enough(parts):
        parts = _by_rank(sections)
    parts, dropped = drop_near_duplicates(parts)
    if not all(parts.values()):
        total = sum(len(document.text) for document in documents)
        alike = f" ({len(dropped)} pieces are near duplicates of others)" if dropped else ""
        raise InputError(
            f"the text in {source} has {total} characters{alike}, which is too little to keep calibration, "
            "fine-tuning, validation and held-out text apart: give at least "
            f"{4 * SECTION} characters of different text ({16 * SECTION} or more are better)"
        )
    return Splits(source, **parts, left_out=len(dropped))


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
