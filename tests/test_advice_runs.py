"""The command line that an advice ends in is taken as it stands, in a shell, from another folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import tritpress as tp


def test_the_printed_line_runs_and_its_gate_passes(
    tiny_llama_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    config = tp.CompressionConfig(
        target_ratio=6.0, sparsity=0.6, text=[str(text_dir)], finetune=False, window=128,
        calibration_tokens=1024, evaluation_tokens=2048,
    )  # fmt: skip
    report = tp.compress(tiny_llama_dir, tmp_path / "the out", config, runs_dir=tmp_path / "runs")
    assert all(abs(layer["sparsity"] - 0.6) <= 0.005 for layer in report["layers"])
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert gates["sparsity"]["passed"] is False and "--sparsity asks for it" in gates["sparsity"]["advice"]
    line = gates["sparsity"]["advice"].partition("Run: ")[2]
    assert "--ratio 6 " in line and "--config" in line and "'" in line and line.endswith("--overwrite")
    done = subprocess.run(f"{line} --json", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    again = json.loads(done.stdout)
    assert {gate["name"]: gate["passed"] for gate in again["gates"]}["sparsity"] is True
    assert again["config"]["window"] == 128 and again["config"]["sparsity"] is None
    assert again["ratio_file"] >= 6.0
    # what was foretold stands beside what came
    found = again["prediction"]
    assert found["basis"] == "calibrated" and found["loss"] > 0 and found["measured_kl"] > 0
    assert found["measured_perplexity_change"] == again["perplexity_change"]
    held = again["zeros_ceiling"]
    assert held["sparsity_with"] <= min(0.44 + 1e-6, held["sparsity_without"])
    assert held["perplexity_cost"] >= 0
