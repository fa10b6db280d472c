"""Curves as data: training figures and custom metrics by step, tokens or time, smoothed on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.metrics import POINTS, downsample
from tritpress.dashboard.views.status import State

X_AXES = {"step": "Step", "tokens": "Tokens", "time": "Time"}
X_LABELS = {"step": "Training step", "tokens": "Tokens trained on", "time": "Minutes since the start"}

CUSTOM_CHARTS = 24
"""Custom metrics on one page of the metrics tab."""

TWIN_ROWS = 20


@dataclass(frozen=True)
class Line:
    """One series; NaN where a value is none. `dots` marks single points, for series with few."""

    key: str
    title: str
    x: list[float]
    y: list[float]
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """What one chart shows."""

    key: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    whole: bool = False  # y in whole numbers with thousands apart

    @property
    def empty(self) -> bool:
        return not any(line.x for line in self.lines)


TRAINING: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ("loss", "Loss", "Nats a token", (("loss", "Training"), ("validation_loss", "Validation"))),
    ("kl", "KL divergence from the original", "Nats a token", (("kl", "KL divergence"),)),
    ("ce", "Cross-entropy", "Nats a token", (("ce", "Cross-entropy"),)),
    ("grad_norm", "Gradient norm", "Norm", (("grad_norm", "Gradient norm"),)),
    ("lr", "Learning rate", "Rate", (("lr", "Learning rate"),)),
    ("tokens_per_s", "Training speed", "Tokens a second", (("tokens_per_s", "Tokens a second"),)),
)
"""Key, title, y label and series (key of the event, name) of each chart of fine-tuning."""


def training_charts(state: State, x: str = "step") -> list[Chart]:
    """The charts of fine-tuning that have any value; at most `POINTS` points a series."""
    points = list(state["finetune"])
    last = state.get("finetune_last")
    if last and points and last.get("step", 0) > points[-1].get("step", 0):
        points.append(last)
    started = _started(state)
    xs = [_x_of(point, x, started) for point in points]
    found = []
    for key, title, y_label, series in TRAINING:
        lines = []
        for name, words in series:
            ys = [_number(point.get(name)) for point in points]
            sparse = name == "validation_loss"
            lines.append(_line(name, words, xs, ys, sparse))
        lines = [line for line in lines if any(value == value for value in line.y)]
        if lines:
            found.append(Chart(key, title, X_LABELS[x], y_label, tuple(lines), key == "tokens_per_s"))
    return found


def custom_charts(state: State, x: str = "step", part: slice = slice(None)) -> list[Chart]:
    """A chart for each custom metric (of those in `part`), in the order of their first values."""
    started, found = _started(state), []
    for name, points in list(state["metrics"].items())[part]:
        axis = x
        xs = [_x_of(_named(point), axis, started) for point in points]
        if not any(value == value for value in xs):  # no training step was under way: by time
            axis = "time"
            xs = [_x_of(_named(point), axis, started) for point in points]
        ys = [_number(point[1]) for point in points]
        line = _line("value", name, xs, ys, sparse=False)
        found.append(Chart(f"metric:{name}", name, X_LABELS[axis], "Value", (line,)))
    return found


def custom_page(state: State, page: int) -> tuple[slice, int, int]:
    """(metrics on that page, the page as far as there is one, pages); pages count from 0."""
    pages = max(1, -(-len(state["metrics"]) // CUSTOM_CHARTS))
    page = min(max(page, 0), pages - 1)
    return slice(page * CUSTOM_CHARTS, (page + 1) * CUSTOM_CHARTS), page, pages


def lone_points(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The values without a neighbour (NaN is none): a line does not show them."""
    known = [False, *(value == value for value in y), False]
    found = [i for i in range(len(y)) if known[i + 1] and not known[i] and not known[i + 2]]
    return [x[i] for i in found], [y[i] for i in found]


def smooth(values: Sequence[float], share: float, before: tuple[float, float] = (0.0, 0.0)) -> list[float]:
    """Exponential moving average in which each value weighs `1 - share` of the rest; NaN is passed over.

    `before` is (sum, weight) of what came earlier; `smooth_state` gives it. Corrected for its start, so that
    the first value is the first average.
    """
    if not share:
        return list(values)
    total, weight = before
    found = []
    for value in values:
        if value == value:
            total, weight = share * total + (1 - share) * value, share * weight + (1 - share)
        # Twelve digits: a constant stays one, whatever the sums lose.
        found.append(float(f"{total / weight:.12g}") if weight and value == value else float("nan"))
    return found


def smooth_state(
    values: Sequence[float], share: float, before: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, float]:
    """Where `smooth` stands after those values."""
    total, weight = before
    for value in values:
        if value == value:
            total, weight = share * total + (1 - share) * value, share * weight + (1 - share)
    return total, weight


def twin_caption(title: str, y_label: str) -> str:
    """What stands over a chart's table: its title and what its figures are, `Loss, nats a token`."""
    unit = y_label if y_label[1:2].isupper() else y_label[:1].lower() + y_label[1:]
    return f"{title}, {unit}" if unit and unit not in title.lower().split() else title


def twin_rows(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """The chart as a table of at most `TWIN_ROWS` rows: headings and rows, ends kept."""
    main = max(chart.lines, key=lambda line: len(line.x))
    rows = []
    others = [dict(zip(line.x, line.y)) for line in chart.lines]
    marks = sorted({x for line in chart.lines if line.dots for x in line.x})
    chosen = main.x if len(main.x) <= TWIN_ROWS else [
        main.x[round(i * (len(main.x) - 1) / (TWIN_ROWS - 1))] for i in range(TWIN_ROWS)
    ]  # fmt: skip
    if marks:
        chosen = sorted({*chosen, *marks})
    for x in chosen:
        rows.append([x_words(x), *(fig.significant(values.get(x), 4) for values in others)])
    return [chart.x_label, *(line.title for line in chart.lines)], rows


def _line(key: str, title: str, xs: list[float], ys: list[float], sparse: bool) -> Line:
    kept = [i for i in range(len(xs)) if xs[i] == xs[i] and (not sparse or ys[i] == ys[i])]
    if len(kept) > POINTS:
        kept = [kept[i] for i in downsample([ys[i] for i in kept], POINTS)]
    return Line(key, title, [xs[i] for i in kept], [ys[i] for i in kept], dots=sparse)


def _named(point: Sequence[Any]) -> dict[str, Any]:
    """A point of a custom metric, [time, value, training step, tokens], with names."""
    return dict(zip(("t", "value", "step", "tokens"), point))


def _started(state: State) -> float | None:
    """When the run began; of one whose log does not say so, the first point's time."""
    if fig.known(state.get("started")):
        return state["started"]
    firsts = [points[0][0] for points in state["metrics"].values() if points]
    firsts += [point.get("t") for point in state["finetune"][:1]]
    return min(filter(fig.known, firsts), default=None)


def _x_of(point: dict[str, Any], axis: str, started: float | None) -> float:
    if axis == "time":
        t = _number(point.get("t"))
        return (t - started) / 60 if started is not None else math.nan
    return _number(point.get(axis))


def x_words(x: float) -> str:
    """A place on the x axis: whole numbers as counts, minutes with their fractions."""
    return fig.count(x) if x == int(x) else fig.significant(x, 4)


def _number(value: Any) -> float:
    return float(value) if fig.known(value) else math.nan
