"""`tritpress plan`: what would be done, before it is done; plans saved, edited, given back, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tritpress as tp
from tritpress.cli import app
from tritpress.plan import Plan
from tritpress.reference import reference_model_path
from tritpress.runs.launch import _start
from typer.testing import CliRunner

REFERENCE = reference_model_path()
FIRST = "model.layers.0.mlp.down_proj.weight"


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="tritpress")


def told(*words: object) -> dict:
    result = call("plan", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    told(REFERENCE, "--ratio", 8, "--method", "fast", "-o", tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_the_plan_without_text_or_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tritpress.steps.work.Work.torch_missing", "torch not installed")
    monkeypatch.chdir(tmp_path)
    found = told(REFERENCE, "--ratio", 8)
    assert found["method"] == "fast" and found["basis"] == "weights" and found["text"] is None
    assert 8.0 <= found["predicted_ratio"] <= 8.08 and found["largest_ratio"] > 8
    assert found["predicted_perplexity_change"] is None and 0 < found["predicted_loss"] < 1
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert len(by_name) >= 42 and by_name[FIRST]["shape"] == [256, 704]
    for tensor in found["tensors"]:
        assert tensor["planes"] in (1, 2, 3) and tensor["bits"] > 2 and tensor["predicted_loss"] > 0
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_what_people_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = call("plan", REFERENCE, "--planes", 2, "--method", "fast", "-o", tmp_path / "my plan.json")
    assert result.exit_code == 0, result.output
    assert FIRST in result.stdout and "256 x 704" in result.stdout and "2 planes" in result.stdout
    assert "perplexity cannot be foretold" in result.stdout
    assert f"--plan '{tmp_path / 'my plan.json'}'" in result.stdout
    assert all(len(line.rstrip()) <= 100 for line in result.stdout.splitlines()[:40])


def test_a_calibrated_plan_foretells_perplexity(tiny_llama_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    settings = tmp_path / "few.toml"
    settings.write_text("calibration_tokens = 1024\nwindow = 128\n")
    found = told(tiny_llama_dir, "--planes", 2, "--text", text_dir, "--config", settings)
    assert found["method"] == "gptq" and found["basis"] == "calibrated" and str(text_dir) in found["text"]
    assert found["predicted_perplexity_change"] >= found["predicted_loss"] > 0


def test_a_plan_given_back_is_foretold_with_the_zeros_it_asks_for(
    tiny_llama_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "few.toml"
    settings.write_text("calibration_tokens = 1024\nwindow = 128\n")
    words = ("--text", text_dir, "--config", settings)
    free = told(tiny_llama_dir, "--planes", 1, *words)["predicted_loss"]
    for number, option in enumerate((("--sparsity", 0.65), ("--threshold", 1.3))):
        plan = tmp_path / f"{number}.json"
        made = told(tiny_llama_dir, "--planes", 1, *option, *words, "-o", plan)
        assert made["predicted_loss"] > 1.05 * free
        again = told(tiny_llama_dir, "--plan", plan, *words)
        assert again["predicted_loss"] == pytest.approx(made["predicted_loss"], rel=1e-4)


def test_an_edited_plan_is_looked_at_again_and_pressed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = json.loads(saved.read_text())
    was = plan["tensors"][FIRST]
    other = 3 if was["planes"] != 3 else 1
    plan["tensors"][FIRST].update(planes=other, group_size=32, sparsity=0.3, max_sparsity=None)
    saved.write_text(json.dumps(plan))
    found = told(REFERENCE, "--plan", saved, "--method", "fast")
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert (by_name[FIRST]["planes"], by_name[FIRST]["group_size"]) == (other, 32)
    assert by_name[FIRST]["predicted_loss"] != was["predicted_loss"]
    config = tp.CompressionConfig(plan=str(saved), method="fast", finetune=False, evaluate=False)
    monkeypatch.setattr(
        "tritpress.runs.launch._start", lambda run: (saved.write_text("of another run"), _start(run))
    )
    report = tp.compress(REFERENCE, tmp_path / "out", config, runs_dir=tmp_path / "runs")
    assert report["config"]["plan"] == str(saved), "it is named, and the run's own copy is read"
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert (layers[FIRST]["planes"], layers[FIRST]["group_size"]) == (other, 32)
    assert layers[FIRST]["sparsity"] == pytest.approx(0.3, abs=0.005)
    assert report["ratio_file"] == pytest.approx(found["predicted_ratio"])


@pytest.mark.parametrize("method", ["fast", "gptq"])
def test_bitnets_fit_takes_a_plan_but_none_that_sets_zeros(
    method: str, tiny_llama_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    path, out, runs = tmp_path / "plan.json", tmp_path / "out", tmp_path / "runs"
    told(tiny_llama_dir, "--planes", 2, "-o", path)
    plan = Plan.load(path)
    name = min(plan.tensors)
    assert plan.tensors[name].max_sparsity is not None
    words = ["compress", tiny_llama_dir, "-o", out, "--plan", path, "--fit", "bitnet", "--method", method]
    words += ["--no-finetune", "--no-eval", "--runs", runs]
    words += ["--text", text_dir] if method == "gptq" else []
    result = call(*words, "--json")
    assert result.exit_code in (0, 3), result.output
    assert all(t["max_sparsity"] is None for t in json.loads(result.stdout)["plan"]["tensors"].values())
    for key in ("threshold", "sparsity"):
        changed = plan.model_copy(deep=True)
        setattr(changed.tensors[name], key, 0.3)
        changed.save(path)
        said = f"gives {name} a {key}, but the fit bitnet sets its own zeros: make it null"
        refused(said, path, *words, "--overwrite")
        refused(said, path, "plan", tiny_llama_dir, "--plan", path, "--fit", "bitnet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["tensors"].update({"lm.weight": p["tensors"][FIRST]}), "lm.weight"),
        (lambda p: p["tensors"].pop(FIRST), f"lacks 1 tensor of the model: {FIRST}"),
        (lambda p: p["tensors"][FIRST].update(rows=255), r"as \[255, 704\], the model as \[256, 704\]"),
        (lambda p: p["tensors"][FIRST].update(planes=4), f"{FIRST}.planes"),
        (lambda p: p["tensors"][FIRST].update(plane=2), f"{FIRST}.plane"),
        (lambda p: p["tensors"][FIRST].update(group_size=48), "must be 32, 64, 128, 256"),
        (lambda p: p["tensors"][FIRST].update(sparsity=1.5), f"{FIRST}.sparsity"),
        (lambda p: p["tensors"][FIRST].update(transposed=True), f"{FIRST} as transposed"),
        (lambda p: p.update(embeddings="int4"), "embeddings"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_sentence(saved: Path, change, said: str) -> None:
    plan = json.loads(saved.read_text())
    change(plan)
    saved.write_text(json.dumps(plan))
    refused(said, saved, "plan", REFERENCE, "--plan", saved, "--method", "fast")
    if "model" in said:  # what only the model tells is found by the worker, in its first step
        out, runs = saved.parent / "out", saved.parent / "runs"
        refused(said, saved, "compress", REFERENCE, "-o", out, "--plan", saved, "--runs", runs, "--no-eval")
        assert not out.exists()


def refused(said: str, plan: Path, *words: object) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert re.search(said, result.stderr) and str(plan) in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_files_that_are_no_plan_and_places_that_cannot_be(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{not json")
    for words, said in (
        (("--plan", tmp_path / "no.json"), "no.json"),
        (("--plan", tmp_path / "none.json"), "there is no plan at"),
        (("-o", saved), "there is a file at"),
        (("-o", tmp_path), "is a folder"),
        (("-o", tmp_path / "none" / "plan.json"), "there is no folder"),
        (("--ratio", 16), "at most"),
        (("--ratio", 8, "--planes", 2), "not both"),
        (("--method", "gptq", "--text", tmp_path / "none"), "there is no text"),
    ):
        before = saved.read_bytes()
        result = call("plan", REFERENCE, *(() if "gptq" in words else ("--method", "fast")), *words)
        assert result.exit_code in (1, 2) and said in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1 and saved.read_bytes() == before
    assert call("plan", REFERENCE, "--method", "fast", "-o", saved, "--overwrite").exit_code == 0
    assert Plan.load(saved).target_ratio == 6.0
