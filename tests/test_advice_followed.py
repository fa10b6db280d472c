"""Failures planted into runs of the reference model: taking the advice makes every gate pass, or the advice
says that it cannot."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tritpress as tp
from tritpress.api import wait
from tritpress.formats.store import TensorStore
from tritpress.reference import reference_model_path
from tritpress.runs.directory import find_run
from tritpress.runs.launch import resume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FEW = {"calibration_tokens": 8192, "evaluation_tokens": 8192, "finetune": False}


def run(place: Path, **options) -> dict:
    config = tp.CompressionConfig(**FEW, **options)
    return tp.compress(reference_model_path(), place / "the out", config, runs_dir=place / "runs")


def failed(report: dict) -> dict[str, str]:
    return {gate["name"]: gate["advice"] for gate in report["gates"] if gate["passed"] is False}


def follow(advice: str, place: Path) -> None:
    """Run the first command line of an advice as it stands, in a shell, in another folder."""
    line = re.search(r"Run: (.*?--overwrite|.*--press-again \S+)", advice)
    assert line, advice
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(line.group(1), shell=True, cwd=place, capture_output=True, text=True, env=wide)
    assert done.returncode == 0, (line.group(1), done.stdout, done.stderr)
    assert "5 of 5 gates pass" in done.stdout


def test_shuffled_codes(tmp_path: Path) -> None:
    report = run(tmp_path, target_ratio=8.0)
    assert not failed(report)
    made = find_run(report["run"], tmp_path / "runs")
    name = "model.layers.2.mlp.down_proj.weight"
    store = TensorStore(made.work / "tensors")
    codes, scales = store.get(name)
    shuffled = np.random.default_rng(0).permutation(codes, axis=1)
    store.put(name, shuffled, scales, store.info(name))
    (made.work / "step6.json").unlink()
    made.update_run(status="stopped")
    offset = made.events_path.stat().st_size
    report = wait(resume(made), None, offset)
    advice = failed(report)
    assert "perplexity" in advice and all(name in words for words in advice.values())
    follow(advice["perplexity"], tmp_path)


def test_sparsity_forced_to_60_percent(tmp_path: Path) -> None:
    report = run(tmp_path, target_ratio=8.0, sparsity=0.6)
    assert {layer["name"] for layer in report["layers"] if abs(layer["sparsity"] - 0.6) > 0.005} == set()
    advice = failed(report)
    assert "--sparsity asks for it" in advice["sparsity"]
    follow(advice["sparsity"], tmp_path)


def test_a_ratio_of_12(tmp_path: Path) -> None:
    report = run(tmp_path, target_ratio=12.0)
    assert report["ratio_file"] >= 12.0
    advice = failed(report)["perplexity"]
    assert "At 12" in advice and "no other plan is predicted to pass" in advice
    found = re.search(r"perplexity from \+[\d.]+% to \+([\d.]+)%.*ratio from 12\.\d+ to ([\d.]+)\.", advice)
    assert found and float(found.group(1)) < 10 and 6 <= float(found.group(2)) < 12
    assert f"--ratio {float(found.group(2)):g} " in advice  # what can be had instead


def test_one_plane_untrained(tmp_path: Path) -> None:
    advice = failed(run(tmp_path, planes=1))
    assert set(advice) == {"accuracy", "perplexity"}
    assert "Another plan" in advice["perplexity"]
    follow(advice["perplexity"], tmp_path)
