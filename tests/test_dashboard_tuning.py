"""Tuning as data: forecasts against the recorded curves, and plans that pressing takes back."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritpress as tp
from dashboard_log import events, make_run, write_run
from tritpress.config import make_config
from tritpress.dashboard.views.status import ELSEWHERE
from tritpress.dashboard.views.tuning import (
    SETS_ITS_OWN,
    Scope,
    basis_words,
    charts,
    choice,
    command_of_plan,
    lines,
    plan_path,
    scopes,
)
from tritpress.errors import InputError, UsageError
from tritpress.events import EventWriter
from tritpress.plan import Plan
from tritpress.runs.details import load_details
from tritpress.runs.directory import REMOTE, RunDirectory
from tritpress.runs.history import run_state
from tritpress.runs.tuning import (
    LESS_MADE_UP,
    Setting,
    TensorCurve,
    basis_of,
    forecast,
    plan_of_run,
    read_curves,
    sweep,
    toml_of_config,
    tuned_config,
    tuned_plan,
    write_plan,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_run(tmp_path_factory.mktemp("runs"), "r", layers=5, details=True)


@pytest.fixture(scope="module")
def state(run: Any) -> dict[str, Any]:
    return run_state(run)


@pytest.fixture(scope="module")
def curves(run: Any, state: dict[str, Any]) -> dict[str, TensorCurve]:
    return read_curves(run.path, state)


def test_curves_are_the_recorded_ones(run: Any, state: Any, curves: dict[str, TensorCurve]) -> None:
    assert curves.keys() == state["layers"].keys()
    for name, curve in curves.items():
        details = load_details(run.path, name)
        assert details is not None
        np.testing.assert_array_equal(curve.error_at, details.all_error_at)
        assert curve.zeros_with(0.75) == details.all_zeros_at[24]
        grown = details.all_error_at[24] / details.planned_error
        assert curve.factor(Setting(threshold=0.75)) == pytest.approx(grown)
        assert curve.zeros_with(curve.threshold_of(Setting(sparsity=0.3))) == pytest.approx(0.3, abs=1e-6)
        assert curve.zeros_with(curve.present) == pytest.approx(curve.zeros, abs=1e-6)
    again = read_curves(run.path, state, curves)
    assert all(again[name] is curves[name] for name in curves)


def test_a_tensor_of_no_told_size_has_no_curve(run: Any, state: Any, curves: dict[str, TensorCurve]) -> None:
    first, second, *_ = curves
    layers = dict(state["layers"])
    layers[first] = {key: value for key, value in layers[first].items() if key not in ("rows", "weights")}
    layers[second] = {**layers[second], "weights": 12.0}
    found = read_curves(run.path, {**state, "layers": layers})
    assert found.keys() == curves.keys() - {first} and found[second].weights == 12


def test_a_forecast_is_the_sum_over_tensors(state: dict[str, Any], curves: dict[str, TensorCurve]) -> None:
    basis = basis_of(state)
    setting = Setting(threshold=1.25)
    names = Scope(kind="down").names(state)
    found = forecast(curves, names, setting, basis)
    assert found is not None and found.tensors == len(names) == 5
    weights = zeros = error = loss = 0.0
    for name in names:
        curve = curves[name]
        weights += curve.weights
        zeros += curve.weights * curve.zeros_at[40]
        error += curve.weights * curve.error * curve.error_at[40] / curve.planned_error
        loss += curve.loss * (LESS_MADE_UP[curve.planes] * curve.error_at[40] / curve.planned_error - 1)
    assert found.chosen_zeros == pytest.approx(zeros / weights)
    assert found.chosen_error == pytest.approx(error / weights)
    assert basis.loss is not None and basis.perplexity is not None
    predicted = basis.perplexity * math.exp(basis.scale * (basis.loss + loss))
    assert found.perplexity == pytest.approx(predicted)
    assert found.perplexity_now == pytest.approx(9.7021), "calibrated: now is what was measured"
    swept = sweep(curves, names, basis)
    assert swept is not None and swept.perplexity is not None
    assert swept.perplexity[40] == pytest.approx(found.perplexity)
    assert swept.error[40] == pytest.approx(found.chosen_error)
    assert swept.zeros[40] == pytest.approx(found.chosen_zeros)
    share = Setting(sparsity=0.3)
    by_share, held = sweep(curves, names, basis, by_share=True), forecast(curves, names, share, basis)
    assert by_share is not None and by_share.perplexity is not None and held is not None
    assert np.interp(0.3, by_share.zeros, by_share.error) == pytest.approx(held.chosen_error, rel=0.01)
    assert np.interp(0.3, by_share.zeros, by_share.perplexity) == pytest.approx(held.perplexity, rel=1e-3)
    nothing = forecast(curves, names, None, basis)
    assert nothing is not None and nothing.perplexity == nothing.perplexity_now
    assert forecast(curves, ["nowhere"], setting, basis) is None and sweep(curves, [], basis) is None


def test_a_share_of_zeros_has_a_curve_of_its_own(curves: dict[str, TensorCurve]) -> None:
    """Of several planes a fit that is held to a share chooses better than any threshold."""
    several = [curve for curve in curves.values() if curve.planes > 1]
    assert several
    for curve in several:
        assert curve.shares is not None and curve.error_at_share is not None
        for share in (0.1, 0.3, 0.5):
            setting = Setting(sparsity=share)
            by_threshold = Setting(threshold=curve.threshold_of(setting))
            assert curve.factor(setting) < curve.factor(by_threshold)
            older = dataclasses.replace(curve, shares=None, error_at_share=None)
            assert older.factor(setting) == pytest.approx(curve.factor(by_threshold))
        at = float(np.interp(0.25, curve.shares, curve.error_at_share))
        assert curve.factor(Setting(sparsity=0.25)) == pytest.approx(at / curve.planned_error)


def test_a_threshold_costs_what_a_run_by_one_has_paid_already(curves: dict[str, TensorCurve]) -> None:
    free = next(iter(curves.values()))
    by_one = dataclasses.replace(free, planned_threshold=0.7)
    threshold, share = Setting(threshold=0.9), Setting(sparsity=0.3)
    assert free.loss_factor(threshold) == pytest.approx(LESS_MADE_UP[free.planes] * free.factor(threshold))
    assert free.loss_factor(share) == free.factor(share)
    assert by_one.loss_factor(threshold) == by_one.factor(threshold)
    assert dataclasses.replace(free, swept=False).loss_factor(threshold) == free.factor(threshold)
    assert by_one.loss_factor(share) == pytest.approx(by_one.factor(share) / LESS_MADE_UP[by_one.planes])


def test_without_a_ground_nothing_is_foretold(state: dict[str, Any], curves: dict[str, TensorCurve]) -> None:
    def reason(**changes: Any) -> str:
        basis = basis_of({**state, **changes})
        found = forecast(curves, list(curves), Setting(threshold=1.0), basis)
        assert found is not None and found.perplexity is None and found.perplexity_now is None
        assert found.zeros > 0 and found.error > 0, "zeros and error are known all the same"
        assert lines(found, Scope(), True)[-1].then == "–"
        assert basis.reason is not None and basis.reason in basis_words(basis)
        return basis.reason

    plan = state["plan"]
    assert "not made" in reason(plan=None)
    assert "weights alone" in reason(plan={**plan, "basis": "weights"})
    without = [{**tensor, "predicted_loss": None} for tensor in plan["tensors"]]
    assert "no loss" in reason(plan={**plan, "tensors": without})
    assert "not measured" in reason(evaluations={})


def test_what_the_forecast_rests_on_is_said(state: dict[str, Any]) -> None:
    basis = basis_of(state)
    assert basis.scale == pytest.approx(math.log(9.7021 / 9.3812) / state["plan"]["predicted_loss"])
    assert "Calibrated" in basis.note and "fine-tuning" in basis.note
    before = {"before": state["evaluations"]["before"]}
    unmeasured = basis_of({**state, "evaluations": before})
    assert unmeasured.scale == 1 and "Not measured yet" in unmeasured.note
    better = {**before, "packed": {"perplexity": 9.0}}
    assert basis_of({**state, "evaluations": better}).scale == 1


def test_scopes_name_kinds_and_layers(state: dict[str, Any]) -> None:
    kinds, layers = scopes(state)
    assert list(kinds) == ["All", "q", "k", "v", "o", "gate", "up", "down"] and len(layers) == 6
    assert len(Scope().names(state)) == 35 and len(Scope(layer="3").names(state)) == 7
    assert Scope("up", "3").names(state) == ["model.layers.3.mlp.up_proj.weight"]
    assert Scope("up", "3").words == "up of layer 3" and Scope().words == "all tensors"


def test_the_figures_in_words(state: dict[str, Any], curves: dict[str, TensorCurve]) -> None:
    basis, names = basis_of(state), Scope(kind="q").names(state)
    found = forecast(curves, names, Setting(threshold=0.0), basis)
    assert found is not None
    rows = {row.key: row for row in lines(found, Scope(kind="q"), True)}
    assert set(rows) == {"zeros", "error", "model_zeros", "model_error", "perplexity"}
    assert rows["zeros"].then == "0.0 %" and rows["zeros"].change.startswith("−")
    assert rows["perplexity"].change.startswith("+")
    assert set(row.key for row in lines(found, Scope(), True)) == {"zeros", "error", "perplexity"}
    swept = sweep(curves, names, basis)
    assert swept is not None
    made = charts(swept, found, curves, names, Setting(threshold=0.0))
    assert made.chosen is not None and made.chosen.threshold == 0 and made.chosen.zeros == 0
    assert made.now.zeros == pytest.approx(found.chosen_zeros_now)
    assert charts(swept, found, curves, names, None).chosen is None


def test_what_can_be_done_and_why_not(state: dict[str, Any]) -> None:
    names = list(state["layers"])
    setting = Setting(sparsity=0.3)
    assert choice(state, False, names, setting, "").new_run
    assert choice(state, False, names, None, "").why_no_run.startswith("Move the slider")
    assert choice(state, False, names, setting, "only shows").why_no_run == "only shows"
    assert not choice(state, False, names, setting, "").live
    elsewhere = choice(state, False, names, setting, "", remote=True)
    assert not elsewhere.new_run and "kept where it is worked on" in elsewhere.why_no_run
    half = {name: layer for name, layer in list(state["layers"].items())[:10]}
    live = {**state, "status": "running", "layers": half, "current": {"name": names[10]}}
    assert choice(live, False, names, setting, "").left == tuple(names[11:])
    assert choice(live, True, names, setting, "").left == (), "no worker is there to hear it"


def test_a_run_by_bitnet_takes_no_setting_and_says_that_a_new_one_is_fitted_otherwise(
    state: dict[str, Any], tmp_path: Path
) -> None:
    from tritpress.dashboard.session import Session
    from tritpress.dashboard.store import RunStore

    names, config = list(state["layers"]), {**state["config"], "fit": "bitnet"}
    live = {**state, "status": "running", "layers": {}, "current": None, "config": config}
    assert choice(live, False, names, Setting(sparsity=0.3), "").why_no_set == SETS_ITS_OWN
    assert choice({**live, "config": {}}, False, names, Setting(sparsity=0.3), "").why_no_set == ""
    for fit in ("bitnet", "mse"):
        run = make_run(tmp_path, fit)
        with closing(EventWriter(run.path)) as writer:
            for kind, fields in events(run, 4, details=True):
                if kind == "step.started" and fields.get("step") == 5:
                    break
                if kind == "run.started":
                    fields = {**fields, "config": {**fields["config"], "fit": fit}}
                writer.emit(kind, **fields)
        session = Session(RunStore(tmp_path))
        session.context.open_run(fit, "tuning", threshold="0.9")
        tab: Any = session.tab
        for job in session.steering.jobs:
            job.future.result(60)
        session.steering.look(0.0)
        assert ("by absmean" in tab.equal.pane.object) is (fit == "bitnet")
        assert tab.set.disabled, "all are pressed, or none can be set"


def test_a_link_opens_the_slider_that_it_was_copied_from(tmp_path: Path) -> None:
    from tritpress.dashboard.session import Session
    from tritpress.dashboard.store import RunStore

    write_run(tmp_path, "r", details=True)
    session = Session(RunStore(tmp_path))
    session.context.open_run("r", "tuning")
    tab: Any = session.tab
    assert tab.query() == {}
    tab.which.value = "sparsity"
    assert tab.query() == {"sparsity": ""}
    session.context.open_run("r", "tuning", **tab.query())
    assert (session.tab.mode, session.tab.value) == ("sparsity", None)
    session.context.open_run("r", "tuning", sparsity="0.4")
    assert (session.tab.mode, session.tab.value) == ("sparsity", 0.4)


def test_tensors_not_pressed_yet_can_be_set_without_a_forecast(tmp_path: Path) -> None:
    from tritpress.dashboard.session import Session
    from tritpress.dashboard.store import RunStore

    live = make_run(tmp_path, "live")
    writer, pressed = EventWriter(live.path), 0
    for kind, fields in events(live, 4, details=True):
        pressed += kind == "layer.finished"
        if pressed == 9:
            break
        writer.emit(kind, **fields)
    writer.close()
    write_run(tmp_path, "first", until="layer.started")
    session = Session(RunStore(tmp_path))
    for run, query in (("live", {"layer": "3"}), ("first", {})):
        session.context.open_run(run, "tuning", **query)
        tab: Any = session.tab
        assert tab.body.visible and not tab.charts.row.visible and not tab.placeholder.pane.visible
        assert "cannot be foretold" in tab.table.pane.object
        assert tab.set.visible and tab.set.disabled, "nothing is chosen yet"
        session.context.open_run(run, "tuning", **query, threshold="0.9")
        assert not tab.set.disabled and not tab.slider.disabled and tab.slider.value == 0.9
    session.context.open_run("live", "tuning", layer="3", threshold="0.9")
    tab._set()
    command = json.loads(live.commands_path.read_text())
    assert command["args"] == {"tensors": Scope(layer="3").names(session.feed.state), "threshold": 0.9}
    write_run(tmp_path, "older")
    session.context.open_run("older", "tuning", layer="3", threshold="0.9")
    assert not tab.set.visible or tab.set.disabled, "its worker is done"
    elsewhere = write_run(tmp_path, "elsewhere", until="layer.started")
    elsewhere.update_run(origin=REMOTE, host=REMOTE, pid=0)
    session.context.open_run("elsewhere", "tuning", layer="3", threshold="0.9")
    assert tab.set.visible and tab.set.disabled and "worked on elsewhere" in tab.equal.pane.object
    sidebar = session.sidebar
    assert sidebar.pause.disabled and sidebar.stop.disabled
    assert sidebar.hints["stop"].title == sidebar.hints["pause"].title == ELSEWHERE


def test_a_tuned_plan_changes_only_what_was_chosen(
    run: Any, state: dict[str, Any], curves: Any, tmp_path: Path
) -> None:
    plan = plan_of_run(run.path)
    names = Scope(kind="up").names(state)
    made = tuned_plan(plan, names, Setting(sparsity=0.25), curves)
    change = 0.0
    for name, before in plan.tensors.items():
        after = made.tensors[name]
        if name in names:
            factor = curves[name].loss_factor(Setting(sparsity=0.25))
            assert (after.threshold, after.sparsity, after.max_sparsity) == (None, 0.25, None)
            assert after.predicted_loss == pytest.approx(before.predicted_loss * factor)
            change += before.predicted_loss * (factor - 1)
        else:
            assert after == before
    assert made.predicted_loss == pytest.approx(plan.predicted_loss + change)
    with pytest.raises(UsageError, match="nowhere"):
        tuned_plan(plan, ["nowhere"], Setting(threshold=1), curves)
    with pytest.raises(InputError, match="no plan"):
        plan_of_run(tmp_path)
    path = plan_path(tmp_path, "r", Scope("up"), Setting(sparsity=0.25))
    assert path == tmp_path / "plans" / "r-up-sparsity-0.25.json"
    config = tuned_config({**state["config"], "planes": 2, "seed": 4, "window": 128}, path)
    write_plan(path, made, config)
    assert Plan.load(path) == made
    assert tomllib.loads(path.with_suffix(".toml").read_text()) == {"seed": 4, "window": 128}
    assert make_config({**tomllib.loads(toml_of_config(config)), "plan": str(path)}) == make_config(config)
    command = command_of_plan("/models/a b", path)
    assert command.startswith("tritpress compress '/models/a b' -o OUT --plan ") and str(path) in command


def test_hostile_scopes_name_no_file_elsewhere(tmp_path: Path) -> None:
    path = plan_path(tmp_path, "r", Scope("../../etc", "/x"), Setting(threshold=1.0))
    assert path.parent == tmp_path / "plans" and "/" not in path.name


def test_a_run_by_the_tuned_plan_has_the_zeros_and_error_that_were_foretold(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """A real run, and a second one by the plan that tuning made from it."""
    config = {"method": "fast", "evaluate": False, "finetune": False, "outputs": "packed"}

    def press(out: str, **values: Any) -> Path:
        report = tp.compress(
            tiny_llama_dir, tmp_path / out, tp.CompressionConfig(**values), runs_dir=tmp_path / "runs"
        )
        return tmp_path / "runs" / report["run"]

    first = press("one", **config, planes=2)
    state = run_state(RunDirectory(first))
    curves = read_curves(first, state)
    names, setting = Scope(kind="down").names(state), Setting(threshold=0.5)
    found = forecast(curves, names, setting, basis_of(state))
    assert found is not None and found.perplexity is None and "weights alone" in str(found.reason)
    path = plan_path(tmp_path / "runs", first.name, Scope(kind="down"), setting)
    values = tuned_config(state["config"], path)
    write_plan(path, tuned_plan(plan_of_run(first), names, setting, curves), values)
    second = run_state(RunDirectory(press("two", **values)))
    for name, layer in second["layers"].items():
        before = state["layers"][name]
        if name in names:
            curve = curves[name]
            assert layer["sparsity"] == pytest.approx(curve.zeros_with(0.5), abs=0.01)
            error = curve.error * curve.factor(setting)
            assert layer["relative_error"] == pytest.approx(error, rel=0.03)
            assert layer["relative_error"] > 1.1 * before["relative_error"]
        else:
            assert layer["mse"] == before["mse"]


def test_tuning_needs_neither_torch_nor_panel() -> None:
    import subprocess

    code = (
        "import sys, tritpress.runs.tuning, tritpress.runs.comparison, tritpress.runs.diff;"
        "assert not {'torch', 'transformers', 'panel', 'bokeh'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_tensor_of_zeros_changes_nothing(curves: dict[str, TensorCurve]) -> None:
    curve = dataclasses.replace(next(iter(curves.values())), planned_error=0.0, error=0.0)
    assert curve.loss_factor(Setting(threshold=1.0)) == 1.0
    assert sweep({"a": curve}, ["a"], basis_of({"plan": None})) is not None
