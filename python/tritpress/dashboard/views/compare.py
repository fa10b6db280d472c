"""The Compare tab as data: two to six runs side by side, as they are to be read."""

from __future__ import annotations

import functools
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.curves import (
    X_LABELS,
    Chart,
    Line,
    custom_charts,
    lone_points,
    training_charts,
    x_words,
)
from tritpress.dashboard.views.ending import over
from tritpress.dashboard.views.runs import WORDS
from tritpress.dashboard.views.status import actual_words, gate_title, passed_of
from tritpress.runs.comparison import Figure, Side, figures, gates, settings, shown_as

COMPARED_METRICS = 60
"""At most so many custom metrics are overlaid."""

SHOW: dict[str, Callable[[Any], str]] = {
    "bytes": fig.size,
    "memory_bytes": fig.size,
    "memory_bytes_before": fig.size,
    "ratio_file": fig.ratio,
    "ratio_layers": fig.ratio,
    "ratio_disk": fig.ratio,
    "bits_per_weight": lambda value: f"{value:.2f}" if fig.known(value) else fig.NOTHING,
    "planes_mean": lambda value: f"{value:.2f}" if fig.known(value) else fig.NOTHING,
    "sparsity": fig.percent,
    "perplexity_before": lambda value: fig.significant(value, 4),
    "perplexity": lambda value: fig.significant(value, 4),
    "perplexity_change": lambda value: fig.change(value, 2),
    "top1": lambda value: fig.percent(value, 2),
    "accuracy_kept": lambda value: fig.percent(value, 2),
    "tasks_kept": lambda value: fig.percent(value, 2),
    "agreement": lambda value: fig.percent(value, 2),
    "latency_ms": lambda value: f"{fig.significant(value)} ms" if fig.known(value) else fig.NOTHING,
    "tokens_per_s": lambda value: f"{fig.significant(value)} tokens/s" if fig.known(value) else fig.NOTHING,
    "seconds": fig.duration,
}

MARKS = {True: ("✓", "good", "passed"), False: ("✕", "bad", "failed"), None: ("?", "neutral", "not measured")}


@dataclass(frozen=True)
class Head:
    """One run at the top of its column."""

    id: str
    name: str
    label: str
    tone: str
    mark: str


@dataclass(frozen=True)
class Cell:
    """`best`: among the best of its row; `tone` and `mark` say a gate's verdict."""

    text: str
    best: bool = False
    tone: str = ""
    mark: str = ""
    word: str = ""


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    heads: tuple[Head, ...]
    differing: tuple[Row, ...]
    same: tuple[Row, ...]
    figures: tuple[Row, ...]
    gates: tuple[Row, ...]


def compare(sides: Sequence[Side]) -> Comparison:
    """Everything but the curves."""
    rows = [
        (
            row.differs,
            Row(row.key, row.key.replace("_", " "), tuple(Cell(value_words(v)) for v in row.values)),
        )
        for row in settings(sides)
    ]
    return Comparison(
        tuple(map(_head, sides)),
        tuple(row for differs, row in rows if differs),
        tuple(row for differs, row in rows if not differs),
        tuple(map(_figure, figures(sides))),
        tuple(
            Row(name, gate_title(name), tuple(_gate(name, gate, side) for gate, side in zip(found, sides)))
            for name, found in gates(sides)
        ),
    )


def _head(side: Side) -> Head:
    label, tone, mark = WORDS.get(side.status, (side.status, "neutral", "○"))
    return Head(side.id, side.name, label, tone, mark)


def value_words(value: Any) -> str:
    """A setting as it is to be read; a dash is what tritpress chooses."""
    if value is None or value == []:
        return fig.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _figure(row: Figure) -> Row:
    show = SHOW.get(shown_as(row.key), fig.significant)
    cells = []
    for place, value in enumerate(row.values):
        text = show(value)
        interval = row.intervals[place] if row.intervals else None
        if interval is not None:
            text += f" ({fig.change(interval[0]).removesuffix(' %')} to {fig.change(interval[1])})"
        cells.append(Cell(text, best=place in row.best))
    return Row(row.key, row.title, tuple(cells))


def _gate(name: str, gate: Any, side: Side) -> Cell:
    if gate is None and over({"status": side.status}, lost=side.status == "died"):
        return Cell(fig.NOTHING, mark="–", tone="neutral", word="not judged")
    if gate is None:
        return Cell(fig.NOTHING, mark="○", tone="neutral", word="not judged yet")
    mark, tone, word = MARKS[passed_of(gate.get("passed"))]
    return Cell(actual_words(name, gate.get("actual"), gate.get("target")), mark=mark, tone=tone, word=word)


CURVES = {
    "loss": ("Loss", "Nats a token"),
    "validation_loss": ("Validation loss", "Nats a token"),
    "kl": ("KL divergence from the original", "Nats a token"),
    "lr": ("Learning rate", "Rate"),
    "grad_norm": ("Gradient norm", "Norm"),
    "tokens_per_s": ("Training speed", "Tokens a second"),
}
"""Series of fine-tuning that are laid over one another: title and y label."""


@dataclass(frozen=True)
class Overlay:
    """One curve of each run; `x` is tokens trained on, or the training step where tokens are not known.
    `dots` marks single points, for series with few.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    dots: bool = False

    @property
    def empty(self) -> bool:
        return not any(x for x, _ in self.lines)


TWIN_ROWS = 12


def overlay_rows(overlay: Overlay) -> list[tuple[str, ...]]:
    """The curves as rows: x, then the last value of each run up to there ("–" beyond a run's ends)."""
    ends = [x for xs, _ in overlay.lines for x in (xs[:1] + xs[-1:])]
    if not ends:
        return []
    low, high = min(ends), max(ends)
    at = [low, *(low + (high - low) * i / (TWIN_ROWS - 1) for i in range(1, TWIN_ROWS - 1)), high]
    if overlay.x_label != X_LABELS["time"]:  # there is no half of a step or token, but of a minute
        at = [round(x) for x in at]
    return [(x_words(x), *(_value_at(line, x) for line in overlay.lines)) for x in sorted(set(at))]


def _value_at(line: tuple[tuple[float, ...], tuple[float, ...]], x: float) -> str:
    xs, ys = line
    found = bisect_right(xs, x)
    if found == 0 or x > xs[-1]:
        return fig.NOTHING
    return fig.significant(ys[found - 1], 4)


def overlays(sides: Sequence[Side]) -> list[Overlay]:
    """The curves of fine-tuning over the same axis, then every custom metric that a run has."""
    for axis in ("tokens", "step"):
        made = [
            _overlay(key, *words, X_LABELS[axis], [lines.get(key) for lines in _training(sides, axis)])
            for key, words in CURVES.items()
        ]
        if any(not overlay.empty for overlay in made):
            break
    return made + _custom(sides, axis)


def _training(sides: Sequence[Side], axis: str) -> list[dict[str, Line]]:
    """Each run's series of fine-tuning by key."""
    return [
        {line.key: line for chart in training_charts(dict(side.state), axis) for line in chart.lines}
        for side in sides
    ]


def _custom(sides: Sequence[Side], axis: str) -> list[Overlay]:
    """The custom metrics; by time where a run has values that belong to no step of training."""

    @functools.cache
    def by(x: str) -> list[dict[str, Chart]]:
        return [{chart.key: chart for chart in custom_charts(dict(side.state), x)} for side in sides]

    made = []
    for key in list(dict.fromkeys(key for found in by(axis) for key in found))[:COMPARED_METRICS]:
        placed = all(found[key].x_label == X_LABELS[axis] for found in by(axis) if key in found)
        there = by(axis if placed else "time")
        chart = next(found[key] for found in there if key in found)
        lines = [found[key].lines[0] if key in found else None for found in there]
        made.append(_overlay(key, chart.title, chart.y_label, chart.x_label, lines))
    return made


def metrics_left_out(sides: Sequence[Side]) -> int:
    """Custom metrics beyond those that are laid over one another."""
    return max(len({name for side in sides for name in side.state["metrics"]}) - COMPARED_METRICS, 0)


def _overlay(key: str, title: str, y_label: str, x_label: str, found: Sequence[Line | None]) -> Overlay:
    lines = tuple((tuple(line.x), tuple(line.y)) if line is not None else ((), ()) for line in found)
    few = any(line is not None and (line.dots or lone_points(line.x, line.y)[0]) for line in found)
    return Overlay(key, title, x_label, y_label, lines, few)
