"""Model directories made by hand, byte by byte, and a quick data-free press of any of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tritpress import _core
from tritpress.formats.source import SourceModel, open_source, read_tensor
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import Target, find_targets
from tritpress.plan import Plan, TensorPlan

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I8": "i1", "U8": "u1", "BOOL": "?"}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    "tie_word_embeddings": False,
}  # fmt: skip


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper halves as uint16 (truncated)."""
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def safetensors_bytes(
    tensors: dict[str, tuple[str, np.ndarray]], metadata: dict[str, str] | None = None
) -> bytes:
    """A file with these (dtype, values); BF16 values are given as uint16."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    data = b""
    for name, (dtype, values) in tensors.items():
        raw = values.astype(_DTYPES[dtype]).tobytes() if dtype in _DTYPES else values.tobytes()
        header[name] = {
            "dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)],
        }  # fmt: skip
        data += raw
    return raw_file(json.dumps(header).encode(), data)


def raw_file(header: bytes, data: bytes) -> bytes:
    """A file with this header text, right or wrong, and this data."""
    return len(header).to_bytes(8, "little") + header + data


def small_tensors(
    rng: np.random.Generator, *, hidden: int = 8, inner: int = 10
) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of a one-block Llama, float32."""

    def normal(*shape: int) -> tuple[str, np.ndarray]:
        return "F32", rng.standard_normal(shape).astype(np.float32)

    block = "model.layers.0."
    return {
        "model.embed_tokens.weight": normal(16, hidden),
        **{f"{block}self_attn.{p}_proj.weight": normal(hidden, hidden) for p in "qkvo"},
        f"{block}mlp.gate_proj.weight": normal(inner, hidden),
        f"{block}mlp.up_proj.weight": normal(inner, hidden),
        f"{block}mlp.down_proj.weight": normal(hidden, inner),
        f"{block}input_layernorm.weight": normal(hidden),
        "model.norm.weight": normal(hidden),
        "lm_head.weight": normal(16, hidden),
    }


def make_model(
    folder: Path, tensors: dict[str, tuple[str, np.ndarray]], config: dict[str, Any] | None = None
) -> Path:
    """A model directory of these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


def make_plan(targets: list[Target], *, planes: int | None = None, embeddings: str = "int8") -> Plan:
    """Planes 1, 2, 3, 1, .. with groups of 64, the whole row and 32, or `planes` in groups of 64 for all."""
    return Plan(
        tensors={
            t.name: TensorPlan(
                name=t.name, layer=t.layer, kind=t.kind, rows=t.rows, cols=t.cols, experts=list(t.experts),
                transposed=t.transposed, planes=planes or 1 + i % 3,
                group_size=64 if planes else (64, 0, 32)[i % 3],
            )
            for i, t in enumerate(targets)
        },
        embeddings=embeddings,
    )  # fmt: skip


def press(source: SourceModel, plan: Plan, folder: Path) -> TensorStore:
    """Ternarize every planned tensor from its weights alone."""
    store = TensorStore(folder)
    for target in find_targets(source):
        planned = plan.tensors[target.name]
        weight = read_tensor(target.entry)
        weight = np.swapaxes(weight, -1, -2) if target.transposed else weight
        pressed = [
            _core.ternarize(np.ascontiguousarray(one), planes=planned.planes, group_size=planned.group_size)
            for one in weight.reshape(-1, target.rows, target.cols)
        ]
        codes, scales = (np.stack([one[i] for one in pressed], axis=1) for i in (0, 1))
        lead = (planned.planes, *target.experts, target.rows)
        store.put(
            target.name, codes.reshape(*lead, -1), scales.reshape(*lead, -1), {"planes": planned.planes}
        )
    return store


def pack(model: Path, folder: Path, **plan: Any) -> tuple[SourceModel, Plan, TensorStore]:
    """Press a directory and write `folder/packed`; returns what that took."""
    from tritpress.formats.packed import write_packed

    source = open_source(model)
    made = make_plan(find_targets(source), **plan)
    store = press(source, made, folder / "store")
    write_packed(source, made, store, folder / "packed", seed=0, versions={"tritpress": "test"})
    return source, made, store
