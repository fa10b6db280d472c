"""What holding the zeros costs is looked at in every tensor that is held, however the source stores it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritpress as tp
from formats_helpers import make_model, small_tensors
from tritpress import _core
from tritpress.config import KEPT_PLAN
from tritpress.console.report import zeros_words
from tritpress.events.context import NullContext
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.targets import find_targets
from tritpress.plan import Plan, make_plan
from tritpress.steps.alternatives import rerun
from tritpress.steps.ceiling import FLOOR, MOST, ROWS, ceiling_cost, hold_zeros
from tritpress.steps.student import _zero_band
from tritpress.steps.work import Work


def opened(model: Path, **config: Any) -> tuple[Work, Plan]:
    work = Work(tp.CompressionConfig(**config), directory=None, context=NullContext())  # type: ignore[arg-type]
    work.source = open_source(model)
    work.targets = find_targets(work.source)
    return work, make_plan(work.source, work.targets, work.config)


def asked(model: Path, plan: Plan | None = None, **config: Any) -> dict[str, Any] | None:
    work, made = opened(model, **config)
    plan = plan or made
    return ceiling_cost(hold_zeros(work, plan), plan)


def calibrated(plan: Plan, losses: list[float]) -> Plan:
    """The same plan with losses in nats, given again and again."""
    plan.basis = "calibrated"
    for number, planned in enumerate(plan.tensors.values()):
        planned.predicted_loss = losses[number % len(losses)]
    return plan


def errors(weight: np.ndarray) -> list[float]:
    found = []
    for ceiling in (0.44, None):
        codes, scales = _core.ternarize(weight, group_size=64, max_sparsity=ceiling)
        wrong = weight - _core.dequantize(codes, scales, weight.shape[1], 64)
        found.append(float(np.square(wrong, dtype=np.float64).sum()))
    return found


def test_weights_stored_turned_are_looked_at(tiny_gpt2_dir: Path) -> None:
    found = asked(tiny_gpt2_dir, planes=1)
    targets = find_targets(open_source(tiny_gpt2_dir))
    assert found is not None and all(target.transposed for target in targets)
    assert found["rows"] == sum(min(ROWS, target.rows) for target in targets)
    held, free = np.sum(
        [errors(np.ascontiguousarray(read_tensor(t.entry).T[:ROWS])) for t in targets], axis=0
    )
    assert found["error_increase"] == pytest.approx(held / free - 1.0, rel=1e-4)
    assert found["sparsity_with"] <= 0.44 < found["sparsity_without"]


@pytest.mark.parametrize("shape", [(5, 24, 8), (5, 8, 24)])
def test_stacked_experts_are_looked_at(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = small_tensors(rng) | {name: ("F32", rng.standard_normal(shape).astype(np.float32))}
    found = asked(make_model(tmp_path / "m", tensors), planes=1)
    others = sum(min(ROWS, v.shape[0]) for k, (_, v) in tensors.items() if "_proj.weight" in k)
    assert found is not None and found["rows"] == others + ROWS


def test_only_what_is_held_counts(tiny_llama_dir: Path) -> None:
    assert asked(tiny_llama_dir, planes=1, sparsity=0.6) is None
    assert asked(tiny_llama_dir, planes=1, threshold=0.7) is None
    source = open_source(tiny_llama_dir)
    targets = find_targets(source)
    plan = make_plan(source, targets, tp.CompressionConfig(planes=1))
    first = next(iter(plan.tensors.values()))
    whole = asked(tiny_llama_dir, plan=plan)
    first.sparsity, first.max_sparsity = 0.6, None
    rest = asked(tiny_llama_dir, plan=plan)
    assert whole is not None and rest is not None
    assert rest["rows"] == whole["rows"] - min(ROWS, first.rows) and rest["ceiling"] == 0.44


def test_weights_alone_release_nothing(tiny_llama_dir: Path) -> None:
    work, plan = opened(tiny_llama_dir, planes=1)
    found = ceiling_cost(hold_zeros(work, plan), plan)
    assert found is not None and found["released"] == 0 and found["perplexity_cost"] is None
    assert all(planned.max_sparsity == 0.44 for planned in plan.tensors.values())


def test_what_costs_too_much_is_released(tiny_llama_dir: Path) -> None:
    work, plan = opened(tiny_llama_dir, planes=1)
    found = hold_zeros(work, calibrated(plan, [1e-3, 1e-4, 10.0]))
    report = ceiling_cost(found, plan)
    free = [name for name, planned in plan.tensors.items() if planned.max_sparsity is None]
    assert free and all(plan.tensors[name].predicted_loss == 10.0 for name in free)
    assert report is not None and report["released"] == len(free)
    assert report["tensors"] == len(plan.tensors) - len(free)
    assert 0 < report["perplexity_cost"] < MOST < report["released_cost"]
    # as much is held as may be: with the cheapest of those released it would be too much
    least = min(found[name]["loss"] for name in free)
    assert np.expm1(sum(found[name]["loss"] for name in plan.tensors if name not in free) + least) >= MOST
    # what was released is pressed free
    weight = read_tensor(work.source.tensors[free[0]])
    codes, _ = _core.ternarize(weight, group_size=64, max_sparsity=plan.tensors[free[0]].max_sparsity)
    assert (_core.unpack(codes, weight.shape[1]) == 0).mean() > 0.44


def test_all_may_be_released(tiny_llama_dir: Path) -> None:
    work, plan = opened(tiny_llama_dir, planes=1)
    found = hold_zeros(work, calibrated(plan, [1e6]))
    report = ceiling_cost({name: facts for name, facts in found.items() if facts["loss"]}, plan)
    assert report is not None and report["tensors"] == 0 and report["sparsity_with"] is None
    assert report["perplexity_cost"] == 0 and report["released_cost"] > MOST
    words = zeros_words(report)
    assert f"left free in {report['released']} tensors" in words and "held at" not in words


def few_zeros(tmp_path: Path) -> Path:
    """Weights near -1 and 1 with some between: the nearest codes are hardly ever 0."""
    rng = np.random.default_rng(4)
    tensors = small_tensors(rng)
    for name, (dtype, value) in tensors.items():
        if "_proj.weight" in name:
            far = np.sign(value) * rng.uniform(0.9, 1.1, value.shape)
            near = rng.uniform(0, 1, value.shape) < 0.2
            tensors[name] = (dtype, np.where(near, 0.4 * value, far).astype(value.dtype))
    return make_model(tmp_path / "few", tensors)


def test_zeros_are_held_from_below_where_that_is_cheap(tmp_path: Path) -> None:
    model = few_zeros(tmp_path)
    for loss, held in ((1e-5, True), (10.0, False)):
        work, plan = opened(model, planes=1)
        report = ceiling_cost(hold_zeros(work, calibrated(plan, [loss])), plan)
        asked = {planned.sparsity for planned in plan.tensors.values()}
        assert asked == ({FLOOR} if held else {None})
        assert report is not None and bool(report["tensors"]) is held
        if held:
            assert report["sparsity_with"] == pytest.approx(FLOOR, abs=0.005)
            assert report["sparsity_without"] < 0.25 and report["raised"] == report["tensors"]
            assert "at no fewer than 26 %" in zeros_words(report)


def test_a_given_plan_is_kept_as_it_is(tiny_llama_dir: Path, tmp_path: Path) -> None:
    work, plan = opened(tiny_llama_dir, planes=1)
    calibrated(plan, [10.0]).save(tmp_path / "plan.json")
    work.config = work.config.model_copy(update={"plan": tmp_path / "plan.json", "planes": None})
    report = ceiling_cost(hold_zeros(work, plan), plan)
    assert report is not None and report["released"] == 0 and report["perplexity_cost"] > MOST
    assert all(planned.max_sparsity == 0.44 for planned in plan.tensors.values())


def test_the_command_to_do_a_run_again_names_a_plan_that_is_as_it_was(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    work, plan = opened(tiny_llama_dir, planes=1)
    run, given = tmp_path / "run", tmp_path / "plan.json"
    run.mkdir()
    plan.save(given)
    (run / KEPT_PLAN).write_bytes(given.read_bytes())
    folder = SimpleNamespace(path=run, read_run=lambda: {"out": str(tmp_path / "out")})
    work.directory = folder  # type: ignore[assignment]
    work.config = work.config.model_copy(update={"plan": str(given), "planes": None})
    assert f"--plan {given} " in str(rerun(work))
    given.write_text("{}")
    assert f"--plan {run / KEPT_PLAN} " in str(rerun(work)) and work.config.plan == str(given)


def test_training_holds_the_zeros_as_they_were_pressed(tiny_llama_dir: Path) -> None:
    _, plan = opened(tiny_llama_dir, planes=1)
    planned = next(iter(plan.tensors.values()))
    assert _zero_band(planned) == (0.25, 0.44)
    assert _zero_band(planned.model_copy(update={"max_sparsity": None})) is None
    assert _zero_band(planned.model_copy(update={"max_sparsity": None, "threshold": 0.7})) is None
    assert _zero_band(planned.model_copy(update={"max_sparsity": None, "sparsity": 0.6})) == (0.595, 0.605)
