"""Llama models of any size with random weights in bfloat16 shards, written tensor by tensor.

    python tests/large_models.py FOLDER [--size 350m]

The tokenizer is the reference model's, so any text can be given to them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZES = {
    "60m": (512, 1408, 16, 8_000),
    "350m": (1024, 2816, 22, 32_000),
    "1b": (2048, 5632, 20, 32_000),
    "2b": (2560, 6912, 24, 32_000),
}
"""Name -> (hidden, intermediate, blocks, vocabulary)."""

SHARD = 256 << 20


def shapes_of(hidden: int, inner: int, blocks: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(blocks):
        at = f"model.layers.{i}."
        for projection in "qkvo":
            yield f"{at}self_attn.{projection}_proj.weight", (hidden, hidden)
        yield f"{at}mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}mlp.up_proj.weight", (inner, hidden)
        yield f"{at}mlp.down_proj.weight", (hidden, inner)
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def make_llama(folder: Path, hidden: int, inner: int, blocks: int, vocabulary: int) -> Path:
    """A Llama directory with an untied head; heads of 64, 512 positions."""
    from tritpress.reference import reference_model_path

    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": blocks, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64, "head_dim": 64, "vocab_size": vocabulary,
        "max_position_embeddings": 512, "tie_word_embeddings": False, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_model_path() / name, folder / name)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in shapes_of(hidden, inner, blocks, vocabulary):
        nbytes = 2 * int(np.prod(shape))
        if filled and filled + nbytes > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += nbytes
    random = np.random.default_rng(0)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, position = {}, 0
        for name, shape in shard:
            nbytes = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + nbytes]}
            position += nbytes
            weight_map[name] = file
        raw = json.dumps(header).encode()
        with open(folder / file, "wb") as out:
            out.write(len(raw).to_bytes(8, "little") + raw)
            for _, shape in shard:
                if len(shape) == 1:
                    values = np.ones(shape, dtype=np.float32)
                else:
                    values = random.standard_normal(shape, dtype=np.float32)
                    values *= 1.0 / np.sqrt(shape[1])
                out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="350m")
    arguments = parser.parse_args()
    make_llama(arguments.folder, *SIZES[arguments.size])
