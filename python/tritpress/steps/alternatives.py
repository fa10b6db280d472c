"""What other ratios are predicted to give, from what this run measured: the ground of the gates' advice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tritpress.errors import TritpressError
from tritpress.evaluate.advice import Alternative
from tritpress.evaluate.gates import RATIO
from tritpress.plan import Plan, foretell, largest_reachable, plans_for
from tritpress.steps.work import Work

STEPS = 24
"""Ratios that are planned for, from the gate's own up to the run's."""


def alternatives(work: Work) -> list[Alternative]:
    """Plans at ratios from the gate's up to the run's, by falling ratio, without sparsity or threshold asked
    for.

    Their perplexity change is that of the run times the plans' predicted losses over the run's own predicted
    loss (in nats), the accuracy lost likewise. Empty where nothing was measured to scale by.
    """
    change, kept = work.figures.get("perplexity_change"), work.figures.get("accuracy_kept")
    ratio = work.figures.get("ratio_file")
    if change is None or ratio is None or work.plan is None or not math.isfinite(change):
        return []
    free = work.config.model_copy(
        update={"planes": None, "plan": None, "target_ratio": None, "sparsity": None, "threshold": None}
    )
    moments = _calibration(work)
    if moments is not None and (work.config.planes or free.max_sparsity != work.config.max_sparsity):
        # what was swept was swept as the run pressed: compare by what both can be estimated from
        moments = {n: {k: v for k, v in m.items() if k != "plane_losses"} for n, m in moments.items()}
    try:
        own = foretell(work.source, work.targets, work.config, moments, work.plan)
        largest = largest_reachable(work.source, work.targets, free)
        highest = min(max(ratio, RATIO), math.floor(100 * largest) / 100)
        if highest < RATIO:
            return []
        ratios = sorted({round(float(r), 2) for r in np.linspace(RATIO, highest, STEPS)}, reverse=True)
        plans = plans_for(work.source, work.targets, free, moments, [min(r, highest) for r in ratios])
    except TritpressError:
        return []
    loss = own.predicted_loss or 0.0
    if loss <= 0:
        return []
    found = []
    for plan in plans:
        share = (plan.predicted_loss or 0.0) / loss
        found.append(
            Alternative(
                ratio=float(plan.target_ratio or 0.0),
                change=math.expm1(share * math.log1p(max(change, 0.0))),
                kept=None if kept is None else 1.0 - share * max(0.0, 1.0 - kept),
                raised=_raised(work.plan, plan),
            )
        )
    return found


def _raised(old: Plan, new: Plan) -> tuple[str, ...]:
    """Tensors with more planes than now, those first that gain most."""
    found = [
        (name, (planned.predicted_loss or 0.0))
        for name, planned in new.tensors.items()
        if planned.planes > old.tensors[name].planes
    ]
    return tuple(name for name, _ in sorted(found, key=lambda x: -(old.tensors[x[0]].predicted_loss or 0.0)))


def _calibration(work: Work) -> Any:
    if work.method != "gptq":
        return None
    from tritpress.ternarize.calibration import load_calibration

    return load_calibration(work.folder / "calibration.safetensors")


def loss_curve(work: Work) -> list[tuple[int, float]]:
    """[(tokens, validation loss)] of the run's own training, from its log; the start included."""
    from tritpress.events.reader import read_events

    if not work.fine_tuning:
        return []
    points = {0: float(work.fine_tuning["loss_first"])}
    for event in read_events(work.directory.path):
        if event.get("type") == "finetune.step" and event.get("validation_loss") is not None:
            points[int(event["tokens"])] = float(event["validation_loss"])
    return sorted(points.items())
