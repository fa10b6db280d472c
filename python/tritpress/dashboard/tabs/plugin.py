"""Tabs that plug-ins add, after the built-in ones; whatever goes wrong in one stays in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components import twins
from tritpress.dashboard.components.curves import CurveCard
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.plugins import Card, Chart, card_html, curve_chart, plugins, trouble, words
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views.curves import Chart as Curves
from tritpress.events.schema import EVENT_TYPES

log = logging.getLogger(__name__)

ALL = frozenset({*EVENT_TYPES, "liveness"})


class PluginTab(Tab):
    """A tab made by a function from the state, or around a `Tab` of the plug-in's own."""

    def __init__(self, page: PageContext, name: str, title: str, made_by: Any, key: str) -> None:
        self.plugin, self.made_by, self.key, self.title = name, made_by, key, title
        self.interests = ALL
        super().__init__(page)
        self.inner: Tab | None = None
        self.trouble = Fragment()
        self.charts: list[CurveCard] | None = None  # None until the parts of the tab stand
        self.as_tables = False
        self.drawn: list[Curves] = []

    def query(self) -> dict[str, str]:
        if self.inner is not None:
            return self._safely(self.inner.query, {})  # type: ignore[no-any-return]
        return {"twin": "1"} if self.as_tables else {}

    def go(self, query: Mapping[str, str]) -> None:
        self.as_tables = query.get("twin") == "1"
        if self.inner is not None:
            self._safely(lambda: self.inner.go(query), None)  # type: ignore[union-attr]

    def build(self) -> list[Any]:
        self.trouble.set(Markup(""))
        self.body = pn.Column(sizing_mode="stretch_width", margin=0)
        self.charts = None
        if isinstance(self.made_by, type) and issubclass(self.made_by, Tab):
            kind = self.made_by
            self.inner = self._safely(lambda: kind(self.page), None)
            if self.inner is not None:
                self.body.objects = self._safely(self.inner.build, [])
        return [self.trouble.pane, self.body]

    @property
    def pending(self) -> bool:
        return self.inner is not None and bool(self._safely(lambda: self.inner.pending, False))  # type: ignore[union-attr]

    def take_up(self) -> None:
        if self.inner is not None:
            self._safely(self.inner.take_up, None)

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        if self.inner is not None:
            inner = self.inner
            if changed is None or changed & inner.interests:
                self._safely(lambda: inner.update(shown, changed), None)
        elif isinstance(self.made_by, type):
            return
        elif shown is None:
            nothing = empty("No run is open", f"{self.title} shows what it finds in one.")
            self.body.objects = [Fragment(nothing).pane]
            self.charts = None
        else:
            self.trouble.set(Markup(""))
            self._safely(lambda: self._render(self.made_by(dict(shown.state))), None)

    def _render(self, given: Any) -> None:
        parts = list(given) if isinstance(given, list | tuple) else [given]
        tiles = [card_html(part, self.plugin) for part in parts if isinstance(part, Card)]
        texts = [
            panel(self.title, Markup("<p>{}</p>").format(part)) if not isinstance(part, Markup) else part
            for part in parts
            if isinstance(part, str)
        ]
        charts = [part for part in parts if isinstance(part, Chart)]
        strange = [part for part in parts if not isinstance(part, Card | Chart | str)]
        if strange:
            raise TypeError(f"gave a {type(strange[0]).__name__}, not text, a Card or a Chart")
        if self.charts is None or len(self.charts) != len(charts):
            self.charts = [CurveCard() for _ in charts]
            self.text, self.twin = Fragment(), Fragment()
            self.twin_switch = pmui.Switch(label="As tables", size="small", margin=0, visible=bool(charts))
            self.twin_switch.param.watch(self._switched, "value")
            self.body.objects = [
                self.text.pane, self.twin_switch, *(card.pane for card in self.charts), self.twin.pane
            ]  # fmt: skip
        body = Markup('<div class="tiles" style="margin-bottom:12px">{}</div>').format(join(tiles))
        self.text.set((body if tiles else Markup("")) + join(texts))
        self.drawn = [curve_chart(chart, f"{self.key}:{number}") for number, chart in enumerate(charts)]
        for card, drawn in zip(self.charts, self.drawn):
            card.show(drawn)
        self._show_tables()

    def _show_tables(self) -> None:
        self.twin_switch.value = self.as_tables
        self.twin.set(join(map(twins.curve, self.drawn)) if self.as_tables else Markup(""))

    def _switched(self, event: Any) -> None:
        if event.new != self.as_tables:
            self.as_tables = bool(event.new)
            self._show_tables()
            self.page.navigate()

    def _safely(self, work: Any, otherwise: Any) -> Any:
        try:
            return work()
        except Exception as error:
            log.debug("the plug-in %s failed", self.plugin, exc_info=True)
            self.trouble.set(trouble(self.plugin, words(error)))
            return otherwise


def plugin_tabs(page: PageContext, taken: set[str]) -> list[Tab]:
    """New tabs for one page; their keys are none of `taken`."""
    tabs: list[Tab] = []
    for found in plugins():
        for title, made_by in dict(found.plugin.tabs if found.plugin else {}).items():
            key = base = "plugin-" + (re.sub(r"[^a-z0-9]+", "-", str(title).lower()).strip("-") or found.name)
            number = 2
            while key in taken:
                key, number = f"{base}-{number}", number + 1
            taken.add(key)
            tabs.append(PluginTab(page, found.name, str(title), made_by, key))
    return tabs
