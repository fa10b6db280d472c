"""Holding the zeros inside the sparsity gate's band: what it costs, looked at before anything is pressed."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from tritpress.formats.targets import Target
from tritpress.plan import Plan, TensorPlan, change_of
from tritpress.steps.details import sampled_rows, source_rows
from tritpress.steps.work import Work

ROWS = 64
"""Rows of each tensor that are fitted with its zeros held and free."""
MOST = 0.005
"""Relative change of perplexity that holding the zeros may cost."""
FLOOR = 0.26
"""Zeros of a tensor whose fit has fewer: as far inside the gate's band as the ceiling."""


def hold_zeros(work: Work, plan: Plan) -> dict[str, Any]:
    """Hold the zeros of the plan's free tensors inside the band, but for the dearest where that would cost
    `MOST`; returns {tensor name: what was found}, for `ceiling_cost`.

    A tensor is free where neither a sparsity nor a threshold is planned for it. Its ceiling stays, or where
    its fit has fewer zeros than the band `FLOOR` is asked of it. What that costs is the tensor's predicted
    loss times the share of its squared error that is due to it, on `ROWS` rows. Losses that rest on the
    weights alone are not in nats: then nothing is released or asked. Nor is it where the user gave the plan.
    """
    mine = work.config.plan is None and plan.basis == "calibrated"
    found = {}
    for target in work.pressed_by(plan):
        work.context.check()
        planned = plan.tensors[target.name]
        if planned.max_sparsity is not None and planned.sparsity is None and planned.threshold is None:
            found[target.name] = _compared(work, target, planned, floor=mine)
    total = 0.0
    for name, facts in sorted(found.items(), key=lambda item: item[1]["loss"]):
        planned, total = plan.tensors[name], total + facts["loss"]
        if mine and total >= math.log1p(MOST):
            planned.max_sparsity = None
        elif facts["low"]:
            planned.sparsity, planned.max_sparsity = FLOOR, None
    return found


def ceiling_cost(found: dict[str, Any] | None, plan: Plan) -> dict[str, Any] | None:
    """The report's `zeros_ceiling` by what `hold_zeros` found; None where no zeros were to be held.

    `tensors` of them are held, `raised` among these at `FLOOR`, and `released` are not held since that would
    cost too much. Over those held `error_increase` is the share by which the squared error of the weights
    grows, `sparsity_with` and `sparsity_without` the shares of zero codes, all over `rows` rows, and
    `perplexity_cost` the relative change of perplexity that this stands for where the plan's losses are in
    nats (None elsewhere). `released_cost` is that of holding the others too.
    """
    held, released = [], []
    for name, facts in (found or {}).items():
        planned = plan.tensors[name]
        if planned.max_sparsity is not None or (planned.sparsity == FLOOR and facts["low"]):
            held.append(facts)
        elif planned.sparsity is None and planned.threshold is None:
            released.append(facts)
    if not held and not released:
        return None

    def total(key: str) -> float:
        return math.fsum(facts[key] for facts in held)

    calibrated = plan.basis == "calibrated"
    free = total("error_without")
    return {
        "ceiling": max(facts["ceiling"] for facts in (held or released)),
        "floor": FLOOR,
        "tensors": len(held),
        "raised": sum(facts["low"] for facts in held),
        "released": len(released),
        "error_increase": total("error_with") / free - 1.0 if free else 0.0,
        "perplexity_cost": change_of(total("loss")) if calibrated else None,
        "released_cost": change_of(math.fsum(f["loss"] for f in released)) if calibrated else None,
        "sparsity_with": total("zeros_with") / total("codes") if held else None,
        "sparsity_without": total("zeros_without") / total("codes") if held else None,
        "rows": int(total("rows")),
    }


def _compared(work: Work, target: Target, planned: TensorPlan, floor: bool) -> dict[str, Any]:
    """One tensor's rows fitted from the weights alone, free and held."""
    from tritpress import _core
    from tritpress.ternarize.stats import summary

    weight = np.ascontiguousarray(source_rows(target, _rows(target)))
    codes_seen = weight.size * planned.planes

    def fitted(sparsity: float | None = None, max_sparsity: float | None = None) -> tuple[float, float]:
        codes, scales = _core.ternarize(
            weight,
            fit=cast(Any, work.config.fit),
            group_size=planned.group_size,
            planes=planned.planes,
            sparsity=sparsity,
            max_sparsity=max_sparsity,
            threads=work.config.threads,
        )
        seen = summary(_core.layer_statistics(weight, codes, scales, planned.group_size))
        return seen["mse"] * weight.size, seen["sparsity"] * codes_seen

    error_without, zeros_without = fitted()
    low = floor and zeros_without < FLOOR * codes_seen
    error_with, zeros_with = fitted(sparsity=FLOOR) if low else fitted(max_sparsity=planned.max_sparsity)
    share = 1.0 - error_without / error_with if error_with > 0 else 0.0
    return {
        "ceiling": planned.max_sparsity,
        "low": low,
        "loss": (planned.predicted_loss or 0.0) * max(0.0, share),
        "error_with": error_with,
        "error_without": error_without,
        "zeros_with": zeros_with,
        "zeros_without": zeros_without,
        "codes": codes_seen,
        "rows": len(weight),
    }


def _rows(target: Target) -> np.ndarray:
    """Indices of the rows looked at, counted over all experts."""
    if not target.experts:
        return np.arange(min(ROWS, target.rows))
    rows = sampled_rows(target)
    return rows[np.unique(np.linspace(0, len(rows) - 1, ROWS).round().astype(np.int64))]
