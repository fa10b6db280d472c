"""What `tritpress bench generate` measures of the package's own decoder, on random packed models.

The time of a token is that of the products (the calls of the kernels, taken inside the run) and the rest:
norms, rotations, attention over the cache, activations, the choice of the token and Python itself.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tritpress import _core
from tritpress.bench_rows import Row, whole
from tritpress.config import MemoryFormat
from tritpress.decoder import Decoder, Sampler
from tritpress.decoder.linear import Int8Rows
from tritpress.formats.header import lay_out
from tritpress.formats.layout import PACKED_METADATA, code_bytes, group_count

GROUP_SIZE = 64

MODELS: dict[str, dict[str, int]] = {
    "random-110m": {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 12, "vocab_size": 32000,
    },
    "random-1.1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "random-1.2b-128k": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": 1,
    },
}  # fmt: skip
"""Sizes of the models: a small one, that of TinyLlama, and (not measured unless named) that of Llama-3.2-1B
with its large vocabulary."""

MEASURED = ("random-110m", "random-1.1b")
CONTEXTS = (128, 1024)
"""Positions in the cache before the measured tokens."""

PROMPT = 128
TOKENS = 16
REPEATS = 3


def bench_generate(
    threads: int,
    models: Sequence[str] | None = None,
    contexts: Sequence[int] | None = None,
    unpack_gop_s: float | None = None,
) -> list[Row]:
    """One row of the op "decode" for each model (None: `MEASURED`), format and context (None: `CONTEXTS`):
    medians over `REPEATS` runs of `TOKENS` tokens.

    us (one token), matvec_us (all products), head_us (the output head's share of these), rest_us, rest_share
    (rest_us / us), us_best and rest_share_best (of the fastest token: what a busy machine disturbed least),
    prompt_tokens_s (the faster of two prompts of `PROMPT` tokens). gb_s and gop_s: bytes and operations of
    the products (a product and a sum for each weight of each plane; the head multiplies twice) in the time of
    a token. floor_us: the longer of reading as many bytes again and again, measured here, and of unpacking
    and multiplying at `unpack_gop_s` (None: measured first); nothing of the rest is in it. null: rows, cols
    and where (many matrices, some of which may stay in a cache), torch's keys (no model of its beside them).
    """
    if unpack_gop_s is None:
        unpack_gop_s = _core.machine_limits(threads)["unpack_gop_s"]
    rows = []
    for name in MEASURED if models is None else models:
        with tempfile.TemporaryDirectory(prefix="tritpress-bench-") as folder:
            parameters = write_random_model(Path(folder), MODELS[name])
            for format in get_args(MemoryFormat):
                decoder = Decoder.open(folder, threads, format=format)
                nbytes, operations = decoder.weight_bytes, _operations(decoder)
                read_us = nbytes / _core.read_again(nbytes, threads)["gb_s"] / 1e3
                floor = max(read_us, operations / unpack_gop_s / 1e3)
                common: Row = {"op": "decode", "n": 1, "threads": threads, "isa": _core.isa_for(1)}
                common |= {"format": format, "group_size": GROUP_SIZE, "floor_us": round(floor, 1)}
                common |= {"model": name, "parameters": parameters, "prompt_tokens_s": _prompt_rate(decoder)}
                for context in CONTEXTS if contexts is None else contexts:
                    row = whole(common | _measure(decoder, context))
                    us = row["us"]
                    row |= {"gb_s": round(nbytes / us / 1e3, 2), "gop_s": round(operations / us / 1e3, 1)}
                    rows.append(row | {"ratio_floor": round(us / floor, 3)})
    return rows


def _operations(decoder: Decoder) -> float:
    """Products and sums of one token in the decoder's matrices; an int8 head takes two tokens for each."""
    total = 0.0
    products: list[Any] = list(decoder.products())
    for product in products:
        times = 2 if isinstance(product, Int8Rows) else 1
        for matrix in product.matrices:
            rows, cols = matrix.shape
            total += 2.0 * times * rows * cols * matrix.planes
    return total


def write_random_model(folder: Path, sizes: dict[str, int], *, planes: int = 1, seed: int = 0) -> int:
    """A packed Llama with random codes, unit-sized outputs and int8 embeddings; returns its parameters.

    Codes are cut out of a few megabytes of random ones: the time of a product does not depend on them.
    """
    rng = np.random.default_rng(seed)
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    tied = bool(sizes.get("tie_word_embeddings"))
    linear: dict[str, tuple[int, int]] = {}
    norms = ["model.norm.weight"]
    for layer in range(sizes["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for which, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            linear[f"{block}self_attn.{which}_proj.weight"] = (rows, hidden)
        for which, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            linear[f"{block}mlp.{which}_proj.weight"] = shape
        norms += [f"{block}input_layernorm.weight", f"{block}post_attention_layernorm.weight"]
    tables = ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, "hidden_act": "silu",
        "tie_word_embeddings": tied, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 0,
        "quantization_config": {
            "quant_method": "tritpress", "version": 1, "group_size": GROUP_SIZE, "transposed": [], "tied": [],
            "tensors": {
                name: {"shape": list(shape), "planes": planes, "group_size": GROUP_SIZE}
                for name, shape in linear.items()
            },
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    stored: list[tuple[str, str, tuple[int, ...]]] = [(name, "F16", (hidden,)) for name in norms]
    for name, (rows, cols) in linear.items():
        stored.append((f"{name}.codes", "U8", (planes, rows, code_bytes(cols))))
        stored.append((f"{name}.scales", "F16", (planes, rows, group_count(cols, GROUP_SIZE))))
    for name in tables:
        stored.append((f"{name}.q8", "I8", (sizes["vocab_size"], hidden)))
        stored.append((f"{name}.q8_scale", "F16", (sizes["vocab_size"],)))
    valid = np.array([b for b in range(256) if not b & (b >> 1) & 0x55], dtype=np.uint8)
    pool = valid[rng.integers(0, len(valid), 4 << 20)]
    rows8 = rng.integers(-127, 128, 4 << 20, dtype=np.int8)
    layout = lay_out(stored, PACKED_METADATA)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(layout.header)
        for slot in layout.slots:
            count = math.prod(slot.shape)
            if slot.dtype == "F16":
                base, part = slot.name.rsplit(".", 1)
                value = 1.0 if part == "weight" else 1 / 127
                if part == "scales":
                    value = (2 / 3 * planes * linear[base][1]) ** -0.5
                file.write(np.full(count, value, dtype=np.float16).tobytes())
            else:
                source = pool if slot.dtype == "U8" else rows8
                file.write(np.resize(np.roll(source, int(rng.integers(len(source)))), count).tobytes())
    weights = sum(rows * cols for rows, cols in linear.values())
    return weights + len(tables) * sizes["vocab_size"] * hidden + len(norms) * hidden


@dataclass
class Clock:
    """Seconds spent in the products of one decoder."""

    blocks: float = 0.0
    head: float = 0.0


class _Timed:
    """A `PackedMatrix` whose products are timed."""

    def __init__(self, matrix: _core.PackedMatrix, clock: Clock, part: str) -> None:
        self.matrix, self.clock, self.part = matrix, clock, part
        self.nbytes = matrix.nbytes

    def matvec(self, x: np.ndarray, threads: int | None = None) -> np.ndarray:
        return self._run(self.matrix.matvec, x, threads)

    def matmul(self, x: np.ndarray, threads: int | None = None) -> np.ndarray:
        return self._run(self.matrix.matmul, x, threads)

    def _run(self, product: Any, x: np.ndarray, threads: int | None) -> np.ndarray:
        started = time.perf_counter()
        out: np.ndarray = product(x, threads)
        setattr(self.clock, self.part, getattr(self.clock, self.part) + time.perf_counter() - started)
        return out


def time_products(decoder: Decoder) -> Clock:
    """From now on the decoder's kernel calls are counted on the clock returned."""
    clock = Clock()
    products: list[Any] = list(decoder.products())
    for product in products:
        part = "head" if product is products[-1] else "blocks"
        product.matrices = [_Timed(getattr(m, "matrix", m), clock, part) for m in product.matrices]
    return clock


def _prompt_rate(decoder: Decoder) -> float:
    tokens = np.arange(PROMPT) % decoder.architecture.vocabulary
    decoder.reset()
    decoder.forward(tokens[:1])
    seconds = []
    for _ in range(2):
        decoder.reset()
        started = time.perf_counter()
        decoder.forward(tokens)
        seconds.append(time.perf_counter() - started)
    return round(PROMPT / min(seconds), 1)


def _measure(decoder: Decoder, context: int) -> Row:
    """The medians at one length of the context; the cache before it holds random keys and values."""
    told = decoder.architecture
    decoder.reset()
    decoder.reserve(context + TOKENS + 1)
    rng = np.random.default_rng(0)
    for layer in range(told.layers):
        for cache in (decoder.cache.keys[layer], decoder.cache.values[layer]):
            cache[:] = rng.standard_normal(cache.shape, dtype=np.float32)
    sampler = Sampler()
    clock = time_products(decoder)
    totals, products, heads = [], [], []
    for repeat in range(REPEATS + 1):
        decoder.position, token = context, 0
        for _ in range(TOKENS):
            clock.blocks = clock.head = 0.0
            started = time.perf_counter()
            token = sampler(decoder.forward([token]))
            total = time.perf_counter() - started
            if repeat:
                totals.append(1e6 * total)
                products.append(1e6 * (clock.blocks + clock.head))
                heads.append(1e6 * clock.head)
    best = int(np.argmin(totals))
    us, head = float(np.median(totals)), float(np.median(heads))
    rest = float(np.median(np.subtract(totals, products)))
    return {
        "context": context,
        "tokens": TOKENS * REPEATS,
        "tokens_s": round(1e6 / us, 2),
        "us": round(us, 1),
        "matvec_us": round(float(np.median(products)), 1),
        "head_us": round(head, 1),
        "rest_us": round(rest, 1),
        "rest_share": round(rest / us, 4),
        "us_best": round(totals[best], 1),
        "rest_share_best": round(1 - products[best] / totals[best], 4),
    }
