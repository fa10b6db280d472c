"""What a model directory cannot be: wrong dtypes, shapes against `config.json`, blocks that lack a weight,
values that no output can hold. Names, shapes and numpy alone; only what is certainly wrong is refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tritpress.errors import InputError
from tritpress.formats.dense import HALF_MAX
from tritpress.formats.source import CHUNK_BYTES, INPUT_EMBEDDINGS, SourceModel, read_raw, to_float32

if TYPE_CHECKING:
    from tritpress.formats.targets import Target

_WEIGHT = re.compile(r"(^|\.)(weight|bias)$")
_EXPERT_WEIGHT = re.compile(r"expert.*\.(\w+_proj|w\d|(in|out)put_linear)$")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_OTHER_VOCABULARY = (
    "mllama",
    "mllama_text_model",
    "moshi",
    "kyutai_speech_to_text",
    "transfo-xl",
    "speecht5",
)
"""Models whose embedding has other rows than the configuration's vocabulary by design."""
_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
"""Models whose blocks are all alike and follow from the configuration alone."""
_HEAD_IS_SHARE = ("llama", "mistral", "qwen2")
"""Those of them where a head without `head_dim` is the hidden size divided by the number of heads."""


def check_dtypes(source: SourceModel) -> None:
    """`InputError` for a weight or bias stored as integers or booleans; buffers (position ids, masks) may be.

    Masks that old checkpoints call `attn.bias` are not among `source.tensors`.
    """
    for name, entry in source.tensors.items():
        if not entry.is_float and (_WEIGHT.search(name) or _EXPERT_WEIGHT.search(name)):
            raise InputError(
                f"{entry.file}: tensor {name} has dtype {entry.dtype}; a weight must be F32, F16 or BF16"
            )


def check_embedding(source: SourceModel) -> None:
    """`InputError` when the input embedding's shape is not [vocab_size, hidden_size] of `config.json`.

    Only what the configuration (its `text_config`, if it has one) states is compared; widths of embeddings
    that are projected to the hidden size (OPT's `word_embed_proj_dim`) are taken as well.
    """
    found = [
        entry
        for name, entry in source.tensors.items()
        if name.endswith(".weight") and name.split(".")[-2] in INPUT_EMBEDDINGS and len(entry.shape) == 2
    ]
    if len(found) != 1 or source.model_type in _OTHER_VOCABULARY:
        return
    entry, config = found[0], text_config(source)
    rows, cols = entry.shape
    vocabularies = [value for key, value in config.items() if "vocab" in key and type(value) is int]
    if type(config.get("vocab_size")) is int and rows not in vocabularies:
        raise InputError(
            f"{entry.file}: tensor {entry.name} has {rows} rows, but vocab_size in "
            f"{source.path / 'config.json'} is {config['vocab_size']}"
        )
    key = next((key for key in _WIDTHS if type(config.get(key)) is int), None)
    embeddings = [
        value
        for key, value in config.items()
        if "emb" in key and "position" not in key and type(value) is int
    ]
    if key is not None and cols != config[key] and cols not in embeddings:
        raise InputError(
            f"{entry.file}: tensor {entry.name} has {cols} columns, but {key} in "
            f"{source.path / 'config.json'} is {config[key]}"
        )


def text_config(source: SourceModel) -> dict[str, Any]:
    """The part of the configuration that describes the language model."""
    inner = source.config.get("text_config")
    return inner if isinstance(inner, dict) else source.config


def check_blocks(source: SourceModel, targets: list[Target]) -> None:
    """`InputError` for a weight whose shape cannot be, and for a block that lacks one.

    Blocks are compared with those of the same entry in `layer_types`, so that hybrid models pass. Refused
    are: a shape that disagrees with `config.json` in a model whose blocks follow from it; self-attention
    whose queries, keys and values take inputs of different sizes; one weight of a module that alone differs
    in one block (models that vary by block change several together); and one block that lacks a weight which
    all others have, where the rest of that module is there.
    """
    _check_plain(source, targets)
    blocks: dict[tuple[str, str], dict[int, dict[str, Target]]] = defaultdict(lambda: defaultdict(dict))
    kinds = text_config(source).get("layer_types")
    for target in targets:
        if target.layer is None:
            continue
        start, _, role = target.name.partition(f".{target.layer}.")
        kind = str(kinds[target.layer]) if isinstance(kinds, list) and target.layer < len(kinds) else ""
        blocks[start, kind][target.layer][role] = target
    for group in blocks.values():
        for roles in group.values():
            _check_attention(roles)
        if len(group) > 1:
            _check_lacking(source, group)
            _check_alike(group)


def _module(role: str) -> str:
    """`self_attn` of the role `self_attn.q_proj.weight`."""
    return role.removesuffix(".weight").rpartition(".")[0]


def _check_attention(roles: dict[str, Target]) -> None:
    inputs = [
        roles[f"self_attn.{part}_proj.weight"] for part in "kvq" if f"self_attn.{part}_proj.weight" in roles
    ]
    for target in inputs:
        others = [other for other in inputs if other is not target]
        if others and all(other.cols == others[0].cols != target.cols for other in others):
            raise InputError(
                f"{target.entry.file}: tensor {target.name} takes {target.cols} inputs, but "
                f"{others[0].name} takes {others[0].cols}"
            )


def _check_lacking(source: SourceModel, group: dict[int, dict[str, Target]]) -> None:
    for layer, roles in group.items():
        others = [set(other) for number, other in group.items() if number != layer]
        if any(other != others[0] for other in others) or not roles.keys() < others[0]:
            continue
        present = {_module(role) for role in roles}
        lacking = sorted(others[0] - roles.keys())
        kinds = {next(o[role] for o in group.values() if role in o).kind for role in lacking}
        # keys and values missing together: the block shares those of another one
        if kinds != {"k", "v"} and all(_module(role) in present for role in lacking):
            example = next(other[lacking[0]] for other in group.values() if lacking[0] in other)
            raise InputError(
                f"{source.path}: block {layer} has no {lacking[0]} that can be pressed, all other blocks "
                f"have one (such as {example.name}); the model is incomplete"
            )


def _check_alike(group: dict[int, dict[str, Target]]) -> None:
    """One weight that is shaped otherwise than in all other blocks, while the rest of its module is not."""
    usual: dict[str, list[tuple[int, Target]]] = defaultdict(list)
    for layer, roles in sorted(group.items()):
        for role, target in roles.items():
            usual[role].append((layer, target))
    odd: dict[tuple[int, str], list[tuple[Target, Target]]] = defaultdict(list)
    for role, found in usual.items():
        for layer, target in reversed(found):
            others = [other for number, other in found if number != layer]
            if others and all(other.shape == others[0].shape != target.shape for other in others):
                odd[layer, _module(role)].append((target, others[0]))
                break  # of two blocks that differ the later one is named
    for pairs in odd.values():
        target, other = pairs[0]
        fused = target.kind == "qkv" and target.cols == other.cols  # fewer heads of keys in one block
        if len(pairs) == 1 and target.kind != "other" and not fused:
            raise InputError(
                f"{target.entry.file}: tensor {target.name} is {list(target.entry.shape)}, but {other.name} "
                f"is {list(other.entry.shape)}, as in all other blocks"
            )


def _check_plain(source: SourceModel, targets: list[Target]) -> None:
    if source.model_type not in _PLAIN:
        return
    config = source.config
    hidden, inner, heads, key_heads, head = (
        value if type(value := config.get(key)) is int and value > 0 else None
        for key in (
            "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        )
    )  # fmt: skip
    if head is None and source.model_type in _HEAD_IS_SHARE and hidden and heads:
        head = hidden // heads
    queries = head * heads if head and heads else None
    keys = head * key_heads if head and key_heads else None
    due = {
        "q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
    }  # fmt: skip
    for target in targets:
        wanted = due.get(target.kind, (None, None))
        if any(w not in (None, n) for w, n in zip(wanted, (target.rows, target.cols), strict=True)):
            told = [n if w is None else w for w, n in zip(wanted, (target.rows, target.cols), strict=True)]
            raise InputError(
                f"{target.entry.file}: tensor {target.name} is {[target.rows, target.cols]}, but by "
                f"{source.path / 'config.json'} it is {told}"
            )


def check_finite(source: SourceModel, names: Iterable[str]) -> None:
    """Read the floating-point tensors among `names` once, in pieces; `InputError` names the file and the
    tensor that holds NaN, infinity or a value beyond float16, which is what these tensors are written in.
    """
    for name in names:
        entry = source.tensors[name]
        if not entry.is_float:
            continue
        step = CHUNK_BYTES // 4
        for start in range(0, entry.size, step):
            values = read_raw(entry, start, min(entry.size, start + step))
            values = values if entry.dtype == "F64" else to_float32(values, entry.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                if np.isfinite(values.astype(np.float16)).all():
                    continue
            if not np.isfinite(values).all():
                raise InputError(f"{entry.file}: tensor {name} holds NaN or infinity; repair the model first")
            worst = float(np.abs(values).max())
            raise InputError(
                f"{entry.file}: tensor {name} holds {worst:g}, which float16 cannot (it ends at "
                f"{HALF_MAX:g}); scale the tensor down"
            )
