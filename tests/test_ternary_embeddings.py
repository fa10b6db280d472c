"""Embeddings and heads as ternary planes: chosen where cheaper, written, read by every reader, trained
around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritpress as tp
from packed_decoder import decode, read_folder
from tritpress.decoder import Decoder
from tritpress.formats.source import open_source
from tritpress.formats.targets import embedding_targets, find_targets
from tritpress.plan import TensorPlan, make_plan


def plan_with_tables(model: Path, path: Path, planes: int = 2) -> list[str]:
    """Save a plan that presses embeddings and head too; returns their names."""
    source = open_source(model)
    plan = make_plan(source, find_targets(source), tp.CompressionConfig(planes=planes))
    tables = embedding_targets(source)
    for t in tables:
        plan.tensors[t.name] = TensorPlan(name=t.name, rows=t.rows, cols=t.cols, planes=planes, group_size=64)
    plan.save(path)
    return [t.name for t in tables]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_every_reader_takes_them(kind: str, request, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = request.getfixturevalue(f"tiny_{kind}_dir")
    names = plan_with_tables(model, tmp_path / "plan.json", planes=3)
    config = tp.CompressionConfig(plan=str(tmp_path / "plan.json"), evaluate=False, finetune=False)
    report = tp.compress(model, tmp_path / "out", config, runs_dir=tmp_path / "runs")
    assert {layer["name"] for layer in report["layers"]} >= set(names)
    assert all(item["passed"] is not False for item in report["handoff"]), report["handoff"]
    packed, dequantized = tmp_path / "out" / "packed", tmp_path / "out" / "dequantized"
    decoded, dense = decode(packed), read_folder(dequantized)
    for name, weight in dense.items():
        np.testing.assert_array_equal(decoded[name], weight, err_msg=name)
    ids = torch.arange(48).unsqueeze(0) * 7 % 2048
    stock = AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = stock(ids).logits
        ours = tp.load(packed, activation_bits=None)(ids).logits
        kernels = tp.load(packed)(ids).logits
    assert float((ours - wanted).norm() / wanted.norm()) <= 1e-3
    assert float((kernels - wanted).norm() / wanted.norm()) <= 0.1
    decoder = Decoder.open(packed)
    logits = decoder.forward(ids[0].numpy(), all_positions=True)
    assert np.linalg.norm(logits - wanted[0].numpy()) / float(wanted.norm()) <= 0.1


def test_training_goes_on_around_them(tiny_qwen3_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    (name,) = plan_with_tables(tiny_qwen3_dir, tmp_path / "plan.json")
    config = tp.CompressionConfig(
        plan=str(tmp_path / "plan.json"), text=[str(text_dir)], tokens=2048, finetune=True, window=128,
        calibration_tokens=2048, evaluation_tokens=2048,
    )  # fmt: skip
    events: list[dict] = []
    report = tp.compress(
        tiny_qwen3_dir, tmp_path / "out", config, on_event=events.append, runs_dir=tmp_path / "runs"
    )
    assert report["fine_tuning"]["steps"] > 0
    assert all(item["passed"] is not False for item in report["handoff"]), report["handoff"]
    tuned = read_folder(tmp_path / "out" / "packed")
    (codes,) = (tmp_path / "runs").glob("*/work/tensors/*embed_tokens*.safetensors")
    before = read_folder_file(codes)
    for part in ("codes", "scales"):
        np.testing.assert_array_equal(before[part], tuned[f"{name}.{part}"])
    # swept by what errors in its rows cost, before the blocks, which then see what became of it
    begun = [event["name"] for event in events if event["type"] == "layer.started"]
    assert begun[0] == name
    plan = next(event for event in events if event["type"] == "plan")
    losses = {tensor["name"]: tensor["plane_losses"] for tensor in plan["tensors"]}
    assert losses[name][0] > losses[name][1] > losses[name][2] > 0


def read_folder_file(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def test_the_planner_presses_them_where_that_is_cheaper(tiny_llama_dir: Path) -> None:
    source = open_source(tiny_llama_dir)  # nearly all embeddings
    targets = find_targets(source)
    tables = [t.name for t in embedding_targets(source)]
    moments = {
        t.name: {
            "input_moment": np.ones(t.cols, np.float32),
            "output_grad_moment": np.full(t.rows, 1e-3 if t.name not in tables else 1e-9, np.float32),
        }
        for t in (*targets, *embedding_targets(source))
    }
    plan = make_plan(source, targets, tp.CompressionConfig(target_ratio=9.0), moments)
    assert set(tables) <= plan.tensors.keys() and plan.predicted_ratio >= 9.0
    for name in tables:
        moments[name]["output_grad_moment"] = np.full(source.tensors[name].shape[0], 1e3, np.float32)
        moments[name]["int8_loss"] = np.float32([1e-6])
    even = make_plan(source, targets, tp.CompressionConfig(planes=2), moments)
    assert even.embeddings == "int8"
    plan = make_plan(source, targets, tp.CompressionConfig(target_ratio=even.predicted_ratio), moments)
    assert not set(tables) & plan.tensors.keys()
