"""What the rows of all benches have in common: their keys, and timing in turns.

Every row has every one of `KEYS`; null is what has no meaning there (docs/kernels.md, "Rows of the benches").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

KEYS = (
    "op", "rows", "cols", "n", "threads", "where", "isa", "format", "group_size", "us", "gb_s", "gop_s",
    "floor_us", "ratio_floor", "torch_us", "ratio_torch",
)  # fmt: skip

UNTIMED, TIMED = 3, 5
"""Calls of a competitor in each of its turns, the first ones at least that many."""
SETTLE = 0.003
"""Seconds that the untimed calls go on for: OpenMP's threads spin for some milliseconds after a call."""
MOST_TURNS = 80
SECONDS = 0.25
"""A race lasts so long for each of its runners, or two turns of each."""

Row = dict[str, Any]
Runners = dict[str, Callable[[int], object]]


def whole(row: Row) -> Row:
    """The row with all `KEYS` first, in their order, None where it has no value; then what else it has."""
    return dict.fromkeys(KEYS) | row


def race(runners: Runners) -> dict[str, list[float]]:
    """Microseconds of each runner's calls; a runner is called with its own count of calls so far.

    They take turns of some untimed calls and then `TIMED` timed ones: the first bring a runner's own data
    back to the cache (one reading of a matrix does not, on CPUs whose last level takes in what the others
    drop) and outlast the spinning of the threads of the one before.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    calls = dict.fromkeys(runners, 0)

    def call(name: str) -> float:
        calls[name] += 1
        before = time.perf_counter_ns()
        runners[name](calls[name])
        return (time.perf_counter_ns() - before) / 1e3

    start = time.perf_counter()
    for turn in range(MOST_TURNS):
        if turn >= 2 and time.perf_counter() - start > SECONDS * len(runners):
            break
        for name in runners:
            settled = time.perf_counter() + SETTLE
            untimed = 0
            while untimed < UNTIMED or time.perf_counter() < settled:
                call(name)
                untimed += 1
            times[name] += [call(name) for _ in range(TIMED)]
    return times


def summary(times: list[float]) -> tuple[float, list[float]]:
    """The median, and the lower and upper quartile."""
    low, middle, high = np.percentile(times, [25, 50, 75])
    return round(float(middle), 2), [round(float(low), 2), round(float(high), 2)]
