"""Which tensor gets how many planes: the plan that meets a target ratio with the least predicted loss.

The sizes are exact (the writers' own layout); the losses are second-order estimates (`tritpress.costs`);
between them lies a multiple-choice knapsack, solved by dynamic programming over the bytes. Needs no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tritpress.config import CompressionConfig
from tritpress.costs import embedding_cost, plane_costs
from tritpress.errors import UsageError
from tritpress.formats.packed import packed_size
from tritpress.formats.source import SourceModel
from tritpress.formats.targets import Target, find_embeddings

MAX_PLANES = 3
_CELLS = 20_000
"""Steps into which the knapsack divides the bytes that are free to spend."""


class TensorPlan(BaseModel):
    """What is done to one tensor. `group_size` 0 is the whole row."""

    model_config = ConfigDict(extra="forbid")

    name: str
    layer: int | None = None
    kind: str = "other"
    rows: int
    cols: int
    experts: list[int] = Field(default_factory=list)
    transposed: bool = False
    planes: int = Field(ge=1, le=3)
    group_size: int = 64
    threshold: float | None = None
    sparsity: float | None = None
    max_sparsity: float | None = None
    predicted_loss: float | None = None

    @property
    def weights(self) -> int:
        """Number of weights, over all experts."""
        count = self.rows * self.cols
        for experts in self.experts:
            count *= experts
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales in the packed file."""
        width = self.group_size or self.cols
        row = -(-self.cols // 4) + 2 * -(-self.cols // width)
        return self.planes * row * (self.weights // self.cols)

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.nbytes / self.weights


class Plan(BaseModel):
    """The whole model's plan; saved as JSON, edited by hand where someone wants to, and given back."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    tensors: dict[str, TensorPlan]
    embeddings: Literal["fp16", "int8"] = "fp16"
    target_ratio: float | None = None
    predicted_ratio: float | None = None
    predicted_bytes: int | None = None
    predicted_loss: float | None = None
    basis: Literal["calibrated", "weights"] = "weights"

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, at once or not at all."""
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        try:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan. Raises `UsageError` when the file cannot be read or is no plan."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the plan {path}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{path} is not a plan: {where}: {first['msg']}") from None


def read_plan(path: str | Path, source: SourceModel, targets: list[Target]) -> Plan:
    """A plan from a file, held against the model. Raises `UsageError` naming the tensor that does not fit."""
    plan = Plan.load(path)
    known = {target.name: target for target in targets}
    for name, planned in plan.tensors.items():
        target = known.get(name)
        if target is None:
            raise UsageError(f"the plan {path} names {name}, which is no tensor to press in {source.path}")
        if (planned.rows, planned.cols) != (target.rows, target.cols):
            raise UsageError(
                f"the plan {path} has {name} as [{planned.rows}, {planned.cols}], the model as "
                f"[{target.rows}, {target.cols}]"
            )
    missing = sorted(known.keys() - plan.tensors.keys())
    if missing:
        raise UsageError(f"the plan {path} lacks {len(missing)} tensors of the model, the first {missing[0]}")
    written = packed_size(source, plan)
    return plan.model_copy(
        update={"predicted_bytes": written, "predicted_ratio": source.bytes_fp32 / written}
    )


def largest_reachable(source: SourceModel, targets: list[Target], config: CompressionConfig) -> float:
    """`ratio_file` of the smallest plan. Raises `UsageError` where the explicit target is above it."""
    smallest = _uniform(targets, config, 1, _embedding_choices(source)[-1])
    largest_ratio = source.bytes_fp32 / packed_size(source, smallest)
    if config.target_ratio is not None and config.target_ratio > largest_ratio:
        raise UsageError(
            f"a ratio of {config.target_ratio:g} is beyond reach for {source.path}: one plane everywhere and "
            f"int8 embeddings give at most {_round_down(largest_ratio):.2f}"
        )
    return largest_ratio


def make_plan(
    source: SourceModel,
    targets: list[Target],
    config: CompressionConfig,
    calibration: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan with the least predicted loss whose `ratio_file` is at least the target.

    Without a target in `config` it is the size class's ratio, or the largest reachable one where that is
    smaller; `config.planes` gives every tensor that many planes and takes int8 embeddings where the default
    target needs them. `calibration` (tensor name -> input_moment [in], output_grad_moment [out]) makes the
    losses those of the model's output; without it they are weight errors.

    Raises `UsageError` where an explicit target is beyond reach, naming the largest ratio that works.
    """
    largest_ratio = largest_reachable(source, targets, config)
    if config.planes is not None:
        return _forced(source, targets, config, calibration)
    target = config.target_ratio
    if target is None:
        target = min(source.class_ratio, _round_down(largest_ratio))
    costs = plane_costs(targets, config, calibration, range(1, MAX_PLANES + 1))
    best: Plan | None = None
    for embeddings in _embedding_choices(source):
        plan = _uniform(targets, config, 1, embeddings)
        extra = embedding_cost(source, targets, costs) if embeddings == "int8" else 0.0
        if not _fill(source, plan, costs, target):
            continue
        plan.predicted_loss = extra + sum(costs[n][p.planes - 1].loss for n, p in plan.tensors.items())
        if best is None or plan.predicted_loss < _loss(best):
            best = plan
    assert best is not None  # the smallest plan meets the target
    for name, planned in best.tensors.items():
        planned.predicted_loss = costs[name][planned.planes - 1].loss
    return _finish(source, best, target, calibration)


def _loss(plan: Plan) -> float:
    return math.inf if plan.predicted_loss is None else plan.predicted_loss


def _forced(
    source: SourceModel,
    targets: list[Target],
    config: CompressionConfig,
    calibration: Mapping[str, Any] | None,
) -> Plan:
    """The same number of planes everywhere; int8 embeddings only where fp16 ones would miss the class's
    ratio."""
    assert config.planes is not None
    for embeddings in _embedding_choices(source):
        plan = _uniform(targets, config, config.planes, embeddings)
        if source.bytes_fp32 / packed_size(source, plan) >= source.class_ratio:
            break
    costs = plane_costs(targets, config, calibration, [config.planes])
    for name, planned in plan.tensors.items():
        planned.predicted_loss = costs[name][0].loss
    plan.predicted_loss = sum(cost[0].loss for cost in costs.values())
    return _finish(source, plan, None, calibration)


def _finish(
    source: SourceModel, plan: Plan, target: float | None, calibration: Mapping[str, Any] | None
) -> Plan:
    plan.target_ratio = target
    plan.predicted_bytes = packed_size(source, plan)
    plan.predicted_ratio = source.bytes_fp32 / plan.predicted_bytes
    plan.basis = "weights" if calibration is None else "calibrated"
    return plan


def _embedding_choices(source: SourceModel) -> list[Literal["fp16", "int8"]]:
    return ["fp16", "int8"] if find_embeddings(source) else ["fp16"]


def _round_down(ratio: float) -> float:
    """Two decimals, never above what is reachable."""
    return math.floor(ratio * 100) / 100


def _uniform(
    targets: list[Target], config: CompressionConfig, planes: int, embeddings: Literal["fp16", "int8"]
) -> Plan:
    tensors = {
        target.name: TensorPlan(
            name=target.name,
            layer=target.layer,
            kind=target.kind,
            rows=target.rows,
            cols=target.cols,
            experts=list(target.experts),
            transposed=target.transposed,
            planes=planes,
            group_size=config.group_size,
            threshold=config.threshold,
            sparsity=config.target_sparsity,
            max_sparsity=config.max_sparsity,
        )
        for target in targets
    }
    return Plan(tensors=tensors, embeddings=embeddings)


def _fill(source: SourceModel, plan: Plan, costs: Mapping[str, Any], target: float) -> bool:
    """Raise `plan` (one plane everywhere) to the best planes that fit the target; False where not even it
    fits."""
    limit = math.floor(source.bytes_fp32 / target)
    while source.bytes_fp32 / limit < target:  # the division's own rounding
        limit -= 1
    free = limit - packed_size(source, plan)
    if free < 0:
        return False
    names = list(plan.tensors)
    step = [plan.tensors[name].nbytes for name in names]  # bytes of one more plane
    losses = np.array([[cost.loss for cost in costs[name]] for name in names])
    while True:
        chosen = knapsack(losses, np.array(step), free)
        for name, planes in zip(names, chosen):
            plan.tensors[name].planes = int(planes) + 1
        over = packed_size(source, plan) - limit
        if over <= 0:
            return True
        free -= over  # headers have grown: their digits are not in `step`


def knapsack(losses: np.ndarray, step: np.ndarray, free: int) -> np.ndarray:
    """Choice c[t] per tensor that makes sum losses[t, c] least with sum c[t] * step[t] <= free.

    losses float64 [tensors, choices], step int [tensors] bytes. Dynamic programming over bytes rounded up to
    `_CELLS` steps (so that the answer always fits), then what the rounding left over is spent greedily.
    """
    tensors, choices = losses.shape
    cells = min(_CELLS, max(200, 40_000_000 // max(1, tensors)))
    unit = max(1, -(-free // cells))
    size = free // unit + 1
    best = np.zeros(size)
    taken = np.zeros((tensors, size), dtype=np.int8)
    for t in range(tensors):
        fresh = np.full(size, np.inf)
        for c in range(choices):
            cost = -(-c * int(step[t]) // unit)
            if cost >= size:
                break
            candidate = best[: size - cost] + losses[t, c]
            better = candidate < fresh[cost:]
            fresh[cost:][better] = candidate[better]
            taken[t, cost:][better] = c
        best = fresh
    cell = int(np.argmin(best))
    chosen = np.zeros(tensors, dtype=np.int64)
    for t in range(tensors - 1, -1, -1):
        chosen[t] = taken[t, cell]
        cell -= -(-int(chosen[t]) * int(step[t]) // unit)
    _spend(losses, step, free - int((chosen * step).sum()), chosen)
    return chosen


def _spend(losses: np.ndarray, step: np.ndarray, left: int, chosen: np.ndarray) -> None:
    """Use bytes that are left for whatever gains most a byte."""
    while True:
        best, gain = -1, 0.0
        for t in range(len(chosen)):
            if chosen[t] + 1 < losses.shape[1] and step[t] <= left:
                value = (losses[t, chosen[t]] - losses[t, chosen[t] + 1]) / step[t]
                if value > gain:
                    best, gain = t, value
        if best < 0:
            return
        chosen[best] += 1
        left -= int(step[best])
