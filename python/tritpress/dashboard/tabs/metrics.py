"""Metrics: before and after in one table, the curves of fine-tuning, a chart for every custom metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components import twins
from tritpress.dashboard.components.curves import ChartGrid
from tritpress.dashboard.components.export import csv_button
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.plugins import plugin_charts
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views import curves
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.metrics import COLUMNS, Row, curve_words, reasons, table
from tritpress.dashboard.views.status import headline

GROWING = frozenset({"finetune.step", "metric"})
"""Events that only lengthen curves."""


class Metrics(Tab):
    key = "metrics"
    title = "Metrics"
    interests = frozenset(
        {
            "run.started",
            "run.paused",
            "run.finished",
            "run.failed",
            "liveness",
            "model",
            "evaluation",
            "figures",
            "finetune.step",
            "metric",
            "tasks",
            "gate",
            "output",
            "step.started",
            "step.finished",
            "plan",
        }
    )

    def __init__(self, page: PageContext) -> None:
        super().__init__(page)
        self.axis, self.share, self.logarithmic, self.as_tables = "step", 0.0, False, False
        self.part = 0  # page of custom metrics
        self.last: Shown | None = None
        self._quiet = False

    def query(self) -> dict[str, str]:
        found = {"x": self.axis} if self.axis != "step" else {}
        if self.share:
            found["smooth"] = f"{self.share:g}"
        if self.logarithmic:
            found["log"] = "1"
        if self.part:
            found["metrics"] = str(self.part + 1)
        return found | ({"twin": "1"} if self.as_tables else {})

    def go(self, query: Mapping[str, str]) -> None:
        self.axis = query.get("x", "step") if query.get("x") in curves.X_AXES else "step"
        try:
            self.share = min(max(float(query.get("smooth", 0)), 0.0), 0.99)
        except ValueError:
            self.share = 0.0
        self.logarithmic, self.as_tables = query.get("log") == "1", query.get("twin") == "1"
        part = query.get("metrics", "")
        self.part = fig.page(part)
        if self.built:
            self._set_controls()

    def build(self) -> list[Any]:
        self.table, self.under, self.custom_title = Fragment(), Fragment(), Fragment()
        self.twin, self.notes = Fragment(), Fragment()
        self.table.pane.margin = (0, 0, 20, 0)
        self.x_choice = pmui.RadioButtonGroup(
            label="",
            options={title: key for key, title in curves.X_AXES.items()},
            size="small",
            color="primary",
            margin=0,
        )
        self.smoothing = pmui.FloatSlider(
            label="Smoothing",
            start=0.0,
            end=0.99,
            step=0.01,
            format="0.00",
            size="small",
            width=190,
            margin=(0, 8, 0, 8),
        )
        self.log_switch = pmui.Switch(label="Log axis", size="small", margin=0)
        self.twin_switch = pmui.Switch(label="As tables", size="small", margin=0)
        self.parts = pmui.Pagination(
            count=1, value=0, show_first_button=True, show_last_button=True, size="small", visible=False,
            margin=(0, 0, 10, 0),
        )  # fmt: skip
        self._set_controls()
        for widget, name in (
            (self.x_choice, "axis"),
            (self.smoothing, "share"),
            (self.log_switch, "logarithmic"),
            (self.twin_switch, "as_tables"),
            (self.parts, "part"),
        ):
            widget.param.watch(lambda event, name=name: self._chosen(name, event.new), "value")
        x_label = Fragment(Markup('<span class="soft small">By</span>'))
        x_label.pane.sizing_mode = None
        self.controls = pn.FlexBox(
            x_label.pane,
            self.x_choice,
            self.smoothing,
            self.log_switch,
            self.twin_switch,
            sizing_mode="stretch_width",
            align_items="center",
            gap="6px 14px",
            margin=(0, 0, 10, 0),
        )
        self.training, self.custom, self.added = ChartGrid(), ChartGrid(), ChartGrid()
        self.under.pane.margin = (6, 0, 20, 0)
        return [
            self.table.pane,
            self.controls,
            self.training.box,
            self.under.pane,
            self.custom_title.pane,
            self.parts,
            self.custom.box,
            self.added.box,
            self.notes.pane,
            self.twin.pane,
        ]

    def _set_controls(self) -> None:
        self._quiet = True
        self.x_choice.value, self.smoothing.value = self.axis, self.share
        self.log_switch.value, self.twin_switch.value = self.logarithmic, self.as_tables
        self._quiet = False

    def _chosen(self, name: str, value: Any) -> None:
        if self._quiet or value is None or getattr(self, name) == value:
            return
        setattr(self, name, value)
        self.update(self.last, None)
        self.page.navigate()

    @property
    def pending(self) -> bool:
        return self.built and self.last is not None and any(grid.behind for grid in self._grids)

    def take_up(self) -> None:
        if self.last is not None:
            self._show_curves(self.last, at_once=False)

    @property
    def _grids(self) -> tuple[ChartGrid, ...]:
        return self.training, self.custom, self.added

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        self.controls.visible = shown is not None
        if shown is None:
            self.table.set(
                empty("No run is open", "The figures before and after stand here, and every curve of a run.")
            )
            for fragment in (self.under, self.custom_title, self.twin, self.notes):
                fragment.set(Markup(""))
            for grid in self._grids:
                grid.show([], 0.0, False, True)
            return
        growing = changed is not None and not (changed & self.interests) - GROWING
        if not growing:
            self.table.set(_table(shown.state, shown.lost))
        self._show_curves(shown, at_once=not growing)

    def _show_curves(self, shown: Shown, at_once: bool) -> None:
        state = shown.state
        training = curves.training_charts(state, self.axis)
        part, self.part, parts = curves.custom_page(state, self.part)
        custom = curves.custom_charts(state, self.axis, part)
        self._quiet = True
        self.parts.param.update(count=parts, value=self.part, visible=parts > 1)
        self._quiet = False
        self.controls.visible = bool(training or custom or self.added.cards)
        self.training.show(training, self.share, self.logarithmic, at_once)
        self.custom.show(custom, self.share, self.logarithmic, at_once)
        words = curve_words(state, shown.lost)
        if training and all(chart.empty for chart in training):
            words = f"This run's log has no {curves.X_AXES[self.axis].lower()} for its training steps."
        under = Markup('<p class="soft small">{}</p>').format(words)
        self.under.set(under if training else empty("No training curves", words))
        title = Markup("")
        if custom:
            count = len(state["metrics"])
            title = Markup('<h2 data-custom="{}">Custom metrics</h2>').format(count)
            if parts > 1:
                first = part.start + 1
                title += Markup('<p class="soft small">{} to {} of {}</p>').format(
                    first, first + len(custom) - 1, count
                )
        self.custom_title.set(title)
        added, notes = plugin_charts(state)
        self.added.show(added, self.share, self.logarithmic, at_once)
        self.notes.set(notes)
        charts = [*training, *custom, *added]
        self.twin.set(join(map(twins.curve, charts)) if self.as_tables else Markup(""))


def _table(state: dict[str, Any], lost: bool) -> Markup:
    head = headline(state)
    intro = Markup("")
    if head.measured:
        intro = Markup(
            '<p style="margin-bottom:10px"><b>{}</b> smaller than float32 at {} and {}.</p>'
        ).format(head.ratio, head.bits, head.planes)
    header = join(Markup("<th>{}</th>").format(title) for title in COLUMNS.values())
    body = join(map(_row, table(state)))
    why = " ".join(reasons(state, lost))
    note = Markup('<p class="soft small" data-why style="margin-top:10px">– {}</p>').format(why)
    return panel(
        "Before and after",
        intro
        + Markup(
            '<div class="scroll"><table class="figures"><thead><tr><th>'
            '<span class="visually-hidden">Figure</span></th>{}</tr></thead>'
            "<tbody>{}</tbody></table></div>"
        ).format(header, body)
        + (note if why else Markup("")),
        csv_button("before-after"),
    )


def _row(row: Row) -> Markup:
    unit = Markup(' <span class="unit">{}</span>').format(row.unit) if row.unit else Markup("")
    cells = join(
        Markup('<td data-cell="{}.{}">{}</td>').format(row.key, when, value)
        for when, value in zip(COLUMNS, row.values)
    )
    return Markup("<tr><th>{}{}</th>{}</tr>").format(row.title, unit, cells)
