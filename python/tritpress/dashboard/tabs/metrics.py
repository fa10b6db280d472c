"""Metrics: before and after in one table, and the curves of fine-tuning."""

from __future__ import annotations

from typing import Any

from tritpress.dashboard.components.curves import LossCurve
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views.metrics import COLUMNS, Row, curve_words, curves, table
from tritpress.dashboard.views.status import headline


class Metrics(Tab):
    key = "metrics"
    title = "Metrics"
    interests = frozenset(
        {
            "run.started",
            "run.finished",
            "run.failed",
            "model",
            "evaluation",
            "figures",
            "finetune.step",
            "step.started",
            "step.finished",
            "plan",
        }
    )

    def build(self) -> list[Any]:
        self.table, self.under = Fragment(), Fragment()
        self.table.pane.margin = (0, 0, 20, 0)
        self.curve = LossCurve()
        return [self.table.pane, self.curve.pane, self.under.pane]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        if shown is None:
            self.table.set(
                empty("No run is open", "The figures before and after stand here, and the loss curve.")
            )
            self.under.set(Markup(""))
            self.curve.pane.visible = False
            return
        if changed is None or changed - {"finetune.step"}:
            self.table.set(_table(shown.state))
        points = curves(shown.state)
        self.curve.pane.visible = bool(points.steps)
        if points.steps:
            self.curve.show(points)
            self.under.set(Markup('<p class="soft small">{}</p>').format(curve_words(shown.state)))
        else:
            self.under.set(empty("No loss curve", curve_words(shown.state)))


def _table(state: dict[str, Any]) -> Markup:
    head = headline(state)
    intro = Markup("")
    if head.measured:
        intro = Markup(
            '<p style="margin-bottom:10px"><b>{}</b> smaller than float32 at {} and {}.</p>'
        ).format(head.ratio, head.bits, head.planes)
    header = join(Markup("<th>{}</th>").format(title) for title in COLUMNS.values())
    body = join(map(_row, table(state)))
    return panel(
        "Before and after",
        intro
        + Markup(
            '<div class="scroll"><table><thead><tr><th>'
            '<span class="visually-hidden">Figure</span></th>{}</tr></thead>'
            "<tbody>{}</tbody></table></div>"
        ).format(header, body),
    )


def _row(row: Row) -> Markup:
    unit = Markup(' <span class="unit">{}</span>').format(row.unit) if row.unit else Markup("")
    cells = join(
        Markup('<td data-cell="{}.{}">{}</td>').format(row.key, when, value)
        for when, value in zip(COLUMNS, row.values)
    )
    return Markup("<tr><th>{}{}</th>{}</tr>").format(row.title, unit, cells)
