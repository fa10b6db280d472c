"""What could mend a failed gate, from what this run measured: the ground of the gates' advice."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.errors import TritpressError
from tritpress.evaluate.gates import RATIO, Alternative, Ways
from tritpress.evaluate.rerun import Command, beyond_options, write_settings
from tritpress.plan import Plan, foretell, largest_reachable, plans_for
from tritpress.program import program
from tritpress.steps.places import packed_folder
from tritpress.steps.soundness import unsound_tensors
from tritpress.steps.work import Work

STEPS = 24
"""Ratios that are planned for, from the gate's own up to the run's."""

NAMED_AGAIN = 20
"""Unsound tensors that one command line presses again; with more of them the run is done anew."""


def rerun(work: Work) -> Command:
    """The command line that repeats this run. What the command line has no option for is written to a file in
    the run's folder, which it names."""
    runs, settings = Path(work.directory.path).absolute().parent, None
    beyond = beyond_options(work.config)
    if beyond:
        file = Path(work.directory.path).absolute() / "settings.toml"
        write_settings(beyond, file)
        settings = str(file)
    return Command.of(
        work.config_again,
        str(work.source.path),
        str(work.out),
        program=program(absolute=True),
        settings=settings,
        runs=None if runs == _usual_runs() else str(runs),
    )


def ways_out(work: Work) -> Ways:
    """Everything that advice can offer; costs a second reading of the weights."""
    assert work.plan is not None
    unsound = unsound_tensors(work, packed_folder(work)) if _quality_is_at_stake(work) else []
    free = work.config.model_copy(update=_FREE)
    return Ways(
        alternatives=() if unsound else alternatives(work),
        largest_ratio=largest_reachable(work.source, work.targets, free),
        unsound=[(found["name"], found["reason"]) for found in unsound],
        again=_press_again_line(work, [found["name"] for found in unsound]),
        loss_curve=loss_curve(work),
    )


_FREE: dict[str, Any] = {
    "planes": None,
    "plan": None,
    "target_ratio": None,
    "sparsity": None,
    "threshold": None,
}


def alternatives(work: Work) -> list[Alternative]:
    """Plans at ratios from the gate's up to the run's, by falling ratio, without sparsity or threshold asked
    for.

    Their perplexity change is that of the run times the plans' predicted losses over the run's own predicted
    loss (in nats), the accuracy lost likewise. Empty where nothing was measured to scale by.
    """
    change, tasks = work.figures.get("perplexity_change"), work.task_results
    kept = (tasks or work.figures).get("accuracy_kept")  # as the gate: of the tasks where they were run
    ratio = work.figures.get("ratio_file")
    if change is None or ratio is None or work.plan is None or not math.isfinite(change):
        return []
    free = work.config.model_copy(update=_FREE)
    moments = _calibration(work)
    asked = any(p.threshold is not None or p.sparsity is not None for p in work.plan.tensors.values())
    if moments is not None and asked:
        # what was swept was swept as the run pressed: compare by what both can be estimated from
        moments = {n: {k: v for k, v in m.items() if k != "plane_losses"} for n, m in moments.items()}
    try:
        own = foretell(work.source, work.targets, work.config, moments, work.plan)
        largest = math.floor(100 * largest_reachable(work.source, work.targets, free)) / 100
        highest = min(max(ratio, RATIO), largest)
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
                raised=_raised(own, plan),
            )
        )
    return found


def loss_curve(work: Work) -> list[tuple[int, float]]:
    """[(tokens, log of perplexity over the original's)] of the run's own training, from its log, the start
    included; empty where none was measured.

    What is logged is the objective on validation text, (1 - s) KL + s CE with s the share of cross-entropy.
    Log perplexity is taken to differ from the end's by as much as the objective does, the KL divergence
    moving with it in the proportion measured at the end.
    """
    from tritpress.events.reader import EventReader

    change = work.figures.get("perplexity_change")
    kl = (work.evaluations.get("packed") or {}).get("kl")
    if not work.fine_tuning or change is None or not kl or change <= 0:
        return []
    points = {0: float(work.fine_tuning["loss_first"])}
    for event in EventReader(work.directory.path / "events.jsonl").poll():
        if event.get("type") == "finetune.step" and event.get("validation_loss") is not None:
            points[int(event["tokens"])] = float(event["validation_loss"])
    share = float(work.fine_tuning["recipe"].get("ce_share", 0.0))
    per_kl = math.log1p(change) / kl
    slope = per_kl / ((1.0 - share) + share * per_kl)
    best = float(work.fine_tuning["loss_best"])
    return [
        (tokens, math.log1p(change) + slope * (loss - best)) for tokens, loss in sorted(points.items())
    ]


def _raised(old: Plan, new: Plan) -> tuple[str, ...]:
    """Tensors with more planes than now, those first that cost most now."""
    found = [name for name, p in new.tensors.items() if p.planes > _planes(old, name)]
    return tuple(sorted(found, key=lambda name: -(old.tensors[name].predicted_loss or 0.0)))


def _planes(plan: Plan, name: str) -> int:
    return plan.tensors[name].planes if name in plan.tensors else 3


def _calibration(work: Work) -> Any:
    if not work.calibrates:
        return None
    from tritpress.ternarize.calibration import load_calibration

    return load_calibration(work.folder / "calibration.safetensors")


def _quality_is_at_stake(work: Work) -> bool:
    return any(gate["passed"] is False and gate["name"] != "ratio" for gate in work.gates)


def _press_again_line(work: Work, names: list[str]) -> str | None:
    if not names:
        return None
    if len(names) > NAMED_AGAIN:
        return str(rerun(work))
    path = Path(work.directory.path).absolute()
    words = ["compress", "--resume", path.name, "--runs", str(path.parent)]
    for name in names:
        words += ["--press-again", name]
    return f"{program(absolute=True)} {shlex.join(words)}"


def _usual_runs() -> Path:
    return Path(os.environ.get("TRITPRESS_RUNS") or "runs").absolute()
