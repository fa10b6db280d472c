"""How long the running step will still take, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tritpress.dashboard.views.figures import known, rough_duration

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


def time_left_words(left: TimeLeft | None) -> str:
    """`about 3 min left (2 min to 5 min)`, "" when nothing can be said."""
    if left is None:
        return ""
    words = f"about {rough_duration(left.seconds)} left"
    if left.low is None or left.high is None:
        return words
    low, high = rough_duration(left.low), rough_duration(left.high)
    return words if low == high else f"{words} ({low} to {high})"
