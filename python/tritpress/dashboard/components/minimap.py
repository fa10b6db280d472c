"""The whole model in one small picture: where the page is, where the work is, and a click to go there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bokeh.events import Tap
from bokeh.models import ColumnDataSource, FixedTicker, Range1d
from bokeh.models.annotations import BoxAnnotation, ColorBar  # mypy does not find them in bokeh.models

from tritpress.dashboard.components.charts import figure, hover, pane, title_of
from tritpress.dashboard.components.heatmap import Heatmap, plot_height
from tritpress.dashboard.theme import CURRENT, NEUTRAL
from tritpress.dashboard.views.progress import Board, Window

WIDTH = 132
COLUMNS = ("x", "y", "row", "column", "state", "value")
"""What it takes of the grid's source."""


class Minimap:
    """Draws the grid's cells again, without words; from a source of its own, so that the whole model is not
    drawn anew as often as the page's cells are."""

    def __init__(self, heatmap: Heatmap) -> None:
        self.grid = heatmap
        self.source = ColumnDataSource({name: [] for name in COLUMNS}, name="whole model")
        self.shade: object = None
        self.rows = Range1d(start=0.5, end=-0.5)
        self.now = ColumnDataSource({"x": [], "y": [], "marker": []}, name="at work")
        self.figure = figure(
            "Whole model",
            export_name="whole-model",
            x_range=heatmap.columns,
            y_range=self.rows,
            x_axis_location="above",
            y_label="Layer",
        )
        plot = self.figure
        plot.sizing_mode = "fixed"
        plot.min_width = plot.width = WIDTH
        plot.grid.grid_line_color = None
        plot.xaxis.visible = False
        plot.min_border_left = 4
        plot.min_border_right = 8  # half of the scale's last number stands outside
        plot.yaxis.major_label_text_font_size = "11px"
        plot.yaxis.axis_label_text_font_size = "11px"
        plot.yaxis.axis_label_standoff = 2
        plot.yaxis.major_tick_line_color = None
        plot.yaxis.major_tick_out = 0
        title_of(plot).update(offset=-48)  # wider than the map, it begins over the axis
        plot.outline_line_color = NEUTRAL
        cells = plot.rect(
            "x",
            "y",
            1.0,
            1.0,
            source=self.source,
            line_color=None,
            fill_color={"field": "value", "transform": heatmap.mapper},
        )
        plot.scatter(
            "x",
            "y",
            marker="marker",
            source=self.now,
            size=10,
            fill_color=CURRENT,
            line_color="#ffffff",
            line_width=1.5,
        )
        # A picture of the map alone needs the colours' scale too. It stands in the room that the grid beside
        # it takes for its axis above: below, it would lower the grid, whose rows are those of the bars.
        self.ticks = FixedTicker(ticks=[])
        self.bar = ColorBar(
            color_mapper=heatmap.mapper,
            ticker=self.ticks,
            formatter=heatmap.format,
            orientation="horizontal",
            height=8,
            padding=2,
            label_standoff=3,
            title_text_font_size="11px",
            title_standoff=3,
            major_label_text_font_size="11px",
            major_tick_line_color=None,
            bar_line_color=None,
            background_fill_alpha=0.0,
        )
        plot.add_layout(self.bar, "above")
        # Light over dark: the frame is seen on every colour of the map and on both themes.
        self.frames = [
            BoxAnnotation(
                fill_color="#ffffff",
                fill_alpha=0.0,
                line_color=colour,
                line_alpha=1.0,
                line_width=width,
                level="overlay",
            )
            for colour, width in (("#ffffff", 4), (CURRENT, 2))
        ]
        for frame in self.frames:
            plot.add_layout(frame)
        plot.add_tools(hover([cells], [("Layer", "@row"), ("Parameter", "@column"), ("State", "@state")]))
        self.pane = pane(plot, "whole-model")
        self.pane.sizing_mode = "fixed"
        self.pane.stylesheets = ["@media (max-width: 640px) { :host { display: none !important; } }"]
        self.pane.width = WIDTH

    def on_click(self, callback: Callable[[int], None]) -> None:
        """Call `callback` with the number of the row that was clicked."""

        def tapped(event: Any) -> None:
            if event.y is not None:
                callback(max(0, round(event.y)))

        self.figure.on_event(Tap, tapped)

    def set_board(self, board: Board) -> None:
        """Another model."""
        count = max(1, len(board.where.rows))
        self.rows.update(start=count - 0.5, end=-0.5)
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if count / step <= 8)
        self.figure.yaxis[0].ticker = FixedTicker(ticks=list(range(0, count, step)))
        self.figure.yaxis[0].major_label_overrides = dict(enumerate(board.where.rows))

    def move(self, window: Window) -> None:
        """Move the frame to the page."""
        height = plot_height(window.height)
        if self.figure.height != height:
            self.figure.height = height
        top, bottom = window.first - 0.5, window.last + 0.5
        for frame in self.frames:
            if (frame.top, frame.bottom) != (top, bottom):
                frame.update(top=top, bottom=bottom)

    def show(self, board: Board, changed: Sequence[int]) -> None:
        """Bring the cells to what the grid has of them, and the mark to the tensor at work."""
        found = self.grid.source.data
        if self.shade is not self.grid.shade or len(self.source.data["x"]) != len(found["x"]):
            self.shade = shade = self.grid.shade
            if shade is not None:
                self.bar.title = shade.title
            self.source.data = {name: list(found[name]) for name in COLUMNS}
        elif changed:
            self.source.patch(
                {name: [(number, found[name][number]) for number in changed] for name in ("state", "value")}
            )
        ends = [*self.grid.ticks.ticks[:1], *self.grid.ticks.ticks[-1:]]
        if list(self.ticks.ticks) != ends:
            self.ticks.ticks = ends
        marked = [cell for cell in board.cells if cell.state in ("current", "failed")]
        place: dict[str, Any] = {
            "x": [cell.x for cell in marked],
            "y": [cell.y for cell in marked],
            "marker": ["triangle" if cell.state == "current" else "square_x" for cell in marked],
        }
        if {key: list(at) for key, at in self.now.data.items()} != place:
            self.now.data = place
