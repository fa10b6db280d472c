"""Which tensors are pressed: the linear layers of the blocks, found by names, shapes and configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tritpress.errors import InputError
from tritpress.formats.checks import check_blocks, check_dtypes, check_embedding
from tritpress.formats.source import INPUT_EMBEDDINGS, OUTPUT_HEADS, SourceModel, TensorEntry

KINDS = ("q", "k", "v", "o", "gate", "up", "down", "qkv", "fc1", "fc2", "expert", "other")

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")

_KIND_OF_MODULE = {
    "q": "q", "q_proj": "q", "q_lin": "q", "query": "q", "wq": "q", "q_a_proj": "q", "q_b_proj": "q",
    "k": "k", "k_proj": "k", "k_lin": "k", "key": "k", "wk": "k", "kv_a_proj_with_mqa": "k", "kv_b_proj": "k",
    "v": "v", "v_proj": "v", "v_lin": "v", "value": "v", "wv": "v",
    "o": "o", "o_proj": "o", "out_lin": "o", "wo": "o",
    "qkv": "qkv", "qkv_proj": "qkv", "c_attn": "qkv", "query_key_value": "qkv", "Wqkv": "qkv",
    "in_proj_qkv": "qkv",
    "gate_proj": "gate", "gate_up_proj": "gate", "w1": "gate",
    "up_proj": "up", "w3": "up", "wi_1": "up",
    "down_proj": "down", "w2": "down",
    "fc1": "fc1", "c_fc": "fc1", "fc_in": "fc1", "dense_h_to_4h": "fc1", "linear_in": "fc1", "wi": "fc1",
    "fc2": "fc2", "fc_out": "fc2", "dense_4h_to_h": "fc2", "linear_out": "fc2",
}  # fmt: skip

_ATTENTION = re.compile(r"attn|attention")
_LINEAR_LIKE = re.compile(r"(proj|linear|dense|fc|lin)\d*$|^(in|out|x|dt)_proj$|^w\d+$")
_NOT_LINEAR = re.compile(
    r"norm|embed|router|rotary|conv|relative|position|alibi|lora|gate_score|^(ln|gate|wg|wte|wpe|shared_expert_gate)"
)
_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")
_EXPERT_STACKS = {
    "gate_up_proj": "in", "gate_proj": "in", "up_proj": "in", "w1": "in", "w3": "in", "input_linear": "in",
    "down_proj": "out", "w2": "out", "output_linear": "out",
}  # fmt: skip
"""Stacked expert weights [experts, ., .]: which of their two sides is the model's hidden size."""
_TRANSPOSED_STACKS = ("llama4", "llama4_text", "gpt_oss", "qwen3_vl_moe", "qwen3_vl_moe_text")


@dataclass(frozen=True)
class Target:
    """A tensor to press: `rows` outputs, `cols` inputs, of each of its `experts` (leading dimensions,
    mostly none).

    `transposed`: the source stores [in, out].
    """

    name: str
    layer: int | None
    kind: str
    rows: int
    cols: int
    experts: tuple[int, ...]
    transposed: bool
    entry: TensorEntry

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the packed file: (experts.., out, in)."""
        return (*self.experts, self.rows, self.cols)


def layer_of(name: str) -> int | None:
    """The block's number in a tensor's name."""
    found = _BLOCK.search(name)
    return int(found.group(1)) if found else None


def find_targets(source: SourceModel) -> list[Target]:
    """The linear layers of the blocks, by block and then by name.

    Norms, biases, routers, embeddings, the output head and everything outside the blocks stay as they are.
    Raises `InputError` when nothing is left to press and for all that `linear_layers` refuses.
    """
    targets = linear_layers(source)
    if not targets:
        raise InputError(
            f"{source.path} has no linear layer to press: no two-dimensional weight inside numbered "
            "blocks was "
            f"recognised in {source.architecture or 'this model'}"
        )
    return targets


def linear_layers(source: SourceModel) -> list[Target]:
    """What `find_targets` returns, empty for a model without linear layers.

    Raises `InputError`, naming file and tensor, for a model that cannot be: weights stored as integers, an
    embedding or a block that disagrees with `config.json` or with the other blocks (`formats.checks`).
    """
    check_dtypes(source)
    check_embedding(source)
    found = (_target(source, entry) for entry in source.tensors.values())
    targets = _sorted(target for target in found if target is not None)
    check_blocks(source, targets)
    return targets


def _sorted(targets: Iterable[Target]) -> list[Target]:
    return sorted(targets, key=lambda t: (t.layer if t.layer is not None else -1, _natural(t.name)))


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split(".")]


def _target(source: SourceModel, entry: TensorEntry) -> Target | None:
    layer = layer_of(entry.name)
    if layer is None or not entry.is_float or 0 in entry.shape:
        return None
    parts = entry.name.split(".")
    if len(entry.shape) == 3:
        return _stacked_experts(source, entry, layer, parts)
    if len(entry.shape) != 2 or parts[-1] != "weight":
        return None
    module = parts[-2]
    kind = _kind(parts)
    if kind is None:
        return None
    transposed = source.model_type in _CONV1D_TYPES and module in _CONV1D_MODULES
    rows, cols = reversed(entry.shape) if transposed else entry.shape
    return Target(entry.name, layer, kind, rows, cols, (), transposed, entry)


def _kind(parts: list[str]) -> str | None:
    """The role of a two-dimensional `weight` inside a block, None when it is no linear layer."""
    module = parts[-2]
    inside = ".".join(parts[:-2])
    if "experts" in parts[:-1]:
        return None if module in ("router", "gate") else "expert"
    if module in _KIND_OF_MODULE:
        return _KIND_OF_MODULE[module]
    if _NOT_LINEAR.search(module):
        return None
    if module in ("c_proj", "out_proj", "dense"):
        return "o" if _ATTENTION.search(inside) else "fc2" if module == "c_proj" else "other"
    return "other" if _LINEAR_LIKE.search(module) else None


def _stacked_experts(source: SourceModel, entry: TensorEntry, layer: int, parts: list[str]) -> Target | None:
    """A tensor [experts, out, in] or [experts, in, out] that holds all experts' weights of a block."""
    module = parts[-2] if parts[-1] == "weight" else parts[-1]
    if module not in _EXPERT_STACKS or not any("expert" in part or "moe" in part for part in parts):
        return None
    hidden = _hidden_size(source.config)
    experts, first, second = entry.shape
    hidden_first, hidden_last = first == hidden, second == hidden
    if hidden_first == hidden_last:
        transposed = source.model_type in _TRANSPOSED_STACKS
    else:  # the inputs of the first product, or the outputs of the second, are the hidden size
        transposed = hidden_first if _EXPERT_STACKS[module] == "in" else hidden_last
    rows, cols = (second, first) if transposed else (first, second)
    return Target(entry.name, layer, "expert", rows, cols, (experts,), transposed, entry)


def _hidden_size(config: dict[str, Any]) -> int | None:
    for place in (config, config.get("text_config")):
        if isinstance(place, dict):
            for key in ("hidden_size", "n_embd", "d_model"):
                if isinstance(place.get(key), int):
                    return place[key]
    return None


def embedding_targets(source: SourceModel) -> list[Target]:
    """Token embeddings and output heads as tensors that may be pressed too; a tied pair once.

    They are none of `find_targets`: they are pressed only where a plan says so.
    """
    found = []
    for name in find_embeddings(source):
        parts = name.split(".")
        if len(parts) > 1 and parts[-2] in INPUT_EMBEDDINGS + OUTPUT_HEADS:
            rows, cols = source.tensors[name].shape
            found.append(Target(name, None, "other", rows, cols, (), False, source.tensors[name]))
    return found


def find_embeddings(source: SourceModel) -> list[str]:
    """Names of the two-dimensional embedding and head tensors, which may be stored as int8 rows; tied ones
    once.
    """
    found = []
    for name, entry in source.tensors.items():
        parts = name.split(".")
        if len(entry.shape) != 2 or not entry.is_float or parts[-1] != "weight" or layer_of(name) is not None:
            continue
        module = parts[-2] if len(parts) > 1 else ""
        if module in INPUT_EMBEDDINGS + OUTPUT_HEADS or module == "wpe" or "embed" in module:
            found.append(name)
    return found
