"""Which tensor gets how many planes in groups of what size: the plan that meets a target ratio with the least
predicted loss.

The sizes are exact (the writers' own layout); the losses are second-order estimates (`tritpress.costs`);
between them lies a multiple-choice knapsack (`tritpress.knapsack`). Needs no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tritpress.config import BASE_GROUP_SIZE, GROUP_SIZES, CompressionConfig
from tritpress.costs import Choice, Cost, choice_costs, embedding_cost
from tritpress.errors import UsageError
from tritpress.formats.packed import packed_size
from tritpress.formats.source import SourceModel
from tritpress.formats.targets import Target, find_embeddings
from tritpress.knapsack import knapsack

MAX_PLANES = 3


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
    group_size: int = BASE_GROUP_SIZE
    threshold: float | None = None
    sparsity: float | None = None
    max_sparsity: float | None = None
    predicted_loss: float | None = None

    @field_validator("group_size")
    @classmethod
    def _known_group_size(cls, value: int) -> int:
        if value not in GROUP_SIZES:
            raise ValueError("must be 32, 64, 128, 256, or 0 for the whole row")
        return value

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
            words = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{path} is not a plan: {where}: {words}") from None


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
    widest = {target.name: (1, group_sizes(target, config)[-1]) for target in targets}
    smallest = _chosen(targets, config, widest, _embedding_choices(source)[-1])
    largest_ratio = source.bytes_fp32 / packed_size(source, smallest)
    if config.target_ratio is not None and config.target_ratio > largest_ratio:
        raise UsageError(
            f"a ratio of {config.target_ratio:g} is beyond reach for {source.path}: one plane everywhere and "
            f"int8 embeddings give at most {_round_down(largest_ratio):.2f}"
        )
    return largest_ratio


def group_sizes(target: Target, config: CompressionConfig) -> list[int]:
    """The group sizes to choose from, rising: the one asked for, or those that differ for this tensor."""
    if config.group_size is not None:
        return [config.group_size]
    found = []
    for size in GROUP_SIZES[1:]:
        found.append(size)
        if size >= target.cols:
            break
    return found


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
    return plans_for(source, targets, config, calibration, [config.target_ratio])[0]


def plans_for(
    source: SourceModel,
    targets: list[Target],
    config: CompressionConfig,
    calibration: Mapping[str, Any] | None,
    ratios: list[float | None],
) -> list[Plan]:
    """What `make_plan` makes for each of several targets, the costs estimated once."""
    largest_ratio = largest_reachable(source, targets, config)
    if config.planes is not None:
        return [_forced(source, targets, config, calibration)]
    every = {
        t.name: [(p, g) for p in range(1, MAX_PLANES + 1) for g in group_sizes(t, config)] for t in targets
    }
    costs = choice_costs(targets, config, calibration, every)
    plans = []
    for ratio in ratios:
        target = min(source.class_ratio, _round_down(largest_ratio)) if ratio is None else ratio
        found = []
        for embeddings in _embedding_choices(source):
            plan = _solved(source, targets, config, costs, target, embeddings)
            if plan is not None:
                extra = embedding_cost(source, targets, costs) if embeddings == "int8" else 0.0
                _price(plan, costs, extra)
                found.append(_finish(source, plan, target, calibration))
        # One of them at least: the smallest plan meets the target. A file that leaves more than 1 % of what
        # another one uses of the bytes granted is none to choose.
        largest = max(plan.predicted_bytes or 0 for plan in found)
        found = [plan for plan in found if (plan.predicted_bytes or 0) >= 0.99 * largest]
        plans.append(min(found, key=_loss))
    return plans


def foretell(
    source: SourceModel,
    targets: list[Target],
    config: CompressionConfig,
    calibration: Mapping[str, Any] | None,
    plan: Plan,
) -> Plan:
    """A plan made or edited elsewhere, with the losses that its choices are predicted to cost."""
    asked = {name: [(p.planes, p.group_size)] for name, p in plan.tensors.items()}
    costs = choice_costs(targets, config, calibration, asked)
    plan = plan.model_copy(deep=True)
    _price(plan, costs, embedding_cost(source, targets, costs) if plan.embeddings == "int8" else 0.0)
    return _finish(source, plan, None, calibration)


def _price(plan: Plan, costs: Mapping[str, Mapping[Choice, Cost]], extra: float) -> None:
    for name, planned in plan.tensors.items():
        planned.predicted_loss = costs[name][planned.planes, planned.group_size].loss
    plan.predicted_loss = extra + sum(p.predicted_loss or 0.0 for p in plan.tensors.values())


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
    same = {target.name: (config.planes, config.base_group_size) for target in targets}
    for embeddings in _embedding_choices(source):
        plan = _chosen(targets, config, same, embeddings)
        if source.bytes_fp32 / packed_size(source, plan) >= source.class_ratio:
            break
    return foretell(source, targets, config, calibration, plan)


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


def _chosen(
    targets: list[Target],
    config: CompressionConfig,
    choices: Mapping[str, Choice],
    embeddings: Literal["fp16", "int8"],
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
            planes=choices[target.name][0],
            group_size=choices[target.name][1],
            threshold=config.threshold,
            sparsity=config.target_sparsity,
            max_sparsity=config.max_sparsity,
        )
        for target in targets
    }
    return Plan(tensors=tensors, embeddings=embeddings)


def _solved(
    source: SourceModel,
    targets: list[Target],
    config: CompressionConfig,
    costs: Mapping[str, Mapping[Choice, Cost]],
    target_ratio: float,
    embeddings: Literal["fp16", "int8"],
) -> Plan | None:
    """The best choices within the target's bytes; None where not even the smallest ones fit."""
    limit = math.floor(source.bytes_fp32 / target_ratio)
    while source.bytes_fp32 / limit < target_ratio:  # the division's own rounding
        limit -= 1
    choices = [list(costs[t.name]) for t in targets]
    losses = [np.array([costs[t.name][c].loss for c in own]) for t, own in zip(targets, choices)]
    least = {t.name: min(own, key=lambda c: (c[0], -c[1])) for t, own in zip(targets, choices)}
    plan = _chosen(targets, config, least, embeddings)
    sizes = []
    for planned, own in zip(plan.tensors.values(), choices):
        sized = [planned.model_copy(update={"planes": p, "group_size": g}).nbytes for p, g in own]
        sizes.append(np.array(sized))
    room = limit - (packed_size(source, plan) - sum(p.nbytes for p in plan.tensors.values()))
    while (found := knapsack(sizes, losses, room)) is not None:
        for planned, own, index in zip(plan.tensors.values(), choices, found):
            planned.planes, planned.group_size = own[int(index)]
        over = packed_size(source, plan) - limit
        if over <= 0:
            return plan
        room -= over  # headers have grown: their digits are not in `sizes`
    return None
