"""safetensors headers: read through the core (one strict implementation), laid out and written here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from tritpress.errors import InputError

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


def read_header(path: Path) -> tuple[dict[str, str], list[tuple[str, str, tuple[int, ...], int, int]]]:
    """(metadata, [(name, dtype, shape, begin, end)]), positions absolute in the file, in the order of the
    data.

    Raises `InputError` that names the file (and tensor) for every malformed header: length beyond the file,
    overlaps, gaps, data past the end, duplicate keys, unknown dtype, shape and bytes that disagree.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing or not a file")
    from tritpress import _core

    try:
        metadata, tensors = _core.safetensors_header(str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from None
    return metadata, [(name, dtype, tuple(shape), begin, end) for name, dtype, shape, begin, end in tensors]


@dataclass(frozen=True)
class Slot:
    """One tensor of a file to be written: `offset` counts from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class FileLayout:
    """The exact bytes of a safetensors file but for the tensors' values."""

    header: bytes
    slots: tuple[Slot, ...]
    nbytes: int


def lay_out(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> FileLayout:
    """The layout of a file with these (name, dtype, shape): wide dtypes first, then by name, so that every
    tensor is aligned to its dtype without gaps; the header is padded with spaces to a multiple of 8
    bytes.
    """
    slots: list[Slot] = []
    position = 0
    header: dict[str, object] = {"__metadata__": metadata}
    for name, dtype, shape in sorted(tensors, key=lambda item: (-DTYPE_BYTES[item[1]], item[0])):
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        slots.append(Slot(name, dtype, tuple(shape), position, nbytes))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text
    return FileLayout(raw, tuple(slots), len(raw) + position)
