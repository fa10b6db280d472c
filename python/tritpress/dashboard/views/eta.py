"""How long the running step and the whole run will still take, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tritpress.dashboard.views.figures import known, rough_duration
from tritpress.events.snapshot import step_worked

LEAST_CHUNKS = 4
"""Stretches of progress that must be seen before the spread of their pace says anything."""

SURE = 1.64
"""Standard deviations to either side: nine of ten times the end lies between, were the stretches alike."""


@dataclass(frozen=True)
class TimeLeft:
    """Seconds; `low` and `high` None while too little was seen to say."""

    seconds: float
    low: float | None = None
    high: float | None = None


def time_left(
    step: dict[str, Any] | None, now: float, samples: Sequence[tuple[float, float]] = ()
) -> TimeLeft | None:
    """What is left of `step` at the pace of `samples` (time, done); None when that cannot be said.

    The remaining stretches are taken to be like those seen: their mean gives the estimate, their spread and
    their number how sure it is.
    """
    if not step or not known(step.get("total")) or not known(step.get("done")):
        return None
    chunks = [(t1 - t0, d1 - d0) for (t0, d0), (t1, d1) in pairwise(samples) if d1 > d0 and t1 >= t0]
    amount = sum(done for _, done in chunks)
    spent = sum(seconds for seconds, _ in chunks)
    rest = step["total"] - step["done"]
    if amount <= 0 or spent <= 0 or rest < 0:
        return None
    pace = spent / amount
    waited = max(now - samples[-1][0], 0.0)  # since the last report: part of the next stretch
    seconds = max(rest * pace - waited, 0.0)
    if len(chunks) < LEAST_CHUNKS:
        return TimeLeft(seconds)
    size = amount / len(chunks)
    variance = sum((part - pace * done) ** 2 for part, done in chunks) / (len(chunks) - 1)
    coming = rest / size
    error = SURE * math.sqrt(variance * (coming + coming**2 / len(chunks)))
    return TimeLeft(seconds, max(seconds - error, 0.0), seconds + error)


def run_left(
    steps: Sequence[dict[str, Any]],
    now: float,
    this: TimeLeft | None,
    earlier: Sequence[Sequence[float | None]],
) -> TimeLeft | None:
    """What is left of a run whose running step needs `this` more: the waiting steps take what they took in
    `earlier` runs, and so does the running one where nothing better is known. None without such a run.

    The estimate is the mean, `low` and `high` are the shortest and the longest of them.
    """
    totals: list[TimeLeft] = []
    for seconds in earlier:
        found = _left_by(steps, now, this, seconds)
        if found is not None:
            totals.append(found)
    if not totals:
        return None
    mean = sum(total.seconds for total in totals) / len(totals)
    if len(totals) == 1:
        return TimeLeft(mean)
    low, high = ([getattr(t, end) or t.seconds for t in totals] for end in ("low", "high"))
    return TimeLeft(mean, min(low), max(high))


def _left_by(
    steps: Sequence[dict[str, Any]], now: float, this: TimeLeft | None, seconds: Sequence[float | None]
) -> TimeLeft | None:
    """The same by one earlier run; None where it did not go through a step that is still to come."""
    coming, spread = 0.0, (0.0, 0.0)
    for step, took in zip(steps, seconds):
        if step["state"] == "running" and this is not None:
            coming += this.seconds
            if this.low is not None and this.high is not None:
                spread = (this.low - this.seconds, this.high - this.seconds)
        elif step["state"] in ("running", "waiting"):
            if not known(took):
                return None
            spent = step_worked(step, now) if step["state"] == "running" else None
            coming += max(took - (spent or 0.0), 0.0)
    return TimeLeft(coming, coming + spread[0], coming + spread[1])


def time_left_words(left: TimeLeft | None) -> str:
    """`about 3 min left (2 min to 5 min)`, "" when nothing can be said."""
    if left is None:
        return ""
    words = f"about {rough_duration(left.seconds)} left"
    if left.low is None or left.high is None:
        return words
    low, high = rough_duration(left.low), rough_duration(left.high)
    return words if low == high else f"{words} ({low} to {high})"
