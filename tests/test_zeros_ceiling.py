"""What holding the zeros costs is looked at in every tensor that is held, however the source stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritpress as tp
from formats_helpers import make_model, small_tensors
from tritpress import _core
from tritpress.events.context import NullContext
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.targets import find_targets
from tritpress.plan import Plan, make_plan
from tritpress.steps.ceiling import ROWS, ceiling_cost
from tritpress.steps.work import Work


def asked(model: Path, plan: Plan | None = None, **config: Any) -> dict[str, Any] | None:
    work = Work(tp.CompressionConfig(**config), directory=None, context=NullContext())  # type: ignore[arg-type]
    work.source = open_source(model)
    work.targets = find_targets(work.source)
    work.plan = plan or make_plan(work.source, work.targets, work.config)
    return ceiling_cost(work)


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
