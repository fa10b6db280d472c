"""Runs of the reference model by tuned plans, beside what tuning foretold of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tritpress as tp
from tritpress.reference import reference_model_path
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import run_state
from tritpress.runs.tuning import (
    Forecast,
    Setting,
    basis_of,
    forecast,
    plan_of_run,
    read_curves,
    tuned_config,
    tuned_plan,
    write_plan,
)

State = dict[str, Any]


class Tuned(NamedTuple):
    """`setting` is None for the first run, whose zeros the fit chose; `state` is what the run ended in."""

    setting: Setting | None
    foretold: Forecast
    state: State

    @property
    def zeros(self) -> float:
        """Share of zero codes that the run has."""
        layers = self.state["layers"].values()
        return sum(one["sparsity"] * one["weights"] for one in layers) / sum(one["weights"] for one in layers)

    def perplexity(self, when: str) -> float:
        return float(self.state["evaluations"][when]["perplexity"])


def tuned_runs(folder: Path, settings: Iterable[Setting], **values: Any) -> Iterator[Tuned]:
    """A run with that configuration, then one for each setting by the plan that tuning makes of the first."""

    def press(name: str, values: dict[str, Any]) -> tuple[RunDirectory, State]:
        config = tp.CompressionConfig(**values)
        report = tp.compress(reference_model_path(), folder / name, config, runs_dir=folder / "runs")
        run = RunDirectory(folder / "runs" / report["run"])
        return run, run_state(run)

    first, state = press("first", values)
    curves, basis, names = read_curves(first.path, state), basis_of(state), list(state["layers"])

    def foretold(setting: Setting | None) -> Forecast:
        found = forecast(curves, names, setting, basis)
        assert found is not None and found.perplexity is not None, setting
        return found

    yield Tuned(None, foretold(None), state)
    for number, setting in enumerate(settings):
        path = folder / f"tuned-{number}.json"
        config = tuned_config(state["config"], path)
        write_plan(path, tuned_plan(plan_of_run(first.path), names, setting, curves), config)
        yield Tuned(setting, foretold(setting), press(f"tuned-{number}", config)[1])
