"""`load` and `generate`: the packed model gives what the dequantized one gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import make_model, pack, small_tensors
from tritpress.errors import InputError, UsageError
from tritpress.formats.dequantized import write_dequantized
from tritpress.formats.huggingface import load_original, load_tokenizer, module_of, modules_of
from tritpress.formats.source import open_source
from tritpress.formats.targets import find_targets
from tritpress.generate import generate
from tritpress.loading import load
from tritpress.reference import is_reference_model, reference_model_path

KINDS = ["tiny_llama_dir", "tiny_qwen3_dir", "tiny_gpt2_dir", "tiny_sharded_dir", "tiny_moe_dir"]


@pytest.fixture(scope="module", params=KINDS)
def outputs(request, tmp_path_factory) -> tuple[Path, Path, Path]:
    """(source, packed, dequantized) of each kind of model."""
    model = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("outputs")
    source, _, _ = pack(model, folder)
    write_dequantized(folder / "packed", source, folder / "dequantized")
    return model, folder / "packed", folder / "dequantized"


def _logits(model):
    import torch

    tokens = torch.from_numpy(np.random.default_rng(0).integers(3, 2000, (2, 33)))
    with torch.no_grad():
        return model(tokens).logits


def _distance(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_logits_are_those_of_the_dequantized_model_in_stock_transformers(outputs) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    _, packed, dequantized = outputs
    stock = AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32)
    expected = _logits(stock)
    assert _distance(_logits(load(packed, activation_bits=None)), expected) <= 1e-5
    assert 0 < _distance(_logits(load(packed)), expected) <= 0.05  # int8 activations cost a little
    assert AutoModelForCausalLM.from_pretrained(dequantized).dtype == torch.float16


def test_pressed_layers_stay_packed(outputs) -> None:
    import torch
    from tritpress.nn.ternary_linear import TernaryLinear

    source, packed, _ = outputs
    model = load(packed)
    layers = [module for module in model.modules() if isinstance(module, TernaryLinear)]
    assert layers and isinstance(model, torch.nn.Module) and not model.training
    targets = [target.name for target in find_targets(open_source(source))]
    assert len(layers) == len(modules_of(load_original(source), targets))
    assert all(not buffer.is_meta for buffer in model.buffers())
    assert all(not p.is_meta and p.dtype == torch.float32 and 0 not in p.stride() for p in model.parameters())
    tied = getattr(model.config, "tie_word_embeddings", False)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == bool(tied)


def test_generation_is_the_same_packed_or_not(outputs) -> None:
    _, packed, dequantized = outputs
    first = generate(packed, "def main(", max_new_tokens=6, activation_bits=None)
    second = generate(dequantized, "def main(", max_new_tokens=6)
    assert first["text"] == second["text"] and first["tokens"] == second["tokens"] <= 6
    assert first["tokens_per_s"] > 0


def test_drawn_text_follows_the_seed(tiny_llama_dir: Path) -> None:
    def drawn(seed: int, **more) -> str:
        options = {"max_new_tokens": 12, "temperature": 1.5, "seed": seed} | more
        return generate(tiny_llama_dir, "import", **options)["text"]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, top_p=1e-6) == drawn(2, top_p=1e-6)  # only the likeliest is left


def test_generation_keeps_to_the_models_length(tiny_llama_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama_dir)
    prompt = tokenizer.decode(tokenizer("import os\n" * 500)["input_ids"][:500])
    length = len(tokenizer(prompt)["input_ids"])
    long = generate(tiny_llama_dir, prompt, max_new_tokens=1000)
    assert long["tokens"] == 512 - length or long["stopped"] == "eos"
    with pytest.raises(InputError, match="shorten it"):
        generate(tiny_llama_dir, "x y " * 600, max_new_tokens=4)
    assert generate(tiny_llama_dir, "", max_new_tokens=2)["tokens"] in (1, 2)


@pytest.mark.parametrize(
    "option",
    [
        {"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0},
        {"seed": -1}, {"seed": 2**63},
    ],
)
def test_bad_generation_options(tiny_llama_dir: Path, option: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        generate(tiny_llama_dir, "x", **option)


def test_the_reference_model_opens_and_writes_python() -> None:
    path = reference_model_path()
    assert is_reference_model(path) and not is_reference_model(path.parent)
    assert open_source(path).parameters == 5_344_512
    text = generate(path, "def __init__(self", max_new_tokens=12)["text"]
    assert ":" in text or "," in text


def test_a_source_name_finds_its_module(tiny_gpt2_dir: Path) -> None:
    model = load_original(tiny_gpt2_dir)
    path, module = module_of(model, None, "transformer.h.1.mlp.c_fc.weight")
    assert path == "transformer.h.1.mlp.c_fc" and tuple(module.weight.shape) == (64, 256)
    assert (
        module_of(model, None, "h.1.mlp.c_fc.weight")[1] is module
    )  # as the bare model's checkpoints say it
    with pytest.raises(InputError, match="belongs to no module"):
        module_of(model, None, "h.9.mlp.c_fc.weight")


def test_a_bare_models_names_load(tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    """The names without `transformer.`, as the published GPT-2 has them, with its old mask tables."""
    import shutil

    from safetensors.numpy import load_file, save_file

    bare = tmp_path / "bare"
    shutil.copytree(tiny_gpt2_dir, bare)
    tensors = load_file(bare / "model.safetensors")
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 256, 256), np.float32))
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    source, _, _ = pack(bare, tmp_path / "a")
    pack(tiny_gpt2_dir, tmp_path / "b")
    assert source.parameters == open_source(tiny_gpt2_dir).parameters
    assert _distance(_logits(load(tmp_path / "a/packed")), _logits(load(tmp_path / "b/packed"))) == 0


def test_stacked_experts_are_loaded_dense(tmp_path: Path) -> None:
    from conftest import save_tiny_model
    from transformers import GptOssConfig

    config = GptOssConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, max_position_embeddings=4096 * 32,
        bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    source, plan, _ = pack(save_tiny_model(config, tmp_path / "m"), tmp_path)
    assert any(planned.experts == [4] and planned.transposed for planned in plan.tensors.values())
    write_dequantized(tmp_path / "packed", source, tmp_path / "dequantized")
    packed, dequantized = (
        load(tmp_path / "packed", activation_bits=None),
        load_original(tmp_path / "dequantized"),
    )
    assert _distance(_logits(packed), _logits(dequantized)) <= 1e-5


def test_missing_weights_are_never_filled_by_chance(tiny_llama_dir: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    source = tmp_path / "plain"
    shutil.copytree(tiny_llama_dir, source)
    tensors = load_torch(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_torch(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights that the model needs: model\.norm\.weight"):
        load(source)
    pack(tiny_llama_dir, tmp_path)
    file = tmp_path / "packed" / "model.safetensors"
    stored = load_file(file)
    del stored["model.norm.weight"]
    save_file(stored, file, metadata={"format": "pt", "tritpress": "1"})
    with pytest.raises(InputError, match=r"lacks weights that the model needs: model\.norm\.weight"):
        load(tmp_path / "packed")


def test_what_transformers_cannot_open_is_one_sentence(tmp_path: Path, tiny_llama_dir: Path) -> None:
    config = {
        "architectures": ["NoSuchModel"],
        "model_type": "no-such-model",
        "auto_map": {"AutoModel": "x.Y"},
    }
    model = make_model(tmp_path / "m", small_tensors(np.random.default_rng(0)), config)
    (model / "x.py").write_text("raise SystemExit('code of the model was run')")
    with pytest.raises(InputError, match="transformers cannot open"):
        load(model)
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(model)
    (model / "tokenizer.json").write_text("{not json")
    with pytest.raises(InputError, match=r"tokenizer in .* cannot be opened"):
        load_tokenizer(model)
    with pytest.raises(InputError, match="activation_bits"):
        load(tiny_llama_dir, activation_bits=4)


def test_a_weight_of_another_shape_than_the_configuration_says(tmp_path: Path, tiny_llama_dir: Path) -> None:
    model = shutil.copytree(tiny_llama_dir, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 151}))
    with pytest.raises(InputError) as caught:
        load_original(model)
    words = "layers.0.mlp.down_proj.weight is [64, 150] in the weight files, but by config.json it is "
    assert f"{words}[64, 151]" in str(caught.value) and "\n" not in str(caught.value)
