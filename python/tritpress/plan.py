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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tritpress.config import BASE_GROUP_SIZE, GROUP_SIZES, CompressionConfig
from tritpress.costs import KEPT, Choice, Cost, choice_costs, int8_losses
from tritpress.errors import UsageError
from tritpress.formats.packed import packed_size
from tritpress.formats.source import SourceModel
from tritpress.formats.targets import Target, embedding_targets, find_embeddings
from tritpress.knapsack import knapsack

MAX_PLANES = 3

MADE_UP_FROM, MADE_UP_POWER = 3.0, 0.75
"""Calibrated pressing lets later layers make up for earlier errors, the better the more bits they have: above
that many bits a weight the sum of the tensors' losses, each foretold alone, is too much by that power of the
bits. Read off six random plans and two planes everywhere on the reference model."""


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
    threshold: float | None = Field(None, ge=0.0, le=4.0)
    sparsity: float | None = Field(None, ge=0.0, lt=1.0)
    max_sparsity: float | None = Field(None, gt=0.0, le=1.0)
    predicted_loss: float | None = None

    @field_validator("group_size")
    @classmethod
    def _known_group_size(cls, value: int) -> int:
        if value not in GROUP_SIZES:
            raise ValueError("must be 32, 64, 128, 256, or 0 for the whole row")
        return value

    @model_validator(mode="after")
    def _one_rule_for_zeros(self) -> TensorPlan:
        if self.sparsity is not None and self.threshold is not None:
            raise ValueError("sparsity and threshold both decide the zeros: give one, the other as null")
        return self

    def asked(self, config: CompressionConfig) -> CompressionConfig:
        """`config` with this tensor's own zeros in place of what it says of all."""
        free = self.threshold is None and self.max_sparsity is None
        sparsity = "free" if self.sparsity is None and free else self.sparsity
        return config.model_copy(update={"threshold": self.threshold, "sparsity": sparsity})

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

    @property
    def bits(self) -> float:
        """Bits a weight over all planned tensors, scales included."""
        tensors = self.tensors.values()
        return 8 * sum(p.nbytes for p in tensors) / sum(p.weights for p in tensors)

    @property
    def planes_mean(self) -> float:
        """Planes a weight."""
        weights = sum(p.weights for p in self.tensors.values())
        return sum(p.planes * p.weights for p in self.tensors.values()) / weights

    @property
    def predicted_change(self) -> float | None:
        """Relative change of perplexity that the predicted loss (nats a token) stands for; None where the
        losses rest on the weights alone and are not in nats.
        """
        if self.predicted_loss is None or self.basis != "calibrated":
            return None
        return change_of(self.predicted_loss)

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


def change_of(loss: float) -> float:
    """Relative change of perplexity that a loss in nats a token stands for."""
    return math.expm1(min(loss, 700.0))


def read_plan(path: str | Path, source: SourceModel, targets: list[Target], fit: str = "exact") -> Plan:
    """A plan from a file, held against the model. Raises `UsageError` naming the tensor that does not fit.

    The fit "bitnet" sets its own zeros: no ceiling is held, a sparsity or threshold is refused.
    """
    plan = Plan.load(path)
    needed = {target.name: target for target in targets}
    known = needed | {target.name: target for target in embedding_targets(source)}
    for name, planned in plan.tensors.items():
        target = known.get(name)
        if target is None or planned.name != name:
            which = name if target is None else planned.name
            raise UsageError(f"the plan {path} names {which}, which is no tensor to press in {source.path}")
        said, true = (str([*t.experts, t.rows, t.cols]) for t in (planned, target))
        if said != true:
            raise UsageError(f"the plan {path} has {name} as {said}, the model as {true}")
        if planned.transposed != target.transposed:
            turned = ("transposed", "stored as it is")
            said, true = turned if planned.transposed else turned[::-1]
            raise UsageError(f"the plan {path} has {name} as {said}, the model has it {true}")
        if fit == "bitnet":
            if planned.sparsity is not None or planned.threshold is not None:
                key = "sparsity" if planned.threshold is None else "threshold"
                raise UsageError(
                    f"the plan {path} gives {name} a {key}, but the fit bitnet sets its own zeros: make it "
                    "null, or choose another fit"
                )
            planned.max_sparsity = None
    missing = sorted(needed.keys() - plan.tensors.keys())
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        count = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors"
        raise UsageError(f"the plan {path} lacks {count} of the model: {missing[0]}{more}")
    written = packed_size(source, plan)
    return plan.model_copy(
        update={"predicted_bytes": written, "predicted_ratio": source.bytes_fp32 / written}
    )


def largest_reachable(source: SourceModel, targets: list[Target], config: CompressionConfig) -> float:
    """`ratio_file` of the smallest plan. Raises `UsageError` where the explicit target is above it."""
    pressed = [*targets, *embedding_targets(source)]
    largest_ratio = _smallest_ratio(source, pressed, config)
    if config.target_ratio is not None and config.target_ratio > largest_ratio:
        rows = ""
        if config.group_size is None:  # otherwise the planner does not choose whole rows
            with_rows = _smallest_ratio(source, pressed, config.model_copy(update={"group_size": 0}))
            rows = f" ({_round_down(with_rows):.2f} with one scale a row, group size 0)"
        raise UsageError(
            f"a ratio of {config.target_ratio:g} is beyond reach for {source.path}: one plane everywhere, "
            f"embeddings too, gives at most {_round_down(largest_ratio):.2f}{rows}"
        )
    return largest_ratio


def _smallest_ratio(source: SourceModel, pressed: list[Target], config: CompressionConfig) -> float:
    """`ratio_file` with one plane for each of `pressed` and int8 rows for the embeddings not among them."""
    widest = {target.name: (1, group_sizes(target, config)[-1]) for target in pressed}
    smallest = _chosen(pressed, config, widest, _embedding_choices(source)[-1])
    return source.bytes_fp32 / packed_size(source, smallest)


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

    Without a target in `config` it is the size class's ratio, or the largest one reachable with int8
    embeddings where that is smaller; `config.planes` gives every linear layer that many planes and takes int8
    embeddings where the default target needs them. Otherwise embeddings and head become ternary planes where
    that is the cheaper way. `calibration` (tensor name -> input_moment [in], output_grad_moment [out]) makes
    the losses those of the model's output; without it they are weight errors.

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
    largest_reachable(source, targets, config)
    if config.planes is not None:
        return [_forced(source, targets, config, calibration)]
    usual = min(source.class_ratio, _round_down(_smallest_ratio(source, targets, config)))
    tables = embedding_targets(source)
    every = {
        t.name: [(p, g) for p in range(1, MAX_PLANES + 1) for g in group_sizes(t, config)]
        for t in (*targets, *tables)
    }
    costs = choice_costs([*targets, *tables], config, calibration, every)
    int8 = int8_losses(source, targets, costs, calibration)
    plans = []
    for ratio in ratios:
        target = usual if ratio is None else ratio
        found = []
        for embeddings in _embedding_choices(source):
            kept = {t.name: int8[t.name] if embeddings == "int8" else 0.0 for t in tables}
            plan = _solved(source, targets, tables, config, costs, kept, target, embeddings)
            if plan is not None:
                _price(plan, costs, int8, _makes_up(config, calibration))
                found.append(_finish(source, plan, target, calibration))
        # One of them at least: the smallest plan meets the target. A file well below what another one uses of
        # the bytes granted is none to choose: the user granted them.
        largest = max(plan.predicted_bytes or 0 for plan in found)
        found = [plan for plan in found if (plan.predicted_bytes or 0) >= 0.997 * largest]
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
    pressed = [*targets, *(t for t in embedding_targets(source) if t.name in plan.tensors)]
    asked = {}
    for t in pressed:  # the roughest choice as well: what is not calibrated is priced by it
        planned = plan.tensors[t.name]
        roughest = (1, group_sizes(t, config)[-1])
        asked[t.name] = list(dict.fromkeys([(planned.planes, planned.group_size), roughest]))
    zeros = {name: (planned.threshold, planned.sparsity) for name, planned in plan.tensors.items()}
    costs = choice_costs(pressed, config, calibration, asked, zeros)
    plan = plan.model_copy(deep=True)
    _price(plan, costs, int8_losses(source, targets, costs, calibration), _makes_up(config, calibration))
    return _finish(source, plan, None, calibration)


def _price(
    plan: Plan, costs: Mapping[str, Mapping[Choice, Cost]], int8: Mapping[str, float], made_up: bool
) -> None:
    for name, planned in plan.tensors.items():
        planned.predicted_loss = costs[name][planned.planes, planned.group_size].loss
    kept = [name for name in int8 if name not in plan.tensors] if plan.embeddings == "int8" else []
    total = sum(p.predicted_loss or 0.0 for p in plan.tensors.values())
    total += sum(int8[name] for name in kept)
    linear = [p for p in plan.tensors.values() if p.layer is not None]
    if made_up and linear:
        bits = 8 * sum(p.nbytes for p in linear) / sum(p.weights for p in linear)
        total *= min(1.0, (MADE_UP_FROM / bits) ** MADE_UP_POWER)
    plan.predicted_loss = total


def _makes_up(config: CompressionConfig, calibration: Mapping[str, Any] | None) -> bool:
    """Whether tensors are pressed so that later ones make up for what earlier ones lost: in the sweep."""
    return calibration is not None and config.method != "weighted"


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
    tables: list[Target],
    config: CompressionConfig,
    costs: Mapping[str, Mapping[Choice, Cost]],
    kept: Mapping[str, float],
    target_ratio: float,
    embeddings: Literal["fp16", "int8"],
) -> Plan | None:
    """The best choices within the target's bytes; None where not even the smallest ones fit.

    `tables` are embeddings that may be pressed, or else stay as `embeddings` says at the loss `kept`.
    """
    limit = math.floor(source.bytes_fp32 / target_ratio)
    while source.bytes_fp32 / limit < target_ratio:  # the division's own rounding
        limit -= 1
    pressed = [*targets, *tables]
    choices = [[*([KEPT] if t.name in kept else []), *costs[t.name]] for t in pressed]
    losses = [
        np.array([kept[t.name] if c == KEPT else costs[t.name][c].loss for c in own])
        for t, own in zip(pressed, choices)
    ]
    every = _chosen(pressed, config, {t.name: own[-1] for t, own in zip(pressed, choices)}, embeddings)
    sizes = []
    for target, planned, own in zip(pressed, every.tensors.values(), choices):
        sized = [planned.model_copy(update={"planes": p, "group_size": g}).nbytes for p, g in own]
        if own[0] == KEPT:
            sized[0] = target.rows * (target.cols + 2 if embeddings == "int8" else 2 * target.cols)
        sizes.append(np.array(sized))
    room = limit - (packed_size(source, every) - sum(p.nbytes for p in every.tensors.values()))
    while (found := knapsack(sizes, losses, room, slack=limit // 250)) is not None:
        plan = every.model_copy(deep=True)
        for target, own, index in zip(pressed, choices, found):
            planned = plan.tensors[target.name]
            planned.planes, planned.group_size = own[int(index)]
            if planned.planes == 0:
                del plan.tensors[target.name]
        over = packed_size(source, plan) - limit
        if over <= 0:
            return plan
        room -= over  # headers have grown: their digits are not in `sizes`
    return None
