"""Quality: the five gates, what they ask and what was measured; the gradients; the alerts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.export import command_block, csv_button, csv_tools
from tritpress.dashboard.components.gradients import GradientChart
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.plugins import plugin_cards
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views import quality
from tritpress.dashboard.views.ending import over
from tritpress.dashboard.views.quality import TONES, GateCard, GradientPage


class Quality(Tab):
    key = "quality"
    title = "Quality"
    interests = frozenset(
        {
            "run.started",
            "run.finished",
            "run.failed",
            "liveness",
            "gate",
            "gradient",
            "alert",
            "model",
            "figures",
            "evaluation",
            "step.finished",
            "step.started",
        }
    )

    def __init__(self, page: PageContext) -> None:
        super().__init__(page)
        self.wanted, self.as_table = 0, False
        self.last: Shown | None = None
        self._quiet = False

    def query(self) -> dict[str, str]:
        found = {"page": str(self.wanted + 1)} if self.wanted else {}
        return found | ({"twin": "1"} if self.as_table else {})

    def go(self, query: Mapping[str, str]) -> None:
        page = query.get("page", "")
        self.wanted = fig.page(page)
        self.as_table = query.get("twin") == "1"
        if self.built:
            self._set_switch()

    def forget(self) -> None:
        super().forget()
        self.wanted, self.as_table = 0, False

    def build(self) -> list[Any]:
        self.gates, self.under, self.twin = Fragment(), Fragment(), Fragment()
        self.added, self.alerts = Fragment(), Fragment()
        for fragment in (self.gates, self.added, self.twin):
            fragment.pane.margin = (0, 0, 20, 0)
        self.chart = GradientChart()
        self.pages = pmui.Pagination(
            count=1,
            value=0,
            show_first_button=True,
            show_last_button=True,
            size="small",
            margin=(0, 0, 8, 0),
            visible=False,
        )
        self.pages.param.watch(self._turned, "value")
        self.where = Fragment()
        self.twin_switch = pmui.Switch(label="As a table", value=self.as_table, size="small", margin=0)
        self.twin_switch.param.watch(self._switched, "value")
        self.tools = pn.FlexBox(
            self.pages, self.twin_switch, sizing_mode="stretch_width", align_items="center", gap="8px 16px"
        )
        self.under.pane.margin = (4, 0, 12, 0)
        return [
            self.gates.pane,
            self.added.pane,
            self.tools,
            self.chart.pane,
            self.under.pane,
            self.twin.pane,
            self.alerts.pane,
        ]

    def _turned(self, event: Any) -> None:
        if self._quiet or event.new is None:
            return
        self.wanted = event.new
        if self.last is not None:
            self._show_gradients(self.last)
        self.page.navigate()

    def _set_switch(self) -> None:
        self._quiet = True
        try:
            self.twin_switch.value = self.as_table
        finally:
            self._quiet = False

    def _switched(self, event: Any) -> None:
        if self._quiet:
            return
        self.as_table = bool(event.new)
        if self.last is not None:
            self._show_gradients(self.last)
        self.page.navigate()

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        if shown is None:
            self.gates.set(empty("No run is open", "Five gates judge what a run measured; they stand here."))
            for fragment in (self.under, self.added, self.alerts, self.twin):
                fragment.set(Markup(""))
            self.chart.pane.visible = self.tools.visible = False
            return
        state = shown.state
        cards = join(map(_card, quality.gate_cards(state, shown.lost)))
        self.gates.set(panel("Gates", Markup('<div class="gates">{}</div>').format(cards)))
        self.added.set(plugin_cards("quality", state))
        if changed is None or changed - {"alert"}:
            self._show_gradients(shown)
        self.alerts.set(_alerts(state, shown.lost))

    def _show_gradients(self, shown: Shown) -> None:
        found = quality.gradients(shown.state, self.wanted, shown.lost)
        some = bool(found.points)
        self.chart.pane.visible = self.tools.visible = some
        self._quiet = True
        self.pages.param.update(count=found.pages, value=found.page, visible=found.pages > 1)
        self._quiet = False
        if some:
            self.chart.show(found)
            page = f"Layers {found.first}–{found.last} · " if found.pages > 1 else ""
            self.under.set(
                Markup('<p class="soft small" data-gradients="{}">{}{}</p>').format(
                    found.bad, page, found.words
                )
            )
        else:
            self.under.set(empty("No gradient norms", found.words))
        self.twin.set(_twin(found) if some and self.as_table else Markup(""))


def _card(card: GateCard) -> Markup:
    tone = TONES[card.verdict]
    margin = Markup('<div class="soft small">{}</div>').format(card.margin) if card.margin else Markup("")
    advice = Markup('<div class="advice">{}</div>').format(card.advice) if card.advice else Markup("")
    return Markup(
        '<article class="gate {}" data-gate="{}" data-verdict="{}"><div class="title">{}</div>'
        '<div class="top"><span class="value">{}</span><span class="verdict {}">{} {}</span></div>'
        '<div class="soft small">Target {}</div>{}{}{}</article>'
    ).format(
        tone,
        card.name,
        card.verdict,
        card.title,
        card.actual,
        tone,
        card.mark,
        card.word,
        card.target,
        margin,
        advice,
        join(map(command_block, card.commands)),
    )


def _twin(found: GradientPage) -> Markup:
    rows = join(
        Markup("<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td></tr>").format(
            point.name, point.shown, point.before, quality.MARK_WORDS[point.mark] or "healthy"
        )
        for point in found.points
    )
    return Markup(
        '<div class="scroll">{}<table class="small" data-gradient-table><caption class="visually-hidden">'
        "Gradient norms</caption><thead><tr><th>Tensor</th><th>Gradient norm</th><th>In the original</th>"
        "<th>State</th></tr></thead><tbody>{}</tbody></table></div>"
    ).format(csv_tools("gradient-norms"), rows)


def _alerts(state: dict[str, Any], lost: bool) -> Markup:
    rules = Markup('<p class="soft small" style="margin-top:8px">{}</p>').format(quality.alert_rules(state))
    lines = quality.alert_lines(state)
    if not lines:
        words = "No alerts." if over(state, lost) else "No alerts so far."
        return panel("Alerts", Markup("<p>{}</p>").format(words) + rules)
    rows = join(
        Markup(
            '<tr data-alert="{}"><td class="soft">{}</td><td class="left {}">{} {}</td>'
            '<td class="left mono">{}</td><td class="left wide">{}</td></tr>'
        ).format(
            line.rule,
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.t)),
            line.tone,
            line.mark,
            line.level,
            line.rule,
            line.message,
        )
        for line in lines
    )
    return panel(
        "Alerts",
        Markup(
            '<div class="scroll"><table class="runs"><thead><tr><th>Time</th><th class="left">Level</th>'
            '<th class="left">Rule</th><th class="left">Message</th></tr></thead>'
            "<tbody>{}</tbody></table></div>"
        ).format(rows)
        + rules,
        csv_button("alerts"),
    )
