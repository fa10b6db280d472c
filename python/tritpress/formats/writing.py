"""What the writers of both outputs share: weight files in one pass, configuration, tokenizer files."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.errors import InputError
from tritpress.events.context import NullContext, RunContext
from tritpress.formats.dense import quantize_rows, to_half
from tritpress.formats.header import Slot
from tritpress.formats.layout import Part, Shard
from tritpress.formats.output import sync_folder, write_file
from tritpress.formats.source import (
    CHUNK_BYTES,
    TensorEntry,
    as_bytes,
    read_raw,
    read_rows,
    row_chunks,
    safe_file,
)

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip
"""Files taken over from the source as they are, beside `tokenizer.model.v3` and the like; code never is."""

NEVER_WRITTEN = (".py", ".bin", ".pt", ".pth", ".pkl", ".part", ".tmp")
"""Endings of code, pickles and leftovers, which have no place in an output."""

STEP = 6


def write_shards(
    folder: Path,
    shards: list[Shard],
    chunks: Callable[[Slot, Part], Iterable[np.ndarray]],
    ctx: RunContext | None,
    *,
    progress: tuple[int, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write every weight file (and the index of several) front to back in constant memory.

    `chunks` yields a slot's values in order. Returns file name -> {"bytes", "sha256"}. `progress`: (tensors
    written before, tensors in all), for `step.progress` events.
    """
    context = ctx or NullContext()
    needed, free = sum(shard.layout.nbytes for shard in shards), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free")
    done, total = progress or (0, sum(len(shard.layout.slots) for shard in shards))
    written = {}
    for shard in shards:
        digest = hashlib.sha256(shard.layout.header)
        with open(folder / shard.file, "wb") as file:
            file.write(shard.layout.header)
            for slot in shard.layout.slots:
                context.check()
                count = 0
                for chunk in chunks(slot, shard.parts[slot.name]):
                    raw = as_bytes(chunk)
                    file.write(raw)
                    digest.update(raw)
                    count += len(raw)
                if count != slot.nbytes:
                    raise InputError(
                        f"tensor {slot.name} came with {count} bytes where {slot.nbytes} were planned"
                    )
                done += 1
                context.emit("step.progress", step=STEP, done=done, total=total, detail=slot.name)
            file.flush()
            os.fsync(file.fileno())
        written[shard.file] = {"bytes": shard.layout.nbytes, "sha256": digest.hexdigest()}
    if len(shards) > 1:
        weight_map = {slot.name: shard.file for shard in shards for slot in shard.layout.slots}
        size = sum(slot.nbytes for shard in shards for slot in shard.layout.slots)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    return written


def unpressed_chunks(entry: TensorEntry, part: str) -> Iterator[np.ndarray]:
    """The stored values of a tensor that is not ternarized, in row chunks: `half`, `raw`, `q8` or
    `q8_scale`.
    """
    rows, cols = entry.rows_cols
    for start, stop in row_chunks(rows, 4 * cols):
        if part == "raw":
            yield read_raw(entry, start * cols, stop * cols)
        elif part == "half":
            yield to_half(read_rows(entry, start, stop), entry.name)
        else:
            q8, scales = quantize_rows(read_rows(entry, start, stop), entry.name)
            yield q8 if part == "q8" else scales


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with sorted keys: equal values give equal bytes."""
    write_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("utf-8"))


def output_config(config: dict[str, Any]) -> dict[str, Any]:
    """The source's configuration with dtype float16, without what names code or a place on the maker's
    machine.
    """
    config = copy.deepcopy(config)
    for key in ("quantization_config", "auto_map", "_name_or_path"):
        config.pop(key, None)
    config["dtype"] = "float16"

    def halve(value: dict[str, Any]) -> None:
        for key in ("dtype", "torch_dtype"):
            if value.get(key) is not None:
                value[key] = "float16"
        for inner in value.values():
            if isinstance(inner, dict):
                halve(inner)

    halve(config)
    return config


def companions(source: Path) -> list[str]:
    """Names of the files beside a model's weights that an output gets too: tokenizer, generation settings and
    licence.
    """
    more = sorted(path.name for path in source.glob("tokenizer.model.*") if path.suffix not in NEVER_WRITTEN)
    return [name for name in (*COPIED, *more) if (source / name).is_file()]


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the `companions` as they are. Links that leave the source are refused."""
    for name in companions(source):
        path = safe_file(source, name)
        if path.is_file():
            with open(path, "rb") as original, open(folder / name, "wb") as copied:
                shutil.copyfileobj(original, copied, CHUNK_BYTES)
                copied.flush()
                os.fsync(copied.fileno())
    sync_folder(folder)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
