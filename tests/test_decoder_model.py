"""The decoder's logits are those of `tritpress.load` on the same packed directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import save_tiny_model
from formats_helpers import pack
from tritpress.decoder import Decoder, UnsupportedModel
from tritpress.decoder.linear import Int8Rows, Ternary
from tritpress.errors import InputError

KINDS = ["tiny_llama_dir", "tiny_qwen3_dir", "tiny_gpt2_dir", "tiny_sharded_dir"]
TOKENS = np.random.default_rng(0).integers(3, 2000, 150)
SIZES = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def expected_logits(packed: Path, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """float32 [n, vocabulary] of `tritpress.load`."""
    import torch
    from tritpress.loading import load

    with torch.no_grad():
        return load(packed)(torch.from_numpy(tokens)[None]).logits[0].numpy()


def compare(found: np.ndarray, expected: np.ndarray, *, close: float = 1e-6) -> None:
    """Positions agree to float rounding until an activation is rounded to int8 the other way (a step in 127
    of one input), which that position shows and, through its keys and values, a little, all later ones. The
    likeliest token is the same unless two are closer than the difference.
    """
    distance = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert distance.min() <= close and np.median(distance) <= close + 4e-4, np.median(distance)
    assert distance.max() <= 0.02, distance.max()
    first, second = np.sort(expected, axis=-1)[:, [-1, -2]].T
    clear = first - second > 4 * np.abs(found - expected).max(axis=-1)
    assert clear.mean() > 0.5
    assert (found.argmax(axis=-1) == expected.argmax(axis=-1))[clear].all()


def check(packed: Path, *, close: float = 1e-6) -> Decoder:
    """At once, token by token, and in uneven pieces that cross the cache's blocks."""
    expected = expected_logits(packed)
    decoder = Decoder.open(packed, threads=1, cache="float32")
    compare(decoder.forward(TOKENS, all_positions=True), expected, close=close)
    decoder.reset()
    compare(np.stack([decoder.forward([token]) for token in TOKENS]), expected, close=close)
    decoder.reset()
    for start, stop in ((0, 1), (1, 63), (63, 66), (66, 149), (149, 150)):
        last = decoder.forward(TOKENS[start:stop])
        assert last.shape == (2048,) and decoder.position == stop
        distance = np.linalg.norm(last - expected[stop - 1]) / np.linalg.norm(expected[stop - 1])
        assert distance <= 0.02
    return decoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [{}, {"planes": 1, "embeddings": "fp16"}], ids=["mixed planes", "one plane"])
def test_logits_are_those_of_load(kind: str, plan: dict, request, tmp_path: Path) -> None:
    pack(request.getfixturevalue(kind), tmp_path, **plan)
    decoder = check(tmp_path / "packed")
    matrices = [len(p.matrices) for p in decoder.products() if isinstance(p, Ternary)]
    assert len(matrices) == len(decoder.products()) - 1 == 4 * decoder.architecture.layers
    assert max(matrices) == (1 if plan or decoder.architecture.gpt2 else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_in_float16_adds_little_to_the_rounding_of_activations(kind, request, tmp_path) -> None:
    import torch
    from tritpress.loading import load

    pack(request.getfixturevalue(kind), tmp_path)
    with torch.no_grad():
        model = load(tmp_path / "packed", activation_bits=None)
        exact = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    halves, wide = (Decoder.open(tmp_path / "packed", cache=dtype) for dtype in ("float16", "float32"))
    assert halves.cache.nbytes * 2 == wide.cache.nbytes
    far = {}
    for decoder in (halves, wide):
        found = decoder.forward(TOKENS, all_positions=True)
        decoder.reset()
        one_by_one = np.stack([decoder.forward([token]) for token in TOKENS])
        far[decoder] = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (found, one_by_one)]
    np.testing.assert_allclose(far[halves], far[wide], rtol=0.1)
    assert max(far[halves]) < 0.05


def test_numbers_beyond_float16_are_held_as_its_largest(tiny_llama_dir: Path, tmp_path: Path) -> None:
    pack(tiny_llama_dir, tmp_path)
    cache = Decoder.open(tmp_path / "packed").cache
    k = np.full((cache.keys[0].shape[1], cache.keys[0].shape[2]), 1e6, np.float32)
    cache.put(0, 3, k, -k)
    cache.put_many(0, 4, k[None], -k[None])
    keys, values = cache.of_head(0, 1, 3, 5)
    assert keys.dtype == values.dtype == np.float32
    assert (keys == 65504).all() and (values == -65504).all()
    with pytest.raises(InputError, match="float16 or float32, not 'int8'"):
        Decoder.open(tmp_path / "packed", cache="int8")


@pytest.mark.parametrize("kind", ["tiny_llama_dir", "tiny_gpt2_dir"])
def test_a_large_int8_head_stays_int8(kind: str, request, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tritpress.decoder.weights.DENSE_HEAD_WEIGHTS", 0)
    monkeypatch.setattr("tritpress.decoder.weights.INT8_BLOCK_ROWS", 600)
    pack(request.getfixturevalue(kind), tmp_path)
    decoder = check(tmp_path / "packed", close=4e-4)  # the float16 rounding of decoded rows is left out
    head = decoder.products()[-1]
    assert isinstance(head, Int8Rows) and len(head.matrices) == 4


def variants() -> dict[str, object]:
    from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    llama3 = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    linear = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}
    gpt2 = {"vocab_size": 2048, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return {
        "llama3 rope, head size apart, biases": LlamaConfig(
            **SIZES, rope_parameters=llama3, head_dim=32, attention_bias=True, mlp_bias=True
        ),
        "linear rope, one head for keys": LlamaConfig(
            **(SIZES | {"num_key_value_heads": 1}), rope_parameters=linear, tie_word_embeddings=True
        ),
        "mistral, window of 40": MistralConfig(**SIZES, sliding_window=40),
        "mistral, single heads, window of 70": MistralConfig(
            **(SIZES | {"num_key_value_heads": 4}), sliding_window=70, hidden_act="relu"
        ),
        "qwen2, biases of q, k and v": Qwen2Config(**SIZES),
        "qwen3, window in the second block": Qwen3Config(
            **SIZES, head_dim=16, use_sliding_window=True, sliding_window=20, max_window_layers=1
        ),
        "gpt2, scaled by layer": GPT2Config(**gpt2, n_positions=160, scale_attn_by_inverse_layer_idx=True),
        "gpt2, unscaled, inner size": GPT2Config(
            **gpt2, n_positions=150, scale_attn_weights=False, n_inner=100, activation_function="silu"
        ),
    }


@pytest.mark.parametrize("number", range(8))
def test_every_option_is_followed(number: int, tmp_path: Path) -> None:
    config = list(variants().values())[number]
    pack(save_tiny_model(config, tmp_path / "model"), tmp_path, planes=1)
    check(tmp_path / "packed")


def test_the_cache_grows_without_loss(tiny_llama_dir: Path, tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    for i, model in enumerate((tiny_llama_dir, tiny_gpt2_dir)):
        pack(model, tmp_path / str(i), planes=1)
        small, large = (Decoder.open(tmp_path / str(i) / "packed", threads=1) for _ in range(2))
        large.reserve(200)
        room = large.nbytes
        for token in TOKENS[:70]:
            a, b = small.forward([token]), large.forward([token])
            assert np.abs(a - b).max() <= 1e-4
        assert large.nbytes == room and small.cache.capacity >= 70
        large.reset()
        large.forward(TOKENS[::-1])  # what another sequence left behind is not seen
        large.reset()
        assert np.abs(large.forward(TOKENS[:70]) - a).max() <= 1e-4


def test_what_it_refuses(tiny_llama_dir: Path, tiny_moe_dir: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    pack(tiny_moe_dir, tmp_path / "moe")
    with pytest.raises(UnsupportedModel, match="mixtral"):
        Decoder.open(tmp_path / "moe" / "packed")
    pack(tiny_llama_dir, tmp_path)
    packed = tmp_path / "packed"
    decoder = Decoder.open(packed)
    for tokens, sentence in (([], "at least one"), ([2048], "token 2048 is not"), ([-1], "token -1 is not")):
        with pytest.raises(InputError, match=sentence):
            decoder.forward(tokens)
    with pytest.raises(InputError, match="513 tokens are more than the 512"):
        decoder.forward(np.ones(513, np.int64))
    file = packed / "model.safetensors"
    whole = load_file(file)
    meta = {"format": "pt", "tritpress": "1"}
    save_file({**whole, "model.layers.0.extra.weight": np.ones(3, np.float16)}, file, metadata=meta)
    with pytest.raises(UnsupportedModel, match="extra"):
        Decoder.open(packed)
    save_file({k: v for k, v in whole.items() if k != "model.norm.weight"}, file, metadata=meta)
    with pytest.raises(InputError, match=r"lacks weights that the model needs: model\.norm\.weight"):
        Decoder.open(packed)
    save_file({**whole, "model.norm.weight": np.ones(3, np.float16)}, file, metadata=meta)
    with pytest.raises(InputError, match=r"model\.norm\.weight is \[3\] where config\.json makes it \[64\]"):
        Decoder.open(packed)
