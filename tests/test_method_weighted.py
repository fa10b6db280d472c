"""`--method weighted`: the data-free fits, their inputs weighed by the calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tritpress as tp
from tritpress.cli import app
from tritpress.formats.packed_reader import open_packed
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.targets import find_targets
from tritpress.ternarize.calibration import load_calibration
from typer.testing import CliRunner


@pytest.mark.parametrize("family", ["llama", "gpt2", "moe"])
@pytest.mark.parametrize("fit", ["exact", "twn"])
def test_each_group_is_fitted_with_its_inputs_weighed(
    family: str, fit: str, request: pytest.FixtureRequest, text_dir: Path, tmp_path: Path
) -> None:
    model = request.getfixturevalue(f"tiny_{family}_dir")
    config = tp.CompressionConfig(
        method="weighted", fit=fit, planes=2, text=[str(text_dir)], finetune=False, evaluate=False, window=64,
        calibration_tokens=1024, outputs="packed",
    )  # fmt: skip
    report = tp.compress(model, tmp_path / "out", config, runs_dir=tmp_path / "runs")
    assert report["prediction"]["basis"] == "calibrated" and report["prediction"]["loss"] > 0
    (found,) = (tmp_path / "runs").glob("*/work/calibration.safetensors")
    moments = load_calibration(found)
    packed = open_packed(tmp_path / "out" / "packed")
    seen = 0
    for target in find_targets(open_source(model)):
        weight = read_tensor(target.entry)
        weight = np.ascontiguousarray(weight.T if target.transposed else weight)
        importance = moments[target.name]["input_moment"] if target.name in moments else None
        seen += importance is not None
        wanted = tp.ternarize(weight, fit=fit, planes=2, max_sparsity=0.44, importance=importance)
        codes, scales, _ = packed.ternary(target.name)
        np.testing.assert_array_equal(codes, wanted.codes, err_msg=target.name)
        np.testing.assert_array_equal(scales, wanted.scales, err_msg=target.name)
    assert seen


def test_the_command_line_plans_with_it_and_needs_text(
    tiny_llama_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    def call(*words: object):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="tritpress")

    refused = call("plan", tiny_llama_dir, "--method", "weighted")
    assert refused.exit_code == 2 and "--method weighted needs text" in refused.stderr
    settings = tmp_path / "few.toml"
    settings.write_text("calibration_tokens = 1024\nwindow = 64\n")
    losses = {}
    for method in ("weighted", "gptq"):
        words = ("--planes", 1, "--method", method, "--text", text_dir, "--config", settings, "--json")
        told = call("plan", tiny_llama_dir, *words)
        assert told.exit_code == 0, told.output
        found = json.loads(told.stdout)
        assert found["method"] == method and found["basis"] == "calibrated"
        losses[method] = found["predicted_loss"]
    assert losses["weighted"] > losses["gptq"] > 0
