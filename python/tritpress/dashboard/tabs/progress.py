"""Progress: the model as a grid of layers and parameters that fills while it is pressed."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.heatmap import Heatmap, SparsityBars
from tritpress.dashboard.components.html import Fragment, Markup, empty
from tritpress.dashboard.components.layer import LayerPanel
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.tabs.base import CLOCK, Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.layer import find_layer, layer_view
from tritpress.dashboard.views.progress import (
    METRICS,
    Grid,
    Map,
    grid,
    map_targets,
    page_of,
    pressed_words,
    sparsity_target,
)
from tritpress.dashboard.views.status import STEP_TITLES, eta_words, running_step, status_of

LOOKUPS = ThreadPoolExecutor(2, thread_name_prefix="tritpress-lookup")


class Progress(Tab):
    key = "progress"
    title = "Progress"
    interests = frozenset(
        {
            CLOCK,
            "liveness",
            "run.started",
            "run.paused",
            "run.resumed",
            "run.finished",
            "run.failed",
            "model",
            "layer.finished",
            "step.started",
            "step.progress",
            "step.finished",
        }
    )

    def __init__(self, page: PageContext) -> None:
        super().__init__(page)
        self.map = Map()
        self.mapped: list[Any] | None = None
        self.wanted_page, self.follow = 0, True
        self.last: Shown | None = None
        self.lookup: Future[dict[str, Any] | None] | None = None
        self.looked_for = ""

    def query(self) -> dict[str, str]:
        return {"page": str(self.wanted_page + 1)} if self.wanted_page and not self.follow else {}

    def go(self, query: Mapping[str, str]) -> None:
        page = query.get("page", "")
        self.follow = not page.isdecimal()
        self.wanted_page = 0 if self.follow else max(int(page) - 1, 0)

    def forget(self) -> None:
        super().forget()
        self.wanted_page, self.follow, self.mapped = 0, True, None

    def build(self) -> list[Any]:
        self.now, self.placeholder, self.twin = Fragment(), Fragment(), Fragment()
        self.now.pane.margin = (0, 0, 14, 0)
        self.label = Fragment(Markup('<span class="soft small">Colour by</span>'))
        self.metric = pmui.RadioButtonGroup(
            label="",
            options={title: key for key, title in METRICS.items()},
            value="ratio",
            size="small",
            margin=(0, 12, 0, 0),
            color="primary",
        )
        self.pages = pmui.Pagination(
            count=1,
            value=0,
            show_first_button=True,
            show_last_button=True,
            size="small",
            margin=(2, 12, 0, 0),
        )
        self.where = Fragment()
        for fragment in (self.label, self.where):
            fragment.pane.sizing_mode = None
        self.heatmap = Heatmap()
        self.bars = SparsityBars(self.heatmap.rows)
        self.heatmap.pane.styles = {"flex": "2 1 440px", "min-width": "0"}
        self.bars.pane.styles = {"flex": "1 1 320px", "min-width": "0"}
        self.tools = pn.FlexBox(
            self.label.pane,
            self.metric,
            self.pages,
            self.where.pane,
            sizing_mode="stretch_width",
            align_items="center",
            margin=(0, 0, 8, 0),
            gap="8px",
        )
        self.charts = pn.FlexBox(
            self.heatmap.pane, self.bars.pane, sizing_mode="stretch_width", gap="16px", align_items="start"
        )
        self.metric.param.watch(lambda _: self._again(), "value")
        self.pages.param.watch(self._turned, "value")
        self.layer = LayerPanel()
        self.heatmap.on_click(self._clicked)
        return [
            self.now.pane,
            self.placeholder.pane,
            self.tools,
            self.charts,
            self.layer.row,
            self.twin.pane,
        ]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        targets = shown.state["targets"] if shown else []
        if shown is None or not targets:
            self._nothing(shown)
            return
        if self.mapped is not targets and (changed is None or "model" in changed or self.mapped is None):
            self.map, self.mapped = map_targets(targets), targets
        state = shown.state
        self._show_now(shown)
        if changed is not None and not changed - {CLOCK}:
            return
        current = (state.get("current") or {}).get("name")
        if self.follow and current and (page := page_of(self.map, current)) is not None:
            self.wanted_page = page
        made = grid(state, self.map, self.wanted_page, self.metric.value)
        self.placeholder.pane.visible = False
        self.tools.visible = self.charts.visible = True
        self.pages.visible = made.pages > 1
        if (self.pages.count, self.pages.value) != (made.pages, made.page):
            self._quiet = True
            self.pages.param.update(count=made.pages, value=made.page)
            self._quiet = False
        self.where.set(_where(made))
        self.heatmap.show(made)
        self.bars.show(made, sparsity_target(state["config"]))
        self.twin.set(_twin(made))

    _quiet = False

    def _turned(self, event: Any) -> None:
        if self._quiet or event.new is None:
            return
        self.wanted_page, self.follow = event.new, False
        self._again()
        self.page.navigate()

    def _clicked(self, name: str) -> None:
        """Look up the tensor in the log, beside the server's loop, and show it."""
        shown = self.last
        if not name or shown is None:
            self.layer.hide()
            return

        self.lookup = LOOKUPS.submit(find_layer, shown.path / "events.jsonl", name)
        self.looked_for = name

    @property
    def pending(self) -> bool:
        return self.lookup is not None and self.lookup.done()

    def take_up(self) -> None:
        """Show the tensor that was looked up."""
        if self.lookup is None or self.last is None:
            return
        event = self.lookup.result()
        self.lookup = None
        if event is None:
            self.layer.missing(self.looked_for)
        else:
            self.layer.show(layer_view(event, self.last.state))

    def _again(self) -> None:
        self.update(self.last, None)

    def _nothing(self, shown: Shown | None) -> None:
        self.tools.visible = self.charts.visible = False
        self.placeholder.pane.visible = True
        self.twin.set(Markup(""))
        self.layer.hide()
        self.now.set(Markup(""))
        if shown is None:
            self.placeholder.set(
                empty("No run is open", "The grid of layers and parameters fills while a model is pressed.")
            )
        elif shown.state["status"] == "failed" or shown.lost:
            self.placeholder.set(empty("Nothing was pressed", status_of(shown.state, shown.lost).sentence))
        else:
            self.placeholder.set(
                empty("Reading the model", "Its layers appear here as soon as step 1 has found them.")
            )

    def _show_now(self, shown: Shown) -> None:
        state = shown.state
        step, current = running_step(state), (state.get("current") or {}).get("name")
        doing = status_of(state, shown.lost).label
        if step and state["status"] == "running" and not shown.lost:
            doing = f"{STEP_TITLES[step['n']][0]} (step {step['n']} of 7)"
        if current in state["layers"]:
            current = f"last: {current}"
        what = current or (step.get("detail") if step else "") or ""
        left = eta_words(state, shown.now, shown.lost, shown.progress_bases)
        total, done = len(state["targets"]), len(state["layers"])
        share = f"{100 * done / total:.1f}" if total else "0"
        self.now.set(
            Markup(
                '<div class="bar"><b>{}</b><span class="mono break" data-current>{}</span>'
                '<span class="soft" data-pressed>{}</span><span class="soft" data-eta>{}</span></div>'
                '<div class="track" role="progressbar" aria-label="tensors pressed" aria-valuenow="{}" '
                'aria-valuemin="0" aria-valuemax="100"><i style="width:{}%"></i></div>'
            ).format(doing, what, pressed_words(state), "" if left == fig.NOTHING else left, share, share)
        )


def _where(made: Grid) -> Markup:
    if made.pages < 2:
        return Markup('<span class="soft small">{} · click a cell for its tensor</span>').format(
            fig.plural(made.layers, "layer")
        )
    return Markup('<span class="soft small">{}</span>').format(
        f"Layers {made.rows[0]}–{made.rows[-1]} of {made.layers} · click a cell for its tensor"
    )


def _twin(made: Grid) -> Markup:
    """The same figures as a table, for readers that do not see the chart."""
    cells = {(cell.row, cell.column): cell.text or cell.state for cell in made.cells}
    head = Markup("").join(Markup("<th>{}</th>").format(column) for column in made.columns)
    body = Markup("").join(
        Markup("<tr><th>{}</th>{}<td>{}</td></tr>").format(
            row,
            Markup("").join(Markup("<td>{}</td>").format(cells[row, column]) for column in made.columns),
            bar.text,
        )
        for row, bar in zip(made.rows, made.bars)
    )
    return Markup(
        '<details class="small"><summary class="soft">As a table</summary>'
        '<div class="scroll"><table data-grid>'
        "<caption class='visually-hidden'>{} by layer and parameter</caption>"
        "<thead><tr><th>Layer</th>{}<th>Zeros</th></tr></thead><tbody>{}</tbody></table></div></details>"
    ).format(METRICS[made.metric], head, body)
