"""The decoder's parts beside a plain account of what each should give."""

from __future__ import annotations

import numpy as np
import pytest
from tritpress.decoder import Sampler, UnsupportedModel, read_architecture
from tritpress.decoder.architecture import Rope
from tritpress.decoder.blocks import ACTIVATIONS
from tritpress.decoder.linear import Beside, Dense, Int8Rows, Part, Ternary
from tritpress.decoder.rope import frequencies, interleave, rotations
from tritpress.decoder.tokens import Stream
from tritpress.errors import InputError

LLAMA = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    "rope",
    [
        Rope("default", 10000.0),
        Rope("linear", 1e6, factor=4.0),
        Rope("llama3", 500000.0, 8.0, 1.0, 4.0, 64),
        Rope("llama3", 500000.0, 32.0, 1.0, 4.0, 8192),
    ],
)
def test_frequencies_are_those_of_transformers(rope: Rope) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    told = {"rope_type": rope.type, "rope_theta": rope.theta}
    if rope.type != "default":
        told |= {"factor": rope.factor}
    if rope.type == "llama3":
        told |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        told |= {"original_max_position_embeddings": rope.original_length}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=told)
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    np.testing.assert_allclose(frequencies(rope, 64), expected, rtol=1e-6)
    assert read_architecture(LLAMA | {"rope_parameters": told}).rope == rope
    old = {k: v for k, v in told.items() if k not in ("rope_theta", "rope_type")} | {"type": rope.type}
    assert read_architecture(LLAMA | {"rope_scaling": old, "rope_theta": rope.theta}).rope == rope


def test_rotation_of_interleaved_rows_is_the_rotation_of_halves() -> None:
    rng = np.random.default_rng(0)
    head = rng.standard_normal(16).astype(np.float32)
    angle = np.float32(37) * frequencies(Rope("default", 10000.0), 16)
    a, b = head[:8], head[8:]
    expected = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])
    order = interleave(1, 16)
    turned = head[order].view(np.complex64) * rotations(frequencies(Rope("default", 10000.0), 16), 37, 38)[0]
    np.testing.assert_allclose(turned.view(np.float32), expected[order], atol=1e-6)
    assert sorted(interleave(3, 16)) == list(range(48))


def _part(rng, rows: int, cols: int, planes: int, group_size: int, bias: bool) -> Part:
    from tritpress import _core

    w = rng.standard_normal((rows, cols)).astype(np.float32)
    codes, scales = _core.ternarize(w, planes=planes, group_size=group_size)
    added = rng.standard_normal(rows).astype(np.float32) if bias else None
    return Part(codes, scales, group_size, cols, added)


def test_a_stack_is_its_parts_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    parts = [
        _part(rng, 20, 70, 1, 64, False), _part(rng, 7, 70, 2, 64, True), _part(rng, 9, 70, 1, 64, True),
        _part(rng, 5, 70, 2, 0, False),
    ]  # fmt: skip
    stack = Ternary(parts, threads=1)
    assert len(stack.matrices) == 3 and stack.rows == 41
    x = rng.standard_normal((3, 70)).astype(np.float32)
    expected = np.concatenate([Ternary([part], threads=1)(x) for part in parts], axis=1)
    np.testing.assert_array_equal(stack(x), expected)
    np.testing.assert_array_equal(stack(x[1]), expected[1])
    weight = rng.standard_normal((4, 70)).astype(np.float32)
    beside = Beside([stack, Dense(weight)])
    np.testing.assert_allclose(beside(x)[:, 41:], x @ weight.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(beside(x[1])[:41], expected[1])


@pytest.mark.parametrize("cols", [1, 5, 63, 64, 130])
def test_int8_rows_are_exact_but_for_the_activations(cols: int) -> None:
    rng = np.random.default_rng(cols)
    q8 = rng.integers(-127, 128, (300, cols)).astype(np.int8)
    q8[0], q8[1], q8[2] = 127, -127, 0
    scales = (10.0 ** rng.uniform(-5, 0, 300)).astype(np.float16)
    rows = Int8Rows(threads=1)
    rows.append(q8[:170], scales[:170])
    rows.append(q8[170:], scales[170:])
    x = rng.standard_normal((4, cols)).astype(np.float32)
    x[3] = 0
    weight = q8.astype(np.float64) * scales.astype(np.float64)[:, None]
    # an activation is off by at most its step's step: max |x| / 127 / 2 / 127 / 2
    bound = np.abs(weight).sum(axis=1) * np.abs(x).max(axis=1, keepdims=True) / (4 * 127**2)
    error = np.abs(rows(x) - x.astype(np.float64) @ weight.T)
    assert (error <= bound * 1.01 + 1e-5 * np.abs(weight).sum(axis=1)).all()
    np.testing.assert_array_equal(rows(x[1]), rows(x)[1])
    assert not rows(x[3]).any()
    for plane, value in enumerate(3.0 ** np.arange(6)):
        assert (rows.matrices[0].scales()[plane] == value).all()
    np.testing.assert_array_equal(rows.matrices[0].dequantize(), q8[:170])


def test_activations() -> None:
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-200, 200, 4001, dtype=np.float32)
    for name, function in ACTIVATIONS.items():
        with np.errstate(over="ignore"):
            found = function(x)
        np.testing.assert_allclose(found, ACT2FN[name](torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_numpys_products_run_on_one_thread_inside_alone() -> None:
    from tritpress.decoder import blas

    found = blas._threads()
    if found is None:
        pytest.skip("numpy is not built on OpenBLAS here")
    get, put = found
    before = get()
    try:
        put(2)
        most = get()
        with pytest.raises(KeyError), blas.one_thread():
            assert get() == 1
            raise KeyError
        assert get() == most
    finally:
        put(before)


def test_sampler() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(3000).astype(np.float32)
    assert Sampler()(logits) == logits.argmax()
    assert Sampler(1.0, 1e-9)(logits) == logits.argmax()  # never none
    one, two = Sampler(0.8, 0.9, seed=3), Sampler(0.8, 0.9, seed=3)
    assert [one(logits) for _ in range(20)] == [two(logits) for _ in range(20)]
    for top_p in (0.3, 0.999):  # few tokens, and more than are looked at first
        share = np.exp(logits.astype(np.float64))
        share /= share.sum()
        order = np.argsort(-share)
        allowed = set(order[: int(np.searchsorted(np.cumsum(share[order]), top_p)) + 1].tolist())
        sampler = Sampler(1.0, top_p, seed=1)
        drawn = [sampler(logits) for _ in range(400)]
        assert set(drawn) <= allowed and len(set(drawn)) > 50
        assert len(allowed) > 1024 or top_p == 0.3
    few = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(1.0, 1.0, seed=2)
    counts = np.bincount([sampler(few) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)
    assert Sampler(1e-9, 1.0)(logits) == logits.argmax()


def test_streamed_text_is_the_text() -> None:
    text = "naïve 日本語 — 🙂 done"
    raw = text.encode()

    def decode(tokens) -> str:  # tokens are bytes
        return bytes(tokens).decode("utf-8", errors="replace")

    pieces: list[str] = []
    stream = Stream(decode, pieces.append)
    for byte in raw:
        stream.put(byte)
    stream.end()
    assert "".join(pieces) == text and len(pieces) > 10 and not any("\ufffd" in p for p in pieces)
    pieces.clear()
    stream = Stream(decode, pieces.append)
    for byte in "né".encode()[:-1]:
        stream.put(byte)
    assert pieces == ["n"]
    stream.end()
    assert "".join(pieces) == "n\ufffd"


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
QWEN2 = {"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": True}


def test_what_a_config_means() -> None:
    told = read_architecture(LLAMA)
    assert (told.layers, told.kv_heads, told.head_size, told.tied, told.gpt2) == (2, 4, 16, False, False)
    mistral = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2}
    assert read_architecture(mistral).windows == (4096, 4096)
    assert read_architecture(mistral | {"sliding_window": None}).windows == (None, None)
    qwen3 = {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 2}
    assert read_architecture(qwen3).head_size == 128 and read_architecture(qwen3).query_key_norms
    gpt2 = {"model_type": "gpt2", "vocab_size": 10, "n_embd": 8, "n_head": 2, "n_layer": 1}
    assert read_architecture(gpt2).inner == 32 and read_architecture(gpt2).tied


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (QWEN2 | {"layer_types": 3}, "layer_types"),
    ],
)
def test_what_is_left_to_transformers(change: dict, sentence: str) -> None:
    with pytest.raises(UnsupportedModel, match=sentence):
        read_architecture(LLAMA | change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": "64"}, "hidden_size must be"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"num_key_value_heads": 3}, "do not make an attention"),
        ({"rope_theta": 0}, "rope_theta must be"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be"),
        ({"vocab_size": None}, "vocab_size must be"),
        ({"hidden_size": 2, "num_key_value_heads": 4}, "4 heads of 0"),
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers is 2147483647, more than"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": "abc"}}, "original_max_position"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "must differ"),
        (QWEN2 | {"max_window_layers": "x"}, "max_window_layers"),
    ],
)
def test_a_config_that_makes_no_sense(change: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_architecture(LLAMA | change)
