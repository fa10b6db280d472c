"""Overview: where the run stands, its figures with their targets, its steps, its events, what is next."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import panel_material_ui as pmui
from panel import Column, FlexBox

from tritpress.dashboard.components.eventlog import EventLog
from tritpress.dashboard.components.export import csv_button
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.kept import Kept
from tritpress.dashboard.logsearch import LogSearch
from tritpress.dashboard.plugins import plugin_cards
from tritpress.dashboard.tabs.base import CLOCK, Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.events import (
    KINDS,
    LEVELS,
    EventSearch,
    event_lines,
    found_words,
    left_out_words,
)
from tritpress.dashboard.views.overview import StepLine, Tile, facts, step_lines, tiles
from tritpress.dashboard.views.status import elapsed, next_words, run_left_words, status_of

STEP_MARKS = {
    "waiting": "",
    "running": "▸",
    "done": "✓",
    "skipped": "–",
    "failed": "✕",
    "stopped": "■",
    "unreached": "–",
}
STEP_TONES = {
    "waiting": "neutral",
    "running": "live",
    "done": "good",
    "skipped": "neutral",
    "failed": "bad",
    "stopped": "warning",
    "unreached": "neutral",
}

LOG_EVERY = 0.5
"""Seconds between two looks at the list of events: a page of text need not change more often."""

LOOKING = "Looking through the whole log …"

OF_LOG = frozenset({"layer.finished", "output", "handoff", "command.ack"})
"""Event types that only the list of events shows."""


class Overview(Tab):
    key = "overview"
    title = "Overview"
    interests = OF_LOG | {
        CLOCK,
        "labels",
        "liveness",
        "run.started",
        "run.queued",
        "run.paused",
        "run.resumed",
        "run.finished",
        "run.failed",
        "step.started",
        "step.progress",
        "step.finished",
        "model",
        "plan",
        "figures",
        "evaluation",
        "tasks",
        "gate",
        "log",
        "alert",
    }

    def __init__(self, page: PageContext) -> None:
        super().__init__(page)
        self.search = EventSearch()
        self.last: Shown | None = None
        self.listed: Kept | None = None  # the events that the list, or the search of the log, is made of
        self.looking: LogSearch | None = None
        self.listed_at = 0.0
        self._quiet = False

    def query(self) -> dict[str, str]:
        found = {"find": self.search.words, "kind": self.search.kind, "level": self.search.level}
        return {key: value for key, value in found.items() if value and value != "info"}

    def go(self, query: Mapping[str, str]) -> None:
        kind, level = query.get("kind", ""), query.get("level", "info")
        self.search = EventSearch(
            query.get("find", ""), kind if kind in KINDS else "", level if level in LEVELS else "info"
        )
        if self.built:
            self._show_search()

    def forget(self) -> None:
        super().forget()
        self._look_no_more()
        self.search, self.last, self.listed = EventSearch(), None, None

    def build(self) -> list[Any]:
        self.status, self.figures, self.steps = Fragment(), Fragment(), Fragment()
        self.facts, self.added = Fragment(), Fragment()
        self.steps.pane.styles = {"flex": "3 1 400px", "min-width": "0"}
        self.facts.pane.styles = {"flex": "2 1 320px", "min-width": "0"}
        for fragment in (self.status, self.figures, self.added):
            fragment.pane.margin = (0, 0, 14, 0)
        pair = FlexBox(
            self.steps.pane,
            self.facts.pane,
            sizing_mode="stretch_width",
            gap="14px",
            align_items="start",
            margin=(0, 0, 14, 0),
        )
        return [self.status.pane, self.figures.pane, self.added.pane, pair, self._build_log()]

    def _build_log(self) -> Any:
        field: dict[str, Any] = {"size": "small", "margin": 0, "sizing_mode": "stretch_width"}
        self.find = pmui.TextInput(
            label="Find in events", styles={"flex": "2 1 180px", "width": "auto"}, **field
        )
        self.kind = pmui.Select(
            label="About",
            options={"Anything": "", **{title: key for key, title in KINDS.items()}},
            value="",
            styles={"flex": "1 1 130px", "width": "auto"},
            **field,
        )
        self.level = pmui.Select(
            label="Level",
            options={title: key for key, title in LEVELS.items()},
            value="info",
            styles={"flex": "1 1 150px", "width": "auto"},
            **field,
        )
        self.events, self.no_events, self.left_out = EventLog(), Fragment(), Fragment()
        self.left_out.pane.margin = (8, 0, 0, 0)
        title = Fragment(Markup('<h2 style="margin:0">Events</h2>'))
        self._show_search()
        self.find.param.watch(lambda event: self._searched(words=event.new.strip()), "value_input")
        self.kind.param.watch(lambda event: self._searched(kind=event.new or ""), "value")
        self.level.param.watch(lambda event: self._searched(level=event.new or "info"), "value")
        tools = FlexBox(
            self.find,
            self.kind,
            self.level,
            sizing_mode="stretch_width",
            gap="10px 12px",
            margin=(10, 0, 8, 0),
        )
        self.log = Column(
            title.pane,
            tools,
            self.no_events.pane,
            self.events,
            self.left_out.pane,
            sizing_mode="stretch_width",
            margin=0,
            styles={
                "border": "1px solid color-mix(in srgb, var(--panel-on-surface-color) 16%, transparent)",
                "border-radius": "8px",
                "padding": "14px 16px",
            },
        )
        return self.log

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        self.log.visible = shown is not None
        if shown is None:
            missing = self.page.missing
            there = self.page.store.path_of(missing) is not None
            self.status.set(
                empty(
                    f"The run {missing!r} cannot be read"
                    if there
                    else f"There is no run {missing!r}"
                    if missing
                    else "No run is open",
                    "The server's output says why."
                    if there
                    else f"None of that name lies in {self.page.store.runs_dir}; it may be in the trash. "
                    "The list of runs has all there are."
                    if missing
                    else "Open one from the list of runs, or choose a model and press Start.",
                )
            )
            for fragment in (self.figures, self.added, self.steps, self.facts):
                fragment.set(Markup(""))
            return
        state = shown.state
        if changed is None or changed - OF_LOG:
            self.status.set(_status(shown))
            self.steps.set(_steps(shown))
        if changed is None or changed - OF_LOG - {CLOCK, "step.progress"}:
            self.figures.set(_tiles(shown))
            rows = join(
                Markup("<dt>{}</dt><dd>{}</dd>").format(fact.name, fact.value)
                for fact in facts(state, shown.now)
            )
            self.facts.set(panel("Run", Markup("<dl>{}</dl>").format(rows)))
        if changed is None or self.pending:
            self.take_up()

    @property
    def pending(self) -> bool:
        if not self.built or self.last is None:
            return False
        if self.looking is not None and self.looking.ready:
            return True
        return self.last.kept is not self.listed and time.monotonic() - self.listed_at >= LOG_EVERY

    def take_up(self) -> None:
        """Show the events that came."""
        shown = self.last
        if shown is None:
            return
        self.listed_at = time.monotonic()
        self.added.set(plugin_cards("overview", shown.state))
        if self.search != EventSearch():
            self._look(shown)
            return
        self._look_no_more()
        kept = self.listed = shown.kept
        lines, more = event_lines(kept.events, names=shown.names)
        self._list(lines, left_out_words(more, kept.older + kept.older_grave))

    def _look(self, shown: Shown) -> None:
        """What the search finds: at once among the events at hand, soon in the whole log."""
        look = self.looking
        if look is None or look.search != self.search:
            self._look_no_more()
            look = self.looking = LogSearch(shown.path / "events.jsonl", self.search, shown.names)
        if look.ready:
            look.take()
        elif not look.busy:
            self.listed = shown.kept
            look.again()
        if not look.busy:
            lines, _ = event_lines(look.newest, self.search, shown.names)
            self._list(lines, found_words(look.found, len(lines)))
        elif not look.whole:  # else what it found before stands until it has looked at what came since
            lines, _ = event_lines(shown.kept.events, self.search, shown.names)
            self._list(lines, LOOKING)

    def _look_no_more(self) -> None:
        if self.looking is not None:
            self.looking.give_up()
            self.looking = None

    def _list(self, lines: list[dict[str, Any]], words: str) -> None:
        self.events.show(lines)
        self.events.visible = bool(lines)
        self.no_events.set(self._no_events(bool(lines)))
        role = "note" if self.search == EventSearch() else "status"
        said = Markup('<p class="soft small" role="{}" data-left-out>{}</p>').format(role, words)
        self.left_out.set(said if words else Markup(""))

    def _no_events(self, some: bool) -> Markup:
        if some or (self.looking is not None and self.looking.busy):
            return Markup("")
        if self.search != EventSearch():
            return empty("No event matches", "Change the words, the kind or the level above.")
        return empty("No events yet", "What the run does is listed here as it happens.")

    def _show_search(self) -> None:
        self._quiet = True
        try:
            self.find.value, self.kind.value = self.search.words, self.search.kind
            self.level.value = self.search.level
        finally:
            self._quiet = False

    def _searched(self, **changes: str) -> None:
        search = replace(self.search, **changes)
        if self._quiet or search == self.search:
            return
        self.search = search
        self.take_up()
        self.page.navigate()


def still(shown: Shown | None) -> Markup:
    """The tab without what is filtered and clicked: what a reader sees while the page opens."""
    return Markup("") if shown is None else _status(shown) + _tiles(shown) + _steps(shown)


def _tiles(shown: Shown) -> Markup:
    return Markup('<div class="tiles">{}</div>').format(join(map(_tile, tiles(shown.state, shown.lost))))


def _steps(shown: Shown) -> Markup:
    lines = step_lines(shown.state, shown.now, shown.progress_bases, shown.lost, shown.samples)
    heads = json.dumps(["Step", "Title", "State", "Time", "About"])
    listed = Markup('<ol class="steps" data-line="{}">{}</ol>').format(heads, join(map(_step, lines)))
    return panel("Steps", listed, csv_button("steps"))


def _status(shown: Shown) -> Markup:
    state = shown.state
    status = status_of(state, shown.lost, shown.gone, shown.names, shown.remote)
    spent = elapsed(state, shown.now, shown.lost)
    working = not shown.over
    spent_words = f" {'At work for' if working else 'Took'} {fig.duration(spent)}." if spent else ""
    following = "" if shown.gone else next_words(state, shown.lost, shown.remote)
    more = Markup('<p class="soft small" data-next><b>Next</b> {}</p>').format(following) if following else ""
    left = run_left_words(
        state, shown.now, shown.lost or shown.gone, shown.progress_bases, shown.samples, shown.earlier
    )
    more += Markup('<p class="soft small" data-run-left>{}</p>').format(left) if left else ""
    return Markup('<div class="note {}"><span role="status">{}</span><span>{}</span>{}</div>').format(
        status.tone, status.sentence, spent_words, more
    )


def _tile(tile: Tile) -> Markup:
    verdict = Markup("")
    if tile.passed is not None:
        tone, word = ("good", "✓ passed") if tile.passed else ("bad", "✕ failed")
        verdict = Markup('<b class="{}">{}</b>').format(tone, word)
    target = Markup("<span>Gate {}</span>").format(tile.target) if tile.target else Markup("<span></span>")
    return Markup(
        '<div class="tile" data-figure="{}"><div class="name">{}</div><div class="value">{}</div>'
        '<div class="beside soft">{}</div><div class="target">{}{}</div></div>'
    ).format(tile.key, tile.title, tile.value, tile.beside, target, verdict)


def _step(line: StepLine) -> Markup:
    track = Markup("")
    if line.share is not None:
        share = f"{100 * line.share:.1f}"
        track = Markup(
            '<div class="track" role="progressbar" aria-valuenow="{}" aria-valuemin="0" aria-valuemax="100" '
            'aria-label="{}"><i style="width:{}%"></i></div>'
        ).format(share, line.title, share)
    word = line.word if line.state != "done" else ""
    when = " · ".join(part for part in (word, line.time) if part)
    return Markup(
        '<li class="{}" data-step="{}" data-line="{}"><span class="mark {}" aria-hidden="true">{}</span>'
        '<span class="title">{}</span><span class="when">{}</span><div class="about">{}{}</div></li>'
    ).format(
        line.state,
        line.n,
        json.dumps([line.n, line.title, line.word, line.time, line.detail], ensure_ascii=False),
        STEP_TONES.get(line.state, "neutral"),
        STEP_MARKS.get(line.state) or line.n,
        line.title,
        when,
        line.detail,
        track,
    )
