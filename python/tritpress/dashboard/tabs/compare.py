"""Compare: two to six runs side by side. What differs in their settings comes first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components import twins
from tritpress.dashboard.components.comparecharts import OverlayCharts
from tritpress.dashboard.components.export import csv_button, csv_tools
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.components.statusbar import missing_words
from tritpress.dashboard.store import Feed
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.compare import (
    Cell,
    Comparison,
    Head,
    Row,
    compare,
    metrics_left_out,
    overlay_rows,
    overlays,
)
from tritpress.dashboard.views.curves import twin_caption
from tritpress.dashboard.views.runs import OLDER, run_options
from tritpress.runs.comparison import LEAST, MOST, Side

COMPARE_EVERY = 1.0
"""Least seconds between two comparisons of runs at work: all their curves are looked through each time."""


class Compare(Tab):
    key = "compare"
    title = "Compare"
    interests = frozenset({"runs"})

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.feeds: dict[str, Feed] = {}
        self.versions: dict[str, int] = {}
        self.listed = -1
        self.compared = float("-inf")
        self.watching = False

    def forget(self) -> None:
        super().forget()
        self._close()

    @property
    def pending(self) -> bool:
        if not self.built:
            return False
        if self.page.store.list_version != self.listed or self._asked() != self.ids:
            return True
        if time.monotonic() - self.compared < COMPARE_EVERY:
            return False
        return any(feed.version != self.versions.get(run) for run, feed in self.feeds.items())

    def take_up(self) -> None:
        self.update(None, None)

    def build(self) -> list[Any]:
        self.ids: tuple[str, ...] = ()
        if not self.watching and pn.state.curdoc is not None and pn.state.curdoc.session_context is not None:
            pn.state.on_session_destroyed(lambda _: self._close())
            self.watching = True
        self.picker = pmui.MultiChoice(
            label="Runs to compare, two to six", options={}, value=[], max_items=MOST,
            sizing_mode="stretch_width", margin=(0, 0, 12, 0),
        )  # fmt: skip
        self.picker.param.watch(self._picked, "value")
        self.settings, self.figures, self.gates, self.twin = (Fragment() for _ in range(4))
        for fragment in (self.settings, self.figures, self.gates, self.twin):
            fragment.pane.margin = (0, 0, 14, 0)
        self.curves = OverlayCharts()
        return [self.picker, self.settings.pane, self.figures.pane, self.curves.row, self.twin.pane,
                self.gates.pane]  # fmt: skip

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.compared = time.monotonic()
        self._open(self._asked())
        self._fill_picker()
        sides = self._sides()
        if len(sides) < LEAST:
            missing = [run for run in self.ids if run not in self.feeds]
            words = ""
            if missing:
                there = self.page.store.path_of(missing[0]) is not None
                words = f"{missing_words(missing[0], there)}. "
            words += "Settings, figures, curves and gates stand side by side."
            self.settings.set(empty("Choose another run" if sides else "Choose two runs", words))
            for fragment in (self.figures, self.gates, self.twin):
                fragment.set(Markup(""))
            self.curves.show([], [])
            return
        made = compare(sides)
        self.settings.set(_settings(made))
        self.figures.set(_table("Figures", made.heads, made.figures, "figure", states=True))
        self.gates.set(_table("Gates", made.heads, made.gates, "gate"))
        names, curves = [head.name for head in made.heads], overlays(sides)
        self.curves.show(names, curves)
        tables = (
            twins.table(
                twin_caption(curve.title, curve.y_label),
                (curve.x_label, *names),
                overlay_rows(curve),
                f"compare-{curve.key}",
            )
            for curve in curves
            if not curve.empty
        )
        left = metrics_left_out(sides)
        more = Markup('<p class="soft small">{}</p>').format(
            f"{fig.plural(left, 'custom metric')} more not drawn: the Metrics tab of each run has its own."
        )
        self.twin.set(twins.folded("The curves as tables", tables) + (more if left else Markup("")))

    def _sides(self) -> list[Side]:
        sides = []
        for run in self.ids:
            feed = self.feeds.get(run)
            if feed is not None:
                self.versions[run] = feed.version
                status = "died" if feed.lost else str(feed.state["status"])
                sides.append(Side(run, _name(self.page.store.runs, feed), status, feed.state))
        return sides

    def _asked(self) -> tuple[str, ...]:
        """The runs that the link names: each once, and no more than can be compared."""
        return tuple(dict.fromkeys(self.page.runs))[:MOST]

    def _open(self, ids: tuple[str, ...]) -> None:
        if ids == self.ids and self.feeds.keys() <= set(ids):
            return
        for run in [run for run in self.feeds if run not in ids]:
            self.page.store.close(self.feeds.pop(run))
        for run in ids:
            if run not in self.feeds:
                feed = self.page.store.open(run)
                if feed is not None:
                    self.feeds[run] = feed
        self.ids = ids

    def _close(self) -> None:
        for feed in self.feeds.values():
            self.page.store.close(feed)
        self.feeds, self.versions, self.listed = {}, {}, -1
        self.ids = ()

    _quiet = False

    def _fill_picker(self) -> None:
        self.listed = self.page.store.list_version
        options = {label: run for label, run in run_options(self.page.store.runs, *self.ids).items() if run}
        value = list(self.ids)
        if options != self.picker.options or value != self.picker.value:
            self._quiet = True
            try:
                self.picker.param.update(options=options, value=value)
            finally:
                self._quiet = False

    def _picked(self, event: Any) -> None:
        if self._quiet or list(event.new) == list(self.ids):
            return
        if OLDER in event.new:  # there runs are ticked to be compared
            self._fill_picker()
            self.page.open_run(",".join(self.ids), "runs")
        else:
            self.page.open_run(",".join(event.new), "compare")


def _name(runs: Sequence[dict[str, Any]], feed: Feed) -> str:
    """The name of the list (labels are known there), else the log's."""
    listed = next((run.get("name") for run in runs if run.get("id") == feed.id), None)
    return str(listed or feed.state.get("name") or feed.id)


def _settings(made: Comparison) -> Markup:
    if made.differing:
        first = _table("Settings that differ", made.heads, made.differing, "setting")
    else:
        first = panel(
            "Settings that differ", Markup('<p class="soft">None: these runs were asked for the same.</p>')
        )
    rest = _rows(made.heads, made.same, "setting", False)
    return first + Markup(
        '<details class="small" style="margin-top:8px"><summary class="soft">{} that are the same</summary>'
        "{}{}</details>"
    ).format(f"{len(made.same)} settings", csv_tools("same-settings"), rest)


def _table(
    title: str, heads: tuple[Head, ...], rows: tuple[Row, ...], kind: str, states: bool = False
) -> Markup:
    return panel(title, _rows(heads, rows, kind, states), csv_button(f"{kind}s"))


def _rows(heads: tuple[Head, ...], rows: tuple[Row, ...], kind: str, states: bool) -> Markup:
    columns = join(
        Markup('<th style="white-space:normal"><a href="?run={}">{}</a>{}</th>').format(
            quote(head.id, safe=""),
            head.name,
            Markup('<div class="{} small" data-state="{}">{} {}</div>').format(
                head.tone, head.id, head.mark, head.label
            )
            if states
            else "",
        )
        for head in heads
    )
    body = join(
        Markup('<tr data-{}="{}"><th>{}</th>{}</tr>').format(
            kind, row.key, row.title, join(map(_cell, row.cells))
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll"><table style="table-layout:fixed;min-width:{}px"><thead><tr>'
        '<th style="width:180px"><span class="visually-hidden">{}</span>'
        "</th>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(180 + 150 * len(heads), kind, columns, body)


def _cell(cell: Cell) -> Markup:
    if cell.best:
        return Markup(
            '<td class="break"><b data-best>★ {}</b> <span class="small soft">best</span></td>'
        ).format(cell.text)
    if cell.mark:
        return Markup('<td><span class="{}">{} {}</span> {}</td>').format(
            cell.tone, cell.mark, cell.word, "" if cell.text == "–" else cell.text
        )
    return Markup('<td class="break">{}</td>').format(cell.text)
