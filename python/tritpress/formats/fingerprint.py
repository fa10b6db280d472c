"""Telling whether a model directory is still the one that a run began with, without reading all of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator

from tritpress.errors import InputError
from tritpress.formats.source import SourceModel

PIECE_BYTES, PIECES = 4096, 4
"""Of each tensor that many pieces of that size are looked at, evenly spaced; of a small one all of it."""


def fingerprints(source: SourceModel) -> dict[str, str]:
    """File name -> SHA-256 of what is looked at: the configuration's values, and of each weight file its
    size, where every tensor lies, and pieces of each. Another training of the same model changes them all.
    """
    entries = [*source.tensors.values(), *source.ignored.values()]
    config = json.dumps(source.config, sort_keys=True).encode()
    found = {"config.json": hashlib.sha256(config).hexdigest()}
    for file in source.weight_files:
        try:
            with open(file, "rb") as opened:
                seen = hashlib.sha256(str(os.fstat(opened.fileno()).st_size).encode())
                for entry in sorted((e for e in entries if e.file == file), key=lambda e: e.offset):
                    seen.update(f"{entry.name} {entry.dtype} {entry.shape} {entry.offset}\n".encode())
                    for start, count in _pieces(entry.nbytes):
                        seen.update(os.pread(opened.fileno(), count, entry.offset + start))
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from None
        found[file.name] = seen.hexdigest()
    return found


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    if nbytes <= PIECE_BYTES * PIECES:
        yield 0, nbytes
        return
    for number in range(PIECES):
        yield number * (nbytes - PIECE_BYTES) // (PIECES - 1), PIECE_BYTES
