"""Plug-ins: what other packages add to the page, found by the entry point group `tritpress.dashboard`.

A plug-in reads a run's state (a dict, as `events.snapshot` folds it) and gives cards, charts and tabs. One
that raises is shown as a note with its name and error; the page goes on. See docs/plugins.md.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritpress.dashboard.components.html import Markup, join, note
from tritpress.dashboard.views import curves
from tritpress.dashboard.views import figures as fig

log = logging.getLogger(__name__)

GROUP = "tritpress.dashboard"

TONES = ("neutral", "live", "good", "warning", "bad")

State = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A figure with its name; everything in it is text. `tone` is one of `TONES`."""

    title: str
    value: str
    note: str = ""
    tone: str = "neutral"


@dataclass(frozen=True)
class Chart:
    """Lines by name, each a sequence of (x, y)."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str = "Training step"
    y_label: str = "Value"


@dataclass(frozen=True)
class Plugin:
    """What an entry point names. Each function gets the state of the run that is open."""

    overview: Sequence[Callable[[State], Card]] = ()
    quality: Sequence[Callable[[State], Card]] = ()
    charts: Sequence[Callable[[State], Chart]] = ()
    tabs: Mapping[str, Any] = field(default_factory=dict)
    """Title -> a function from the state to text, `Markup`, a `Card`, a `Chart` or a list of these; or a
    subclass of `tritpress.dashboard.tabs.base.Tab`."""


@dataclass(frozen=True)
class Found:
    """A plug-in of this installation: itself, or why it could not be loaded."""

    name: str
    plugin: Plugin | None
    error: str = ""


@functools.cache
def plugins() -> tuple[Found, ...]:
    """All plug-ins, by name; looked for once in a process."""
    found = []
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            made = entry.load()
            if not isinstance(made, Plugin):
                raise TypeError(f"{entry.value} is a {type(made).__name__}, not a Plugin")
            found.append(Found(entry.name, made))
        except (Exception, SystemExit) as error:
            log.exception("cannot load the plug-in %s", entry.name)
            found.append(Found(entry.name, None, words(error)))
    return tuple(found)


def words(error: BaseException) -> str:
    """An error in one line."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def trouble(name: str, error: str) -> Markup:
    """The note that stands in the place of what a plug-in did not give."""
    return Markup('<div data-plugin-error="{}" style="margin-top:8px">{}</div>').format(
        name, note("warning", f"The plug-in {name} failed: {error}")
    )


def plugin_cards(place: str, state: State) -> Markup:
    """The cards that plug-ins add to `place` (overview or quality), and notes of those that failed."""
    cards, notes = [], []
    for found in plugins():
        if found.plugin is None:
            notes.append(trouble(found.name, found.error))
            continue
        for make in getattr(found.plugin, place):
            try:
                cards.append(card_html(_is(Card, make(dict(state))), found.name))
            except Exception as error:
                log.debug("the plug-in %s failed", found.name, exc_info=True)
                notes.append(trouble(found.name, words(error)))
    body = Markup('<div class="tiles">{}</div>').format(join(cards)) if cards else Markup("")
    return body + join(notes)


def plugin_charts(state: State) -> tuple[list[curves.Chart], Markup]:
    """The charts that plug-ins add to the Metrics tab, and notes of those that failed."""
    charts, notes = [], []
    for found in plugins():
        if found.plugin is None:
            notes.append(trouble(found.name, found.error))
            continue
        for number, make in enumerate(found.plugin.charts):
            try:
                made = _is(Chart, make(dict(state)))
                charts.append(curve_chart(made, f"plugin:{found.name}:{number}"))
            except Exception as error:
                log.debug("the plug-in %s failed", found.name, exc_info=True)
                notes.append(trouble(found.name, words(error)))
    return charts, join(notes)


def card_html(card: Card, name: str = "") -> Markup:
    """A card as a tile."""
    tone = card.tone if card.tone in TONES else "neutral"
    return Markup(
        '<div class="tile" data-plugin="{}"><div class="name">{}</div><div class="value {}">{}</div>'
        '<div class="beside soft">{}</div></div>'
    ).format(name, card.title, tone if tone != "neutral" else "", card.value, card.note)


def curve_chart(chart: Chart, key: str) -> curves.Chart:
    """A plug-in's chart as the page draws its own; thinned to what a browser is sent."""
    lines = []
    for number, (title, points) in enumerate(chart.lines.items()):
        pairs = [(float(x), float(y) if fig.known(y) else math.nan) for x, y in points if fig.known(x)]
        kept = curves.downsample([y for _, y in pairs], curves.POINTS)
        lines.append(
            curves.Line(f"line{number}", str(title), [pairs[i][0] for i in kept], [pairs[i][1] for i in kept])
        )
    return curves.Chart(key, str(chart.title), str(chart.x_label), str(chart.y_label), tuple(lines))


def _is(kind: type, made: Any) -> Any:
    if not isinstance(made, kind):
        raise TypeError(f"gave a {type(made).__name__}, not a {kind.__name__}")
    return made
