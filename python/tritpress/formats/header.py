"""safetensors headers: read through the core (one strict implementation), laid out and written here."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from tritpress.errors import InputError

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


def read_header(path: Path) -> tuple[dict[str, str], list[tuple[str, str, list[int], int, int]]]:
    """(metadata, [(name, dtype, shape, begin, end)]), positions absolute in the file, in the order of the
    data.

    Raises `InputError` that names the file (and tensor) for every malformed header: length beyond the file,
    overlaps, gaps, data past the end, duplicate keys, unknown dtype, shape and bytes that disagree.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing or not a file")
    try:
        return _parse(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from None


def _parse(path: Path) -> tuple[dict[str, str], list[tuple[str, str, list[int], int, int]]]:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if size < 8:
            raise ValueError("too short for a safetensors file")
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, 100_000_000):
            raise ValueError(f"the header claims {length} bytes, the file has {size}")
        raw = file.read(length)

    def unique(pairs: list) -> dict:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("duplicate key in the header")
        return value

    header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    metadata = header.pop("__metadata__", {})
    tensors = []
    for name, info in header.items():
        begin, end = info["data_offsets"]
        if math.prod(info["shape"]) * DTYPE_BYTES[info["dtype"]] != end - begin:
            raise ValueError(f"tensor {name}: shape and bytes disagree")
        tensors.append((name, info["dtype"], info["shape"], begin + 8 + length, end + 8 + length))
    tensors.sort(key=lambda item: (item[3], item[4]))
    position = 8 + length
    for name, _, _, begin, end in tensors:
        if begin != position:
            raise ValueError(f"tensor {name} overlaps another one or leaves a gap")
        position = end
    if position != size:
        raise ValueError(f"the tensors end at byte {position}, the file at {size}")
    return metadata, tensors


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
