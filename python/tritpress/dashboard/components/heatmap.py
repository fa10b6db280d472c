"""Layers in rows, parameters in columns: colour and a number in each cell, a sign where there is none yet.

The browser holds the cells of the whole model; a page is a window on its rows, so that turning pages moves a
range and sends no data. `Rows` is that window, shared by the grid and the bars of zeros beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bokeh.core.properties import value
from bokeh.events import Tap
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    CustomJS,
    CustomJSFilter,
    CustomJSTickFormatter,
    FixedTicker,
    LinearColorMapper,
    Range1d,
)
from bokeh.models.annotations import ColorBar  # mypy does not find it in bokeh.models
from bokeh.palettes import Cividis256

from tritpress.dashboard.components.charts import figure, hover, pane, title_of
from tritpress.dashboard.theme import CURRENT, FONT, NEUTRAL, WAITING
from tritpress.dashboard.views.progress import LAYERS_A_PAGE, Board, Cell, Map, Window
from tritpress.dashboard.views.shades import Shade, all_figures

HOVER = {
    "ratio": "Ratio",
    "bits": "Bits a weight",
    "planes": "Planes",
    "sparsity": "Zeros",
    "zeros": "Zero in every plane",
    "error": "Error",
    "mse": "Mean squared error",
    "cosine": "Cosine",
    "weights": "Weights",
    "threshold": "Threshold",
    "group": "Group size",
    "method": "Method",
    "flips": "Sign flips",
    "time": "Time",
}
"""Columns of what is told of a cell under the pointer: `all_figures` in its order."""
COLOURED = ("value", "text", "ink")
COLUMNS = ("x", "y", "row", "column", "name", "state", *COLOURED, "edge", "width", *HOVER)

CLEAR = "rgba(0,0,0,0)"
PLANES = tuple(Cividis256[at] for at in (30, 145, 240))
"""One, two and three planes: three steps of the same map."""

MANY = 0.4
"""Share of the cells above which the whole source is sent instead of patches."""


def row_height(rows: int) -> int:
    """Pixels of a row: fewer layers get taller rows."""
    return 34 if rows <= 8 else 26 if rows <= 16 else 20


def plot_height(rows: int) -> int:
    """Pixels of a chart with that many rows, axes and title included."""
    return max(rows, 3) * row_height(max(rows, 3)) + 96


TURN = """
  // The browser moves the window by itself; what the server says a moment later is the same.
  const [height, rows] = range.tags, page = cb_obj.value
  if (height === undefined || page === null || page === undefined) return
  const first = Math.min(page * SIZE, rows - 1), last = Math.min(first + SIZE, rows) - 1
  range.setv({start: first + height - 0.5, end: first - 0.5})
  for (const frame of [light, dark]) frame.setv({top: first - 0.5, bottom: last + 0.5})
""".replace("SIZE", str(LAYERS_A_PAGE))
"""Run by the pagination: `range` is that of `Rows`, `light` and `dark` the minimap's frames."""


SEEN = """
  const low = Math.min(range.start, range.end), high = Math.max(range.start, range.end)
  return Array.from(source.data.y, (y) => low < y && y < high)
"""
"""A filter: the browser measures and draws the words of the page alone, which cost most of a redraw."""


class Rows:
    """The rows that a page shows, as a range of row numbers; the first one stands on top."""

    def __init__(self) -> None:
        self.range = Range1d(start=0.5, end=-0.5, name="rows of the page")
        self.ticks = FixedTicker(ticks=[0])
        self.labels: dict[float | str, str] = {}

    def label(self, axis: Any) -> None:
        """Let an axis tell the layers' names."""
        axis.ticker = self.ticks
        axis.major_label_overrides = self.labels
        axis.axis_label = "Layer"
        axis.major_tick_line_color = None

    def set_map(self, where: Map, axes: Sequence[Any]) -> None:
        """Take the names of a model's rows."""
        self.labels = dict(enumerate(where.rows))
        self.ticks.ticks = list(range(len(where.rows)))
        for axis in axes:
            axis.major_label_overrides = self.labels

    def show(self, window: Window) -> None:
        """Move to that page. The last page keeps the height of the others."""
        if self.range.tags != [window.height, window.rows]:
            self.range.tags = [window.height, window.rows]
        span = (window.first + window.height - 0.5, window.first - 0.5)
        if (self.range.start, self.range.end) != span:
            self.range.update(start=span[0], end=span[1])


class Heatmap:
    """The grid. `show` patches the cells that changed; `source` has the whole model."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.columns = Range1d(start=-0.5, end=0.5)
        self.source = ColumnDataSource({name: [] for name in COLUMNS}, name="grid")
        self.chosen = ColumnDataSource({"x": [], "y": []})
        self.mapper = LinearColorMapper(palette=Cividis256, low=0, high=1, nan_color=WAITING)
        self.shade: Shade | None = None
        self.ends = (0.0, 1.0)  # of the colours
        self.figure = figure(
            "Ratio by layer and parameter",
            export_name="layers-and-parameters",
            x_range=self.columns,
            y_range=rows.range,
            x_axis_location="above",
            x_label="Parameter",
        )
        plot = self.figure
        plot.grid.grid_line_color = None
        plot.min_border_left = 44
        plot.xaxis.major_tick_line_color = None
        plot.xaxis.axis_label_standoff = 2
        rows.label(plot.yaxis[0])
        cells = plot.rect(
            "x",
            "y",
            0.95,
            0.88,
            source=self.source,
            line_color="edge",
            line_width="width",
            fill_color={"field": "value", "transform": self.mapper},
        )
        seen = CustomJSFilter(args={"range": rows.range}, code=SEEN)
        again = CustomJS(args={"seen": seen}, code="seen.change.emit()")
        for end in ("start", "end"):
            rows.range.js_on_change(end, again)
        plot.text(
            "x",
            "y",
            view=CDSView(filter=seen),
            text="text",
            source=self.source,
            text_align="center",
            text_baseline="middle",
            text_font_size="11.5px",
            text_color="ink",
            text_font=value(FONT),
        )
        for colour, width, dash in (("#ffffff", 4, "solid"), ("#10181d", 2, "solid")):
            plot.rect(
                "x",
                "y",
                0.97,
                0.94,
                source=self.chosen,
                fill_color=None,
                line_color=colour,
                line_width=width,
                line_dash=dash,
            )
        lines = [("Tensor", "@name"), ("State", "@state"), *((t, f"@{key}") for key, t in HOVER.items())]
        plot.add_tools(hover([cells], lines))
        self.ticks = FixedTicker(ticks=[])
        self.format = CustomJSTickFormatter(
            args={"factor": 1, "unit": ""}, code="return String(+(tick * factor).toFixed(2)) + unit"
        )
        self.bar = ColorBar(
            color_mapper=self.mapper,
            ticker=self.ticks,
            formatter=self.format,
            width=10,
            padding=4,
            label_standoff=6,
            major_label_text_font_size="12px",
            bar_line_color=None,
            background_fill_alpha=0.0,
            margin=6,
        )
        plot.add_layout(self.bar, "right")
        self.pane = pane(plot, "layers-and-parameters")

    def on_click(self, callback: Callable[[Cell], None]) -> None:
        """Call `callback` with the cell that was clicked."""

        def tapped(event: Any) -> None:
            cell = None if event.x is None else self.board.at(round(event.y), round(event.x))
            if cell is not None:
                callback(cell)

        self.figure.on_event(Tap, tapped)

    def set_board(self, board: Board) -> None:
        """Another model: its columns, and all of its cells at the next `show`."""
        self.board = board
        columns = board.where.columns
        self.columns.update(start=-0.5, end=len(columns) - 0.5)
        axis = self.figure.xaxis[0]
        axis.ticker = FixedTicker(ticks=list(range(len(columns))))
        axis.major_label_overrides = dict(enumerate(columns))
        self.shade = None

    def show(self, window: Window, shade: Shade, changed: Sequence[int]) -> None:
        """Bring the chart to this page, this colour and the cells that changed."""
        height = plot_height(window.height)
        if self.figure.height != height:
            self.figure.height = height
        self.rows.show(window)
        cells = self.board.cells
        low, high = self._scale(shade, changed)
        moved = (self.mapper.low, self.mapper.high) != (low, high)
        recoloured = self.shade is not shade
        if self.shade is None or len(self.source.data["x"]) != len(cells) or len(changed) > MANY * len(cells):
            self._colour(shade, low, high)
            lines = [self._line(cell, shade, low, high) for cell in cells]
            self.source.data = {name: [line[i] for line in lines] for i, name in enumerate(COLUMNS)}
            return
        if moved or recoloured:
            self._colour(shade, low, high)
            lines = [_coloured(cell, shade, low, high) for cell in cells]
            every = slice(0, len(cells))
            self.source.patch(
                {name: [(every, [line[i] for line in lines])] for i, name in enumerate(COLOURED)}
            )
        if changed:
            lines = [self._line(cells[number], shade, low, high) for number in changed]
            self.source.patch(
                {
                    name: [(number, line[i]) for number, line in zip(changed, lines)]
                    for i, name in enumerate(COLUMNS)
                    if name not in ("x", "y", "row", "column", "name")
                }
            )

    def choose(self, cell: Cell | None) -> None:
        """Outline that cell."""
        place: dict[str, Any] = {"x": [], "y": []} if cell is None else {"x": [cell.x], "y": [cell.y]}
        if {key: list(at) for key, at in self.chosen.data.items()} != place:
            self.chosen.data = place

    def _scale(self, shade: Shade, changed: Sequence[int]) -> tuple[float, float]:
        """The ends of the colours; they only grow apart. Whole numbers stand in the middle of theirs."""
        cells = self.board.cells
        if shade.steps:
            return shade.low - 0.5, shade.high + 0.5
        if self.shade is not shade:
            self.ends = shade.bounds(cells)
            return self.ends
        low, high = shade.bounds(cells[number] for number in changed)
        self.ends = min(low, self.ends[0]), max(high, self.ends[1])
        return self.ends

    def _colour(self, shade: Shade, low: float, high: float) -> None:
        recoloured, self.shade = self.shade is not shade, shade
        self.mapper.update(low=low, high=high)
        ticks = [tick for tick in shade.ticks if low <= tick <= high]
        if list(self.ticks.ticks) != ticks:
            self.ticks.ticks = ticks
        if recoloured:
            self.mapper.palette = list(PLANES) if shade.steps else list(Cividis256)
            self.format.args = {"factor": shade.factor, "unit": shade.mark}
            title_of(self.figure).text = f"{shade.title} by layer and parameter ({shade.unit})"

    @staticmethod
    def _line(cell: Cell, shade: Shade, low: float, high: float) -> tuple[object, ...]:
        marked, pending = cell.state in ("current", "failed"), cell.state in ("waiting", "unreached")
        return (
            cell.x,
            cell.y,
            cell.row,
            cell.column,
            cell.title,
            cell.words,
            *_coloured(cell, shade, low, high),
            CURRENT if marked else NEUTRAL if pending else CLEAR,
            2.5 if marked else 0.5 if pending else 0.0,
            *all_figures(cell).values(),
        )


def _coloured(cell: Cell, shade: Shade, low: float, high: float) -> tuple[float, str, str]:
    """Value, text and the text's colour, by the lightness of what lies under it."""
    found = shade.value(cell)
    text = shade.text(cell)
    if found is None:
        return float("nan"), text, CURRENT if cell.state in ("current", "failed") else NEUTRAL
    share = (found - low) / (high - low) if high > low else 0.0
    return found, text, "#10181d" if share > 0.47 else "#ffffff"
