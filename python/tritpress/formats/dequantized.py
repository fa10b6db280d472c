"""The dequantized model: float16 safetensors made from the packed files, opening in stock transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tritpress.errors import InputError
from tritpress.events.context import RunContext
from tritpress.formats.header import Slot
from tritpress.formats.layout import Part, dense_shards
from tritpress.formats.output import new_directory
from tritpress.formats.packed_reader import PackedModel, open_packed
from tritpress.formats.source import SourceModel, row_chunks
from tritpress.formats.writing import copy_companions, output_config, write_json, write_shards


def write_dequantized(
    packed_dir: str | Path,
    source: SourceModel,
    out_dir: str | Path,
    *,
    overwrite: bool = False,
    ctx: RunContext | None = None,
) -> Path:
    """Write what the packed files on disk decode to, in the source's own names, layout and shards.

    Weights go through in row chunks; only a weight that is stored transposed is held whole (one expert of
    it), in float16. Raises `InputError` for a packed model that is damaged or is not the source's, a weight
    beyond float16, a full disk and an `out_dir` that is not empty.
    """
    packed = open_packed(packed_dir, values=False)
    shards = dense_shards(source)
    if packed.names() != sorted(source.tensors):
        different = min({*packed.names()} ^ {*source.tensors})
        raise InputError(
            f"{packed.path} was not made from {source.path}: tensor {different} is in one of them only"
        )
    for name, entry in source.tensors.items():
        if packed.shape(name) != entry.shape:
            raise InputError(
                f"{packed.path} was not made from {source.path}: tensor {name} is "
                f"{list(packed.shape(name))} in one "
                f"and {list(entry.shape)} in the other"
            )

    def chunks(slot: Slot, part: Part) -> Iterable[np.ndarray]:
        return (
            dequantized_chunks(packed, part.name)
            if part.name in packed.tensors
            else packed.dense_chunks(part.name)
        )

    with new_directory(Path(out_dir), overwrite=overwrite) as folder:
        write_shards(folder, shards, chunks, ctx)
        write_json(folder / "config.json", output_config(source.config))
        copy_companions(source.path, folder)
    return Path(out_dir)


def dequantized_chunks(packed: PackedModel, name: str) -> Iterator[np.ndarray]:
    """The dequantized weight in the source's layout, float16, in pieces that follow one another in the
    file.
    """
    info = packed.tensors[name]
    if not info.transposed:
        for start, stop in row_chunks(info.rows, 4 * info.cols):
            yield packed.dequantized_rows(name, start, stop)
        return
    out, cols = info.shape[-2:]
    for expert in range(info.rows // out):
        weight = np.empty((cols, out), dtype=np.float16)
        for start, stop in row_chunks(out, 4 * cols):
            weight[:, start:stop] = packed.dequantized_rows(name, expert * out + start, expert * out + stop).T
        yield weight
