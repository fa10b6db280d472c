"""Which bytes a packed (or dequantized) model will have, known before any weight is read.

The planner asks `packed_size` for the exact size of a plan, the writers fill the same layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from tritpress.errors import InputError
from tritpress.formats.header import DTYPE_BYTES, FileLayout, lay_out
from tritpress.formats.source import SourceModel, TensorEntry
from tritpress.formats.targets import find_embeddings

SHARD_BYTES = 4 << 30
"""A weight file larger than this is divided."""
PACKED_METADATA = {"format": "pt", "tritpress": "1"}
DENSE_METADATA = {"format": "pt"}


class PlannedTensor(Protocol):
    """What the formats need to know of one tensor's plan; `group_size` 0 is the whole row."""

    rows: int
    cols: int
    transposed: bool
    planes: int
    group_size: int

    @property
    def experts(self) -> Any: ...


class PlanLike(Protocol):
    """What the formats need of a `tritpress.plan.Plan`."""

    embeddings: Any

    @property
    def tensors(self) -> Any: ...


@dataclass(frozen=True)
class Part:
    """A stored tensor's origin: `name` in the source and which `part` of it (codes, scales, q8, q8_scale,
    raw, half).
    """

    name: str
    part: str


@dataclass(frozen=True)
class Shard:
    """One weight file: its name, exact layout, and the origin of every slot by the slot's name."""

    file: str
    layout: FileLayout
    parts: dict[str, Part]


def code_bytes(cols: int) -> int:
    """Bytes of a row of `cols` 2-bit codes."""
    return -(-cols // 4)


def group_count(cols: int, group_size: int) -> int:
    """Scales of a row."""
    return -(-cols // (group_size or cols))


def int8_names(source: SourceModel, plan: PlanLike) -> set[str]:
    """Tensors that the plan stores as int8 rows."""
    if plan.embeddings != "int8":
        return set()
    return {name for name in find_embeddings(source) if name not in plan.tensors}


Piece = tuple[str, str, tuple[int, ...], Part]


def packed_shards(source: SourceModel, plan: PlanLike) -> list[Shard]:
    """The weight files of the packed model. `InputError` when the plan does not fit the source."""
    for name, planned in plan.tensors.items():
        if name not in source.tensors:
            raise InputError(f"the plan names tensor {name}, which {source.path} does not have")
        side = (planned.cols, planned.rows) if planned.transposed else (planned.rows, planned.cols)
        if (*planned.experts, *side) != source.tensors[name].shape:
            raise InputError(
                f"the plan has tensor {name} as {[*planned.experts, *side]}, {source.path} as "
                f"{list(source.tensors[name].shape)}"
            )
    int8 = int8_names(source, plan)

    def pieces(entry: TensorEntry) -> list[Piece]:
        name = entry.name
        if name in plan.tensors:
            planned = plan.tensors[name]
            lead = (planned.planes, *planned.experts, planned.rows)
            codes = (*lead, code_bytes(planned.cols))
            scales = (*lead, group_count(planned.cols, planned.group_size))
            return [
                (f"{name}.codes", "U8", codes, Part(name, "codes")),
                (f"{name}.scales", "F16", scales, Part(name, "scales")),
            ]
        if name in int8:
            return [
                (f"{name}.q8", "I8", entry.shape, Part(name, "q8")),
                (f"{name}.q8_scale", "F16", entry.shape[:1], Part(name, "q8_scale")),
            ]
        return [_unpressed(entry)]

    return _shards(source, pieces, PACKED_METADATA)


def dense_shards(source: SourceModel) -> list[Shard]:
    """The weight files of the dequantized model: every tensor under its own name and in its own shape,
    float16.
    """
    return _shards(source, lambda entry: [_unpressed(entry)], DENSE_METADATA)


def _unpressed(entry: TensorEntry) -> Piece:
    """Floating-point tensors become float16; integers and booleans stay as they are."""
    kind = ("F16", "half") if entry.is_float else (entry.dtype, "raw")
    return entry.name, kind[0], entry.shape, Part(entry.name, kind[1])


def packed_size(source: SourceModel, plan: PlanLike) -> int:
    """Exact bytes of the packed model's weight files, headers included."""
    return sum(shard.layout.nbytes for shard in packed_shards(source, plan))


def _shards(source: SourceModel, pieces: Any, metadata: dict[str, str]) -> list[Shard]:
    """Files follow the source's own; one that would pass `SHARD_BYTES` is divided. A tensor's parts stay
    together.
    """
    groups: list[list[Piece]] = []
    for file in source.weight_files:
        groups.append([])
        filled = 0
        for entry in (e for e in source.tensors.values() if e.file == file):
            made = pieces(entry)
            nbytes = sum(math.prod(shape) * DTYPE_BYTES[dtype] for _, dtype, shape, _ in made)
            if groups[-1] and filled + nbytes > SHARD_BYTES:
                groups.append([])
                filled = 0
            groups[-1] += made
            filled += nbytes
    groups = [group for group in groups if group]
    shards = []
    for number, group in enumerate(groups, 1):
        one = len(groups) == 1
        name = "model.safetensors" if one else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        layout = lay_out([(stored, dtype, shape) for stored, dtype, shape, _ in group], metadata)
        shards.append(Shard(name, layout, {stored: part for stored, _, _, part in group}))
    return shards
