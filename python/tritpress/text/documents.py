"""Text files as documents: .txt, .md and .py whole, .jsonl and .parquet one row each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritpress.errors import InputError, UsageError

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")
"""Endings of files of text, in small letters or capitals."""

FIELD = "text"
"""The field of a .jsonl line, or column of a .parquet file, that holds the text."""


@dataclass(frozen=True)
class Document:
    """A piece of text that is never divided between splits."""

    name: str
    text: str


def read_documents(paths: Sequence[str | Path], field: str = FIELD) -> list[Document]:
    """Every document of the files and folders given, by name unlike any other.

    A document's name is the path relative to the folder given, with `#row` for a row of a file of rows.
    Raises `InputError` for a missing path, a file that cannot be read or is not what its ending says, and a
    row without `field` or with what is no Unicode text in it.
    """
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
            rows = _parquet_rows if path.suffix.lower() == ".parquet" else _read_file
            for document in rows(path, name, field):
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
        found += [Path(folder, n) for n in files if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _read_file(path: Path, name: str, field: str) -> list[Document]:
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
    if path.suffix.lower() != ".jsonl":
        return [Document(name, text)]
    documents = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise InputError(f"line {number} of {path} is not JSON") from None
        if not isinstance(value, dict) or not isinstance(value.get(field), str):
            there = f"; its fields are {', '.join(map(str, value))}" if isinstance(value, dict) else ""
            raise InputError(f'line {number} of {path} has no field "{field}" with a string{there}')
        if not _is_unicode(value[field]):
            raise InputError(
                f'line {number} of {path}: field "{field}" holds half of a surrogate pair (\\ud800 to '
                "\\udfff alone), which is no character; repair the line or leave it out"
            )
        documents.append(Document(f"{name}#{number:08d}", value[field]))
    return documents


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON may escape half of a surrogate pair, which cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(path: Path, name: str, field: str) -> Iterator[Document]:
    """One document a row, read batch by batch; empty values are passed over."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(f"{path}: parquet files need pyarrow (pip install 'tritpress[hf]')") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise InputError(f'{path} has no column "{field}"; its columns are {", ".join(columns)}')
            kind = file.schema_arrow.field(field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise InputError(f'{path}: column "{field}" holds {kind}, not text')
            number = 0
            for batch in file.iter_batches(columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if value:
                        yield Document(f"{name}#{number:08d}", value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
