"""The planner: exact sizes, the solved knapsack, and what it says when a target is out of reach."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritpress.config import CompressionConfig
from tritpress.errors import UsageError
from tritpress.formats.packed import packed_size
from tritpress.formats.source import open_source
from tritpress.formats.targets import embedding_targets, find_targets
from tritpress.knapsack import knapsack
from tritpress.plan import MAX_PLANES, Plan, foretell, group_sizes, largest_reachable, make_plan
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


CHOICES = st.lists(st.tuples(st.integers(1, 400), st.floats(0, 10)), min_size=1, max_size=5)


@settings(deadline=None)
@given(tensors=st.lists(CHOICES, min_size=1, max_size=5), share=st.floats(0, 1.1))
def test_the_knapsack_finds_what_brute_force_finds(tensors, share):
    sizes = [np.array([size for size, _ in own]) for own in tensors]
    losses = [np.array([loss for _, loss in own]) for own in tensors]
    least, most = sum(s.min() for s in sizes), sum(s.max() for s in sizes)
    limit = int(least + share * (most - least)) - 1
    chosen = knapsack(sizes, losses, limit)
    if least > limit:
        assert chosen is None
        return
    assert sum(s[c] for s, c in zip(sizes, chosen)) <= limit
    best = min(
        sum(own[c] for own, c in zip(losses, choice))
        for choice in itertools.product(*(range(len(s)) for s in sizes))
        if sum(s[c] for s, c in zip(sizes, choice)) <= limit
    )
    assert sum(own[c] for own, c in zip(losses, chosen)) == pytest.approx(best, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), share=st.floats(0.02, 0.98))
def test_bytes_rounded_to_steps_come_within_one_percent_of_the_best(seed, share):
    rng = np.random.default_rng(seed)
    sizes = [np.sort(rng.integers(10_000, 90_000, 4)) for _ in range(6)]
    losses = [np.sort(rng.random(4))[::-1] + 0.2 for _ in range(6)]
    least, most = sum(s.min() for s in sizes), sum(s.max() for s in sizes)
    limit = int(least + share * (most - least))
    chosen = knapsack(sizes, losses, limit)
    best = min(
        sum(own[c] for own, c in zip(losses, choice))
        for choice in itertools.product(range(4), repeat=6)
        if sum(s[c] for s, c in zip(sizes, choice)) <= limit
    )
    assert sum(s[c] for s, c in zip(sizes, chosen)) <= limit
    assert sum(own[c] for own, c in zip(losses, chosen)) <= 1.01 * best


@pytest.mark.parametrize("ratio", [4, 5, 6, 7, 8, 9, 10, 11, 12])
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_target_is_met_with_little_to_spare(reference, ratio, calibrated):
    source, targets = reference
    calibration = made_up_calibration(targets) if calibrated else None
    plan = make_plan(source, targets, CompressionConfig(target_ratio=ratio), calibration)
    size = packed_size(source, plan)
    assert plan.predicted_bytes == size and plan.predicted_ratio == source.bytes_fp32 / size
    assert ratio <= plan.predicted_ratio <= ratio * 1.01
    assert plan.basis == ("calibrated" if calibrated else "weights")
    assert plan.predicted_loss > 0 and all(p.predicted_loss > 0 for p in plan.tensors.values())


def all_sizes(source, targets) -> np.ndarray:
    """Bytes of every file that a plan could write, rising (to 0.2 %, headers as of one such plan)."""
    tables, found = embedding_targets(source), []
    for kept in ("fp16", "int8"):
        plan = make_plan(source, targets, CompressionConfig(planes=1))
        plan.embeddings = kept
        fixed = packed_size(source, plan) - sum(p.nbytes for p in plan.tensors.values())
        grain = max(1, fixed // 2000)
        sums = {0}
        for t in (*targets, *tables):
            stays = t.rows * (t.cols + 2 if kept == "int8" else 2 * t.cols)
            own = {stays} if t in tables else set()
            fixed -= stays if t in tables else 0
            groups = group_sizes(t, CompressionConfig())
            for planes, group in itertools.product(range(1, MAX_PLANES + 1), groups):
                weights = t.rows * t.cols * math.prod(t.experts)
                own.add(planes * (-(-t.cols // 4) + 2 * -(-t.cols // group)) * (weights // t.cols))
            sums = {(a + b) // grain * grain for a in sums for b in own}
        found += [total + fixed for total in sums]
    return np.array(sorted(found))


@pytest.mark.parametrize("model", ["llama", "qwen3", "gpt2", "moe"])
def test_the_file_is_the_largest_that_the_target_allows(model, request):
    source = open_source(request.getfixturevalue(f"tiny_{model}_dir"))
    targets = find_targets(source)
    sizes = all_sizes(source, targets)
    highest = largest_reachable(source, targets, CompressionConfig())
    for ratio in (r for r in (3.5, 4, 5, 6, 8, 10, 12) if r <= highest):
        plan = make_plan(source, targets, CompressionConfig(target_ratio=ratio))
        best = sizes[source.bytes_fp32 / sizes >= ratio][-1]
        assert plan.predicted_ratio >= ratio
        assert plan.predicted_bytes >= 0.99 * best, (model, ratio)


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


def test_out_of_reach_names_the_largest_ratio_that_works(reference):
    source, targets = reference
    with pytest.raises(UsageError, match="at most ") as caught:
        make_plan(source, targets, CompressionConfig(target_ratio=15.9))
    largest, in_rows = map(float, re.findall(r"\d+\.\d\d\b", str(caught.value)))
    assert largest < in_rows
    for ratio, size in ((largest, None), (in_rows, 0)):
        plan = make_plan(source, targets, CompressionConfig(target_ratio=ratio, group_size=size))
        assert plan.predicted_ratio >= ratio
        with pytest.raises(UsageError):
            make_plan(source, targets, CompressionConfig(target_ratio=ratio + 0.02, group_size=size))


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_planes_can_be_forced(reference, planes):
    source, targets = reference
    plan = make_plan(source, targets, CompressionConfig(planes=planes))
    assert {p.planes for p in plan.tensors.values()} == {planes} and plan.target_ratio is None


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_plan_looked_at_again_is_foretold_the_same(reference, calibrated):
    source, targets = reference
    calibration = made_up_calibration(targets) if calibrated else None
    config = CompressionConfig(target_ratio=11.0)
    plan = make_plan(source, targets, config, calibration)
    again = foretell(source, targets, config, calibration, plan)
    assert again.predicted_loss == pytest.approx(plan.predicted_loss, rel=0.02)


@pytest.mark.parametrize("basis", ["weights", "moments", "swept"])
@pytest.mark.parametrize("asked", [{"sparsity": 0.65}, {"threshold": 1.3}])
def test_what_a_plan_asks_of_its_zeros_is_foretold(reference, asked, basis):
    """Given back without the option that it was made with, and tensor by tensor."""
    source, targets = reference
    calibration = None if basis == "weights" else made_up_calibration(targets)
    usual = CompressionConfig(planes=1)
    plan = make_plan(source, targets, CompressionConfig(planes=1, **asked), calibration)
    if basis == "swept":
        for t in targets:
            calibration[t.name]["plane_losses"] = np.float32([3.0, 2.0, 1.0])
    free = make_plan(source, targets, usual, calibration)
    again = foretell(source, targets, usual, calibration, plan)
    assert again.predicted_loss > 1.1 * free.predicted_loss
    if basis == "swept":  # as much dearer as a plain fit of such zeros is
        moments = made_up_calibration(targets)
        own, other = (make_plan(source, targets, c, moments).tensors for c in (
            CompressionConfig(planes=1, **asked), usual))  # fmt: skip
        for name, planned in again.tensors.items():
            grown = own[name].predicted_loss / other[name].predicted_loss
            assert planned.predicted_loss == pytest.approx(3.0 * grown, rel=0.1)
    else:
        assert again.predicted_loss == pytest.approx(plan.predicted_loss)
    first, second = list(free.tensors)[:2]
    for key, value in asked.items():
        setattr(free.tensors[first], key, value)
    mixed = foretell(source, targets, usual, calibration, free)
    assert mixed.tensors[first].predicted_loss == pytest.approx(again.tensors[first].predicted_loss)
    assert mixed.tensors[second].predicted_loss == pytest.approx(free.tensors[second].predicted_loss)


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
