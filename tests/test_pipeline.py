"""The seven steps on a tiny random model: outputs, report and events against independent readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tritpress as tp
from packed_decoder import decode, read_folder

REPORT_KEYS = {
    "run", "model", "before", "after", "ratio_file", "ratio_layers", "ratio_disk", "bits_per_weight",
    "planes_mean", "sparsity", "zeros_all_planes", "perplexity_change", "perplexity_interval",
    "accuracy_kept", "gates", "layers", "gradient_norms", "handoff", "outputs", "steps", "fine_tuning",
    "text", "config", "seed", "versions", "machine",
}  # fmt: skip


@pytest.fixture(scope="module")
def pressed(tiny_llama_dir: Path, text_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("pressed")
    events: list[dict] = []
    config = tp.CompressionConfig(
        planes=2, text=[str(text_dir)], tokens=2048, finetune=True, calibration_tokens=2048,
        evaluation_tokens=4096, window=128,
    )  # fmt: skip
    report = tp.compress(tiny_llama_dir, out / "out", config, on_event=events.append, runs_dir=out / "runs")
    return tiny_llama_dir, out / "out", report, events


def test_the_report_is_whole_and_on_disk(pressed) -> None:
    _, out, report, _ = pressed
    assert set(report) >= REPORT_KEYS
    assert report == json.loads((out / "report.json").read_text())
    assert [step["n"] for step in report["steps"]] == [1, 2, 3, 4, 5, 6, 7]
    assert not any(step["skipped"] for step in report["steps"])
    assert {gate["name"] for gate in report["gates"]} == {
        "ratio", "accuracy", "perplexity", "sparsity", "gradient_flow",
    }  # fmt: skip
    for gate in report["gates"]:
        assert gate["passed"] in (True, False) and isinstance(gate["actual"], float)
        assert gate["passed"] or gate["advice"]


def test_an_independent_decoder_gets_the_dequantized_weights_bit_for_bit(pressed) -> None:
    _, out, report, _ = pressed
    decoded = decode(out / "packed")
    dequantized = read_folder(out / "dequantized")
    assert {layer["name"] for layer in report["layers"]} <= set(decoded)
    for name, weight in dequantized.items():
        assert weight.dtype == np.float16
        np.testing.assert_array_equal(decoded[name], weight, err_msg=name)


def test_the_sizes_in_the_report_are_those_on_disk(pressed) -> None:
    source, out, report, _ = pressed
    written = sum(path.stat().st_size for path in (out / "packed").glob("*.safetensors"))
    on_disk = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert report["after"]["packed"]["bytes"] == written
    assert report["ratio_file"] == pytest.approx(report["before"]["bytes_fp32"] / written)
    assert report["ratio_disk"] == pytest.approx(on_disk / written)
    assert report["planes_mean"] == 2.0


def test_sparsity_is_that_of_the_codes(pressed) -> None:
    _, out, report, _ = pressed
    settings = json.loads((out / "packed" / "config.json").read_text())["quantization_config"]
    stored = read_folder(out / "packed")
    zeros = total = 0
    for name, about in settings["tensors"].items():
        codes = stored[f"{name}.codes"]
        trits = np.stack([(codes >> (2 * s)) & 3 for s in range(4)], axis=-1).reshape(*codes.shape[:-1], -1)
        trits = trits[..., : about["shape"][-1]]
        zeros, total = zeros + int((trits == 1).sum()), total + trits.size
    assert report["sparsity"] == pytest.approx(zeros / total, abs=1e-9)


def test_stock_transformers_agrees_with_the_packed_model(pressed) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    _, out, _, _ = pressed
    stock = AutoModelForCausalLM.from_pretrained(out / "dequantized", dtype=torch.float32).eval()
    packed = tp.load(out / "packed", activation_bits=None)
    assert isinstance(packed, torch.nn.Module)
    ids = torch.arange(64).unsqueeze(0) * 7 % 2048
    with torch.no_grad():
        a, b = stock(ids).logits, packed(ids).logits
    assert float((a - b).norm() / a.norm()) <= 1e-3


def test_the_reported_perplexity_is_that_of_stock_transformers(pressed) -> None:
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    _, out, report, _ = pressed
    runs = out.parent / "runs" / report["run"]
    (windows_file,) = runs.rglob("held_out_windows.npy")
    windows = torch.from_numpy(np.load(windows_file))
    stock = AutoModelForCausalLM.from_pretrained(out / "dequantized", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = torch.cat([stock(batch).logits for batch in windows.split(4)])
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    assert report["after"]["dequantized"]["perplexity"] == pytest.approx(float(loss.exp()), rel=5e-3)


def test_the_events_tell_the_whole_run(pressed) -> None:
    _, _, report, events = pressed
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = {event["type"] for event in events}
    assert kinds >= {
        "run.started", "step.started", "step.finished", "layer.finished", "evaluation", "finetune.step",
        "gradient", "gate", "output", "run.finished", "model", "plan", "figures", "handoff",
    }  # fmt: skip
    gates = {e["name"]: e["actual"] for e in events if e["type"] == "gate"}
    assert gates == {gate["name"]: gate["actual"] for gate in report["gates"]}
    done = events[-1]
    assert done["type"] == "run.finished"
    assert done["exit_code"] == (0 if all(gate["passed"] for gate in report["gates"]) else 3)


def test_a_dashboard_elsewhere_takes_every_event_of_a_run(pressed) -> None:
    """What the callback pushes is held against the schema: one event that is refused would end the push."""
    from tritpress.dashboard.api.checks import check_event
    from tritpress.events import fold, initial_state

    state = initial_state()
    for seq, event in enumerate(pressed[3], 1):
        event = json.loads(json.dumps({**event, "seq": seq}))
        check_event(event, state)
        fold(state, event, strict=True)
    assert state["status"] == "finished" and 0 < state["finetune"][0]["epoch"] < 1


def test_a_second_run_into_the_same_place_is_refused(pressed) -> None:
    source, out, _, _ = pressed
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(tp.TritpressError, match=r"not empty|overwrite"):
        tp.compress(source, out, tp.CompressionConfig(planes=1), runs_dir=out.parent / "runs")
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
