"""The planner: exact sizes, the solved knapsack, and what it says when a target is out of reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tritpress.config import CompressionConfig
from tritpress.errors import UsageError
from tritpress.formats.packed import packed_size
from tritpress.formats.source import open_source
from tritpress.formats.targets import find_targets
from tritpress.plan import Plan, knapsack, make_plan
from tritpress.reference import reference_model_path


@pytest.fixture(scope="module")
def reference():
    source = open_source(reference_model_path())
    return source, find_targets(source)


def made_up_calibration(targets, seed=0):
    """Moments of the right shapes: how the planner weighs them is looked at, not what they are."""
    rng = np.random.default_rng(seed)
    return {
        t.name: {
            "input_moment": rng.random(t.cols, dtype=np.float32) + 0.1,
            "output_grad_moment": rng.random(t.rows, dtype=np.float32) * 1e-3 * (t.layer + 1),
        }
        for t in targets
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_finds_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    losses = np.sort(rng.random((6, 3)), axis=1)[:, ::-1].copy()
    step = rng.integers(50, 400, 6)
    for free in (0, 300, 900, 5000):
        chosen = knapsack(losses, step, free)
        assert (chosen * step).sum() <= free
        best = min(
            sum(losses[t, c] for t, c in enumerate(choice))
            for choice in itertools.product(range(3), repeat=6)
            if sum(c * step[t] for t, c in enumerate(choice)) <= free
        )
        assert sum(losses[t, c] for t, c in enumerate(chosen)) == pytest.approx(best)


@pytest.mark.parametrize("ratio", [5, 6, 7, 8, 10, 11])
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_target_is_met_with_little_to_spare(reference, ratio, calibrated):
    source, targets = reference
    calibration = made_up_calibration(targets) if calibrated else None
    plan = make_plan(source, targets, CompressionConfig(target_ratio=ratio), calibration)
    size = packed_size(source, plan)
    assert plan.predicted_bytes == size and plan.predicted_ratio == source.bytes_fp32 / size
    assert ratio <= plan.predicted_ratio <= ratio * 1.02
    assert plan.basis == ("calibrated" if calibrated else "weights")
    assert plan.predicted_loss >= sum(p.predicted_loss for p in plan.tensors.values()) > 0


def test_smaller_files_are_predicted_to_cost_more(reference):
    source, targets = reference
    losses = [
        make_plan(source, targets, CompressionConfig(target_ratio=r)).predicted_loss for r in (5, 6, 8, 10)
    ]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_sensitive_tensors_get_the_planes(reference):
    source, targets = reference
    calibration = made_up_calibration(targets)
    dear, cheap = targets[0].name, targets[7].name
    calibration[dear]["output_grad_moment"] = calibration[dear]["output_grad_moment"] * 1e6
    calibration[cheap]["output_grad_moment"] = calibration[cheap]["output_grad_moment"] * 0
    plan = make_plan(source, targets, CompressionConfig(target_ratio=8), calibration)
    assert plan.tensors[dear].planes == 3 and plan.tensors[cheap].planes == 1


def test_losses_that_calibration_foretold_are_taken_as_they_are(reference):
    source, targets = reference
    calibration = made_up_calibration(targets)
    for t in targets:
        calibration[t.name]["plane_losses"] = np.float32([3.0, 2.0, 1.0])
    plan = make_plan(source, targets, CompressionConfig(planes=2), calibration)
    assert {p.predicted_loss for p in plan.tensors.values()} == {2.0}


def test_without_a_target_the_class_or_what_is_reachable(reference, tiny_llama_dir):
    source, targets = reference
    assert make_plan(source, targets, CompressionConfig()).target_ratio == 6.0
    tiny = open_source(tiny_llama_dir)  # nearly all embeddings: 6 is out of reach
    plan = make_plan(tiny, find_targets(tiny), CompressionConfig())
    assert plan.target_ratio < 6.0 and plan.predicted_ratio >= plan.target_ratio
    assert plan.embeddings == "int8" and {p.planes for p in plan.tensors.values()} == {1}


def test_out_of_reach_names_the_largest_ratio_that_works(reference):
    source, targets = reference
    with pytest.raises(UsageError, match="at most ") as caught:
        make_plan(source, targets, CompressionConfig(target_ratio=14))
    largest = float(str(caught.value).rpartition(" ")[2])
    assert make_plan(source, targets, CompressionConfig(target_ratio=largest)).predicted_ratio >= largest
    with pytest.raises(UsageError):
        make_plan(source, targets, CompressionConfig(target_ratio=largest + 0.02))


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_planes_can_be_forced(reference, planes):
    source, targets = reference
    plan = make_plan(source, targets, CompressionConfig(planes=planes))
    assert {p.planes for p in plan.tensors.values()} == {planes} and plan.target_ratio is None


def test_options_reach_the_tensors_and_a_plan_survives_json(reference, tmp_path):
    source, targets = reference
    config = CompressionConfig(planes=1, sparsity=0.3, group_size=128)
    plan = make_plan(source, targets, config)
    planned = next(iter(plan.tensors.values()))
    assert (planned.sparsity, planned.max_sparsity, planned.group_size) == (0.3, None, 128)
    assert next(iter(make_plan(source, targets, CompressionConfig(planes=1)).tensors.values())).max_sparsity
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_text('{"tensors": 3}')
    with pytest.raises(UsageError, match="is not a plan: tensors"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="cannot read"):
        Plan.load(tmp_path / "none.json")


def test_experts_are_planned_too(tiny_moe_dir):
    source = open_source(tiny_moe_dir)
    targets = find_targets(source)
    plan = make_plan(source, targets, CompressionConfig(planes=2))
    assert any(p.kind == "expert" for p in plan.tensors.values())
    assert plan.predicted_bytes == packed_size(source, plan)
