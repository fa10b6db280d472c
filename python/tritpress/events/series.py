"""Long series in a snapshot: at most so many points, evenly thinned, with the ends and the extremes kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Values = Callable[[Any], Sequence[Any]]


def new_book() -> dict[str, int]:
    """How far a series is thinned: raw points of a bucket, those that came, those kept of the open one."""
    return {"stride": 1, "count": 0, "open": 0}


def add_point(points: list[Any], book: dict[str, int], point: Any, values: Values, limit: int) -> None:
    """Append `point`; with more than `limit` points, pairs of buckets become one.

    Of each bucket the points stay at which one of `values(point)` is least or largest, of the open one the
    last point too. The first point of all always stays. Everything depends on the points alone.
    """
    if book["stride"] > 1:
        if book["count"] >= book["stride"]:  # the bucket is full: only its extremes stay
            _reduce_tail(points, book, values, last=False)
            book.update(count=0, open=0)
        points.append(point)
        book["open"] += 1
        book["count"] += 1
        _reduce_tail(points, book, values, last=True)
    else:
        points.append(point)
    if len(points) > limit:
        width = 4 * len(values(point))
        kept = points[:1]
        for start in range(1, len(points), width):
            group = points[start : start + width]
            kept += [group[i] for i in extremes(group, values)]
        if kept[-1] is not points[-1]:
            kept.append(points[-1])
        points[:] = kept
        book.update(stride=width if book["stride"] == 1 else 2 * book["stride"], count=0, open=0)


def extremes(points: Sequence[Any], values: Values) -> list[int]:
    """Indices of the points at which one of their values is least or largest; the first if none is known."""
    found = set()
    for column in zip(*map(values, points)):
        known = [i for i, value in enumerate(column) if _known(value)]
        if known:
            found |= {min(known, key=column.__getitem__), max(known, key=column.__getitem__)}
    return sorted(found) or [0][: len(points)]


def _reduce_tail(points: list[Any], book: dict[str, int], values: Values, last: bool) -> None:
    if book["open"] < 2:
        return
    tail = points[-book["open"] :]
    chosen = sorted({*extremes(tail, values), len(tail) - 1}) if last else extremes(tail, values)
    points[len(points) - len(tail) :] = [tail[i] for i in chosen]
    book["open"] = len(chosen)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
