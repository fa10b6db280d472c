"""The packed model on disk: written in one pass and constant memory, read back only when every rule holds.

NAME.codes, NAME.scales for ternary weights; NAME.q8, NAME.q8_scale for int8 rows; NAME in float16 for the
rest. The reader is in `packed_reader`, the arithmetic of sizes in `layout`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tritpress.errors import InputError
from tritpress.events.context import RunContext
from tritpress.formats.dense import decode_rows, quantize_rows, to_half
from tritpress.formats.header import Slot
from tritpress.formats.layout import Part, PlanLike, int8_names, packed_shards, packed_size
from tritpress.formats.output import new_directory
from tritpress.formats.packed_reader import PackedModel, TernaryInfo, check_codes, check_scales, open_packed
from tritpress.formats.source import CHUNK_BYTES, SourceModel, TensorEntry, read_raw, read_tensor
from tritpress.formats.writing import (
    copy_companions,
    output_config,
    sha256_of,
    unpressed_chunks,
    write_json,
    write_shards,
)

__all__ = [
    "PackedModel",
    "TernaryInfo",
    "dense_as_packed",
    "open_packed",
    "packed_size",
    "quantization_config",
    "write_packed",
]


class Store(Protocol):
    """Where finished tensors are (`formats.store.TensorStore`)."""

    def entries(self, name: str) -> tuple[TensorEntry, TensorEntry]: ...


def write_packed(
    source: SourceModel,
    plan: PlanLike,
    store: Store,
    out_dir: str | Path,
    *,
    seed: int,
    versions: dict[str, str],
    dense: Mapping[str, TensorEntry] | None = None,
    overwrite: bool = False,
    ctx: RunContext | None = None,
) -> Path:
    """Write the packed model directory; it appears under `out_dir` only when it is whole.

    `store` holds codes and scales of every tensor of the plan. `dense` names tensors beside the plan that
    are taken from elsewhere than the source, in the source's shape (what training changed). Equal inputs
    give equal bytes. Raises `InputError` for a value beyond float16, a tensor missing from the store, a full
    disk and an `out_dir` that is not empty.
    """
    shards = packed_shards(source, plan)
    final, taken = Path(out_dir), dense or {}
    for name, entry in taken.items():
        if name in plan.tensors or name not in source.tensors or entry.shape != source.tensors[name].shape:
            raise InputError(
                f"{entry.file}: tensor {name} is not one that {source.path} keeps beside the plan"
            )

    def chunks(slot: Slot, part: Part) -> Iterable[np.ndarray]:
        if part.part in ("codes", "scales"):
            return _stored_chunks(store, slot, part, plan.tensors[part.name].cols)
        return unpressed_chunks(taken.get(part.name, source.tensors[part.name]), part.part)

    with new_directory(final, overwrite=overwrite) as folder:
        written = write_shards(folder, shards, chunks, ctx)
        config = output_config(source.config)
        config["quantization_config"] = quantization_config(source, plan)
        write_json(folder / "config.json", config)
        copy_companions(source.path, folder)
        description = {
            "format": "tritpress",
            "version": 1,
            "weights": written,
            "source": {
                f.name: {"bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in source.weight_files
            },
            "architecture": source.architecture,
            "parameters": source.parameters,
            "plan": plan.model_dump(mode="json") if hasattr(plan, "model_dump") else None,
            "seed": seed,
            "versions": versions,
        }
        write_json(folder / "tritpress.json", description)
    return final


def quantization_config(source: SourceModel, plan: PlanLike) -> dict[str, Any]:
    """What `config.json` says of the packed tensors. Tied weights are listed under the name they are stored
    by.
    """
    tensors = {
        name: {
            "shape": [*planned.experts, planned.rows, planned.cols],
            "planes": planned.planes,
            "group_size": planned.group_size or planned.cols,
        }
        for name, planned in plan.tensors.items()
    }
    sizes = Counter(tensor["group_size"] for tensor in tensors.values())
    return {
        "quant_method": "tritpress",
        "version": 1,
        "group_size": min(sizes, key=lambda size: (-sizes[size], size)) if sizes else 64,
        "tensors": tensors,
        "transposed": sorted(name for name, planned in plan.tensors.items() if planned.transposed),
        "tied": sorted(set(source.tied.values())),
    }


def dense_as_packed(
    source: SourceModel, plan: PlanLike, skip: Collection[str] = ()
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, value) of every tensor that the plan leaves as it is, with the values that both outputs will
    hold: float16 in the source's own shape (int8 rows decoded), integers and booleans untouched.
    """
    int8 = int8_names(source, plan)
    for name, entry in source.tensors.items():
        if name in plan.tensors or name in skip:
            continue
        if not entry.is_float:
            yield name, read_raw(entry).reshape(entry.shape)
        elif name in int8:
            q8, scales = quantize_rows(read_tensor(entry), name)
            yield name, decode_rows(q8, scales, name)
        else:
            yield name, to_half(read_tensor(entry), name)


def _stored_chunks(store: Store, slot: Slot, part: Part, cols: int) -> Iterator[np.ndarray]:
    codes, scales = store.entries(part.name)
    entry = codes if part.part == "codes" else scales
    if entry.shape != slot.shape:
        raise InputError(
            f"{entry.file}: {part.part} of {part.name} are {list(entry.shape)}, the plan needs "
            f"{list(slot.shape)}"
        )
    width = max(1, slot.shape[-1])
    step = max(1, CHUNK_BYTES // (width * 2)) * width
    for start in range(0, entry.size, step):
        values = read_raw(entry, start, min(entry.size, start + step))
        if part.part == "codes":
            check_codes(values.reshape(-1, width), cols, entry.file, part.name)
        else:
            check_scales(values, entry.file, part.name)
        yield values
