"""Models of other families, made by config: pressed, opened by stock transformers, generating."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tritpress as tp
from packed_decoder import decode, read_folder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "family", ["tiny_llama_dir", "tiny_qwen3_dir", "tiny_gpt2_dir", "tiny_sharded_dir", "tiny_moe_dir"]
)
def test_data_free(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = request.getfixturevalue(family)
    report = tp.compress(
        source, tmp_path / "out", tp.CompressionConfig(method="fast", finetune=False), runs_dir=tmp_path
    )
    by_gate = {gate["name"]: gate for gate in report["gates"]}
    assert all(by_gate[name]["passed"] is None for name in ("accuracy", "perplexity", "gradient_flow"))
    assert all(by_gate[name]["advice"] for name in ("accuracy", "perplexity", "gradient_flow"))
    skipped = {step["name"]: step["skipped"] for step in report["steps"]}
    assert all(skipped[name] for name in ("baseline", "calibration", "fine-tuning"))

    decoded, dequantized = decode(tmp_path / "out" / "packed"), read_folder(tmp_path / "out" / "dequantized")
    for name, weight in dequantized.items():
        np.testing.assert_array_equal(decoded[name], weight, err_msg=name)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "dequantized", dtype=torch.float32).eval()
    packed = tp.load(tmp_path / "out" / "packed", activation_bits=None)
    ids = torch.arange(48).unsqueeze(0) * 11 % 2048
    with torch.no_grad():
        a, b = stock(ids).logits, packed(ids).logits
    assert float((a - b).norm() / a.norm()) <= 1e-3


@pytest.mark.parametrize("family", ["tiny_gpt2_dir", "tiny_qwen3_dir", "tiny_sharded_dir"])
def test_calibrated_and_generating(
    family: str, request: pytest.FixtureRequest, text_dir: Path, tmp_path: Path
) -> None:
    from tritpress.generate import generate

    source = request.getfixturevalue(family)
    config = tp.CompressionConfig(
        planes=2, text=[str(text_dir)], tokens=1024, finetune=True, calibration_tokens=1024,
        evaluation_tokens=2048, window=64,
    )  # fmt: skip
    report = tp.compress(source, tmp_path / "out", config, runs_dir=tmp_path / "runs")
    assert all(gate["passed"] is not None for gate in report["gates"])
    assert all(item["passed"] for item in report["handoff"]), report["handoff"]
    made = generate(tmp_path / "out" / "packed", "def main", max_new_tokens=8)
    assert made["tokens"] == 8 or made["text"]
    quantized = json.loads((tmp_path / "out" / "packed" / "config.json").read_text())["quantization_config"]
    assert bool(quantized["transposed"]) == (family == "tiny_gpt2_dir")


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba", "openai-gpt"])
def test_models_without_keys_and_values_of_earlier_tokens(
    family: str, text_dir: Path, tmp_path: Path
) -> None:
    """Mamba keeps states in their place and can be timed; GPT-1 keeps nothing and is not. All are trained,
    as such small models are by default, but for the layers of Mamba that are never called.
    """
    from conftest import save_tiny_model
    from transformers import AutoConfig

    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2} if family == "openai-gpt" else {
        "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2,
    }  # fmt: skip
    if family == "jamba":
        sizes = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 1,
            "expert_layer_period": 8, "expert_layer_offset": 7, "mamba_d_state": 8,
            "use_mamba_kernels": False,
        }  # fmt: skip
    source = save_tiny_model(AutoConfig.for_model(family, vocab_size=2048, **sizes), tmp_path / "source")
    config = tp.CompressionConfig(
        planes=1, text=[str(text_dir)], tokens=1024, calibration_tokens=1024, evaluation_tokens=2048,
        window=64,
    )  # fmt: skip
    report = tp.compress(source, tmp_path / "out", config, runs_dir=tmp_path / "runs")
    assert all(item["passed"] for item in report["handoff"]), report["handoff"]
    assert report["fine_tuning"]["tokens"] == 1024
    for measured in (report["before"], *report["after"].values()):
        assert measured["perplexity"] > 1 and measured["tokens_per_s"] > 0
        assert (measured["latency_ms"] is None) == (family == "openai-gpt")
        assert bool(measured["latency_reason"]) == (family == "openai-gpt")
