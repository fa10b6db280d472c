"""A reader of the packed format written from its description alone, with json, struct and numpy."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

DTYPES = {"U8": "u1", "I8": "i1", "F16": "<f2", "F32": "<f4", "I64": "<i8"}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of one file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            assert entry["format"] == "pt"
            continue
        begin, end = entry["data_offsets"]
        raw = data[8 + length + begin : 8 + length + end]
        found[name] = np.frombuffer(raw, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, sharded or not."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(read_safetensors(path))
    return found


def decode(folder: Path) -> dict[str, np.ndarray]:
    """Name -> float16 weight of every tensor of a packed directory, in the source's own layout."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "tritpress" and settings["version"] == 1
    stored = read_folder(folder)
    weights: dict[str, np.ndarray] = {}
    for name, about in settings["tensors"].items():
        codes, scales = stored.pop(f"{name}.codes"), stored.pop(f"{name}.scales")
        planes, (*experts, rows, cols), group = about["planes"], about["shape"], about["group_size"]
        assert codes.shape == (planes, *experts, rows, -(-cols // 4))
        trits = np.stack([(codes >> (2 * s)) & 3 for s in range(4)], axis=-1)
        trits = trits.reshape(planes, *experts, rows, -1)
        assert trits.max() <= 2 and (trits[..., cols:] == 1).all()
        values = trits[..., :cols].astype(np.float32) - 1
        spread = np.repeat(scales.astype(np.float32), group, axis=-1)[..., :cols]
        total = np.zeros((*experts, rows, cols), dtype=np.float32)
        for plane in range(planes):
            total = total + spread[plane] * values[plane]
        weight = total.astype(np.float16)
        weights[name] = np.swapaxes(weight, -1, -2) if name in settings["transposed"] else weight
    for name in [name for name in stored if name.endswith(".q8")]:
        rows8, scale = stored.pop(name), stored.pop(f"{name}_scale")
        weights[name[: -len(".q8")]] = (rows8.astype(np.float32) * scale.astype(np.float32)[:, None]).astype(
            np.float16
        )
    return weights | stored
