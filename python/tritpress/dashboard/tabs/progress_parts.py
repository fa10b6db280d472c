"""The parts of the Progress tab and how they stand together; no state but what they show."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.bars import SparsityBars
from tritpress.dashboard.components.export import csv_button
from tritpress.dashboard.components.gridtable import GridKeys, GridTable
from tritpress.dashboard.components.heatmap import TURN, Heatmap, Rows
from tritpress.dashboard.components.html import Fragment, Markup, join
from tritpress.dashboard.components.layer import LayerPanel
from tritpress.dashboard.components.minimap import Minimap
from tritpress.dashboard.tabs.base import Shown
from tritpress.dashboard.theme import STEPPERS
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.progress import (
    MARKS,
    OUTSIDE,
    WORDS,
    Board,
    Map,
    Window,
    at_work,
    pressed_words,
)
from tritpress.dashboard.views.shades import SHADES, Shade, all_figures
from tritpress.dashboard.views.status import STEP_TITLES, eta_words, running_step, status_of


class Parts:
    """Tools, grid, minimap, bars, keyboard strip, table twin and the view of one tensor."""

    def __init__(self) -> None:
        label = Fragment(Markup('<span class="soft small">Colour by</span>'))
        self.metric = pmui.RadioButtonGroup(
            label="",
            options={shade.title: key for key, shade in SHADES.items()},
            value="ratio",
            size="small",
            margin=(0, 12, 0, 0),
            color="primary",
        )
        self.pages = pmui.Pagination(
            count=1, value=0, show_first_button=True, show_last_button=True, size="small", margin=(2, 8, 0, 0)
        )
        self.layer = pmui.IntInput(
            label="Go to layer",
            theme_config=STEPPERS,
            value=None,
            start=0,
            size="small",
            width=120,
            margin=(0, 8, 0, 0),
        )
        self.follow = pmui.Switch(label="Follow the work", value=True, size="small", margin=(0, 8, 0, 0))
        self.where, self.legend = Fragment(), Fragment()
        for fragment in (label, self.where):
            fragment.pane.sizing_mode = None
        self.rows = Rows()
        self.heatmap = Heatmap(self.rows)
        self.minimap = Minimap(self.heatmap)
        self.bars = SparsityBars(self.rows)
        light, dark = self.minimap.frames
        self.pages.jscallback(args={"range": self.rows.range, "light": light, "dark": dark}, value=TURN)
        self.keys = GridKeys(sizing_mode="stretch_width", margin=(8, 0, 0, 0))
        self.twin = GridTable(sizing_mode="stretch_width", margin=(8, 0, 0, 0))
        self.panel = LayerPanel()
        grid = pn.Row(
            self.minimap.pane,
            self.heatmap.pane,
            sizing_mode="stretch_width",
            margin=0,
            styles={"flex": "2 1 460px", "min-width": "0"},
        )
        self.bars.pane.styles = {"flex": "1 1 320px", "min-width": "0"}
        self.tools = pn.FlexBox(
            label.pane,
            self.metric,
            self.pages,
            self.layer,
            self.follow,
            self.where.pane,
            sizing_mode="stretch_width",
            align_items="center",
            margin=(0, 0, 8, 0),
            gap="8px",
        )
        self.charts = pn.FlexBox(
            grid, self.bars.pane, sizing_mode="stretch_width", gap="16px", align_items="start"
        )
        self.under = pn.Column(
            self.legend.pane, self.keys, self.twin, sizing_mode="stretch_width", margin=(4, 0, 0, 0)
        )
        self.objects = [self.tools, self.charts, self.under, self.panel.row]

    def set_board(self, board: Board) -> None:
        """Another model."""
        numbers = [int(row) for row in board.where.rows if row != OUTSIDE]
        self.rows.set_map(board.where, [self.heatmap.figure.yaxis[0], self.bars.figure.yaxis[0]])
        self.heatmap.set_board(board)
        self.minimap.set_board(board)
        many = len(board.where.rows) > 32
        self.minimap.pane.visible = self.pages.visible = self.follow.visible = many
        self.layer.visible = len(numbers) > 8
        if numbers:
            self.layer.param.update(start=numbers[0], end=numbers[-1])
        for part in (self.tools, self.charts, self.under):
            part.visible = True

    def hide(self) -> None:
        """There is no model to show."""
        for part in (self.tools, self.charts, self.under):
            part.visible = False
        self.panel.hide()

    def show_tools(self, window: Window, shade: str, follow: bool, layer: int | None, shown: Shown) -> None:
        """Bring the controls to what is shown; the caller keeps their own events away."""
        if window.pages > self.pages.count:  # the number of pages bounds the page: one after the other
            self.pages.count = window.pages
        if self.pages.value != window.page:
            self.pages.value = window.page
        if self.pages.count != window.pages:
            self.pages.count = window.pages
        if self.metric.value != shade:
            self.metric.value = shade
        if layer is not None and self.layer.value != layer:
            self.layer.value = layer
        if self.follow.disabled != shown.over:
            self.follow.disabled = shown.over
        if self.follow.value != (follow and not shown.over):
            self.follow.value = follow and not shown.over


def now_bar(shown: Shown) -> Markup:
    """What is being done, which tensor is at work, how far it is and how long it takes."""
    state = shown.state
    step = running_step(state)
    name, mark = at_work(state, shown.lost)
    doing = status_of(state, shown.lost).label
    if step and state["status"] == "running" and not shown.lost:
        doing = f"{STEP_TITLES[step['n']][0]} (step {step['n']} of 7)"
    if name is not None:
        what = f"{MARKS[mark]} {name}" if mark == "current" else f"{MARKS[mark]} broke off at {name}"
    else:
        last = (state.get("current") or {}).get("name")
        what = f"last: {last}" if last else (step.get("detail") if step else "") or ""
    left = eta_words(state, shown.now, shown.lost, shown.progress_bases, shown.samples)
    total, done = len(state["targets"]), len(state["layers"])
    share = f"{100 * done / total:.1f}" if total else "0"
    return Markup(
        '<div class="bar"><b>{}</b><span class="mono break" data-current>{}</span>'
        '<span class="soft" data-pressed>{}</span><span class="soft" data-eta>{}</span></div>'
        '<div class="track" role="progressbar" aria-label="tensors pressed" aria-valuenow="{}" '
        'aria-valuemin="0" aria-valuemax="100"><i style="width:{}%"></i></div>'
    ).format(doing, what, pressed_words(state), "" if left == fig.NOTHING else left, share, share)


def where_words(window: Window, where: Map) -> Markup:
    """`Layers 32–63 of 126`."""
    layers = sum(row != OUTSIDE for row in where.rows)
    words = fig.plural(layers, "layer")
    if window.pages > 1:
        shown = [row for row in where.rows[window.first : window.last + 1] if row != OUTSIDE]
        words = f"Layers {shown[0]}–{shown[-1]} of {layers}" if shown else f"Beside the {words}"
    if OUTSIDE in where.rows[window.first : window.last + 1]:
        words += " and what lies outside them"
    return Markup('<span class="soft small" data-where>{}</span>').format(words)


def legend(board: Board) -> Markup:
    """The signs that stand in the grid now, in words."""
    signs = [
        f"{MARKS[state]} {WORDS[state]}"
        for state in ("current", "waiting", "failed", "unreached")
        if board.states[state]
    ]
    if any(bar.inside is False for bar in board.bars):
        signs.append("! outside the band")
    if board.folds:
        signs.append("3/8 so many of a cell's tensors pressed; when all are, their mean")
    words = "Click a cell, or choose one by keyboard, to see its tensor."
    return Markup('<p class="soft small" data-signs>{}</p>').format(
        f"{words} Signs: {'; '.join(signs)}." if signs else words
    )


def table_twin(board: Board, window: Window, shade: Shade) -> Markup:
    """The page's figures as a table of buttons, for readers that do not see the chart."""
    where = board.where
    head = join(Markup("<th>{}</th>").format(column) for column in where.columns)
    lines = [_twin_row(board, y, shade) for y in range(window.first, window.last + 1)]
    return Markup(
        "<table data-grid><caption>{} by layer and parameter ({}); each figure opens its tensor {}</caption>"
        "<thead><tr><th>Layer</th>{}<th>Zeros</th></tr></thead><tbody>{}</tbody></table>"
    ).format(shade.title, shade.unit, csv_button(f"grid-{shade.key}"), head, join(lines))


def _twin_row(board: Board, y: int, shade: Shade) -> Markup:
    cells: list[Any] = []
    for x, column in enumerate(board.where.columns):
        cell = board.at(y, x)
        if cell is None:
            cells.append(Markup("<td></td>"))
            continue
        words = shade.text(cell) if shade.value(cell) is not None else cell.words
        told = "; ".join(f"{name} {text}" for name, text in all_figures(cell).items() if text != fig.NOTHING)
        cells.append(
            Markup('<td><button data-open="{}" title="{}" aria-label="{}">{}</button></td>').format(
                cell.names[0], told, f"layer {cell.row}, {column}: {words}", words
            )
        )
    return Markup("<tr><th>{}</th>{}<td>{}</td></tr>").format(
        board.where.rows[y], join(cells), board.bars[y].text
    )
