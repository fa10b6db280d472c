"""What tuning foretells of a setting beside what a run by the tuned plan measures, on the reference model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tritpress as tp
from tritpress.reference import reference_model_path
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import run_state
from tritpress.runs.tuning import (
    Setting,
    basis_of,
    forecast,
    plan_of_run,
    read_curves,
    tuned_config,
    tuned_plan,
    write_plan,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = (Setting(threshold=0.2), Setting(sparsity=0.15), Setting(threshold=0.8))

TOLERANCE = 0.2
"""By which share of the measured rise of log perplexity the foretold one may be off."""


def test_a_foretold_perplexity_is_near_the_measured_one_and_in_its_order(tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    def press(out: str, **values: Any) -> RunDirectory:
        report = tp.compress(
            reference_model_path(), tmp_path / out, tp.CompressionConfig(**values), runs_dir=runs
        )
        return RunDirectory(runs / report["run"])

    def perplexity(state: dict[str, Any], when: str) -> float:
        return float(state["evaluations"][when]["perplexity"])

    first = press(
        "first", method="gptq", planes=2, finetune=False, outputs="packed", calibration_tokens=16_384,
        evaluation_tokens=16_384,
    )  # fmt: skip
    state = run_state(first)
    curves, basis, names = read_curves(first.path, state), basis_of(state), list(state["layers"])
    now = forecast(curves, names, None, basis)
    assert now is not None and now.perplexity == pytest.approx(perplexity(state, "packed"))

    foretold, measured = {}, {}
    for number, setting in enumerate(SETTINGS):
        found = forecast(curves, names, setting, basis)
        assert found is not None and found.perplexity is not None
        path = tmp_path / f"{number}.json"
        values = tuned_config(state["config"], path)
        write_plan(path, tuned_plan(plan_of_run(first.path), names, setting, curves), values)
        made = run_state(press(f"tuned-{number}", **values))
        weights = sum(layer["weights"] for layer in made["layers"].values())
        zeros = sum(layer["sparsity"] * layer["weights"] for layer in made["layers"].values()) / weights
        assert found.zeros == pytest.approx(zeros, abs=0.005), setting.words
        before = perplexity(made, "before")
        foretold[setting.words] = math.log(found.perplexity / before)
        measured[setting.words] = math.log(perplexity(made, "packed") / before)
    assert sorted(foretold, key=foretold.__getitem__) == sorted(measured, key=measured.__getitem__)
    for words, rise in foretold.items():
        assert rise == pytest.approx(measured[words], rel=TOLERANCE), (words, foretold, measured)
