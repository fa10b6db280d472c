"""Layers in rows, parameters in columns: colour and a number in each cell, and what is under way outlined."""

from __future__ import annotations

from collections.abc import Callable

from bokeh.core.properties import value
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    FixedTicker,
    LinearColorMapper,
    PrintfTickFormatter,
    Range1d,
    TapTool,
)
from bokeh.models.annotations import BoxAnnotation, ColorBar, Span  # mypy does not find them in bokeh.models
from bokeh.palettes import Cividis256

from tritpress.dashboard.components.charts import chart, factors, hover, pane, title_of
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import CURRENT, FONT, NEUTRAL, OKABE_ITO, WAITING
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.progress import (
    LAYERS_A_PAGE,
    METRICS,
    SPARSITY_BAND,
    Cell,
    Grid,
    SparsityTarget,
)

COLUMNS = (
    "row",
    "column",
    "value",
    "text",
    "ink",
    "fill",
    "edge",
    "width",
    "name",
    "state",
    "ratio",
    "sparsity",
    "planes",
    "bits",
    "mse",
    "cosine",
)


NOWHERE = "nowhere"
"""A row that no page has: what lies there is not drawn."""

CLEAR = "rgba(0,0,0,0)"

NO_CELL = (NOWHERE, NOWHERE, float("nan"), "", NEUTRAL, WAITING, CLEAR, 0.0, *[""] * 8)


def row_height(rows: int) -> int:
    """Pixels of a row: fewer layers get taller rows."""
    return 34 if rows <= 8 else 26 if rows <= 16 else 20


def plot_height(rows: int) -> int:
    """Pixels of a chart with that many rows, axes and title included."""
    return max(rows, 3) * row_height(max(rows, 3)) + 96


class Heatmap:
    """The grid of one page. `show` patches what changed."""

    def __init__(self) -> None:
        self.rows, self.columns = factors([]), factors([])
        self.source = ColumnDataSource({name: [] for name in COLUMNS})
        self.mapper = LinearColorMapper(palette=Cividis256, low=0, high=1, nan_color=CLEAR)
        self.figure = chart(
            "Ratio by layer and parameter",
            260,
            x_range=self.columns,
            y_range=self.rows,
            x_axis_location="above",
        )
        plot = self.figure
        plot.grid.grid_line_color = None
        plot.yaxis.axis_label = "Layer"
        plot.min_border_left = 44
        under = plot.rect("column", "row", 0.96, 0.9, source=self.source, fill_color="fill", line_color=None)
        plot.rect(
            "column",
            "row",
            0.96,
            0.9,
            source=self.source,
            line_color="edge",
            line_width="width",
            fill_color={"field": "value", "transform": self.mapper},
            nonselection_fill_alpha=1.0,
            nonselection_line_alpha=1.0,
        )
        plot.text(
            "column",
            "row",
            text="text",
            source=self.source,
            text_align="center",
            text_baseline="middle",
            text_font_size="11.5px",
            text_color="ink",
            nonselection_text_alpha=1.0,
            text_font=value(FONT),
        )
        plot.add_tools(
            hover(
                [under],
                [
                    ("Tensor", "@name"),
                    ("State", "@state"),
                    ("Ratio", "@ratio"),
                    ("Bits a weight", "@bits"),
                    ("Planes", "@planes"),
                    ("Zeros", "@sparsity"),
                    ("Mean squared error", "@mse"),
                    ("Cosine", "@cosine"),
                ],
            )
        )
        plot.add_tools(TapTool(renderers=[under]))
        self.ticks = FixedTicker(ticks=[])
        self.format = PrintfTickFormatter(format="%.0f")
        self.bar = ColorBar(
            color_mapper=self.mapper,
            ticker=self.ticks,
            formatter=self.format,
            width=10,
            padding=4,
            label_standoff=6,
            major_label_text_font_size="12px",
            bar_line_color=None,
            margin=8,
        )
        plot.add_layout(self.bar, "right")
        self.pane = pane(plot, "heatmap")

    def on_click(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the tensor of a clicked cell, "" when nothing is chosen any more."""

        def chosen(_attr: str, _old: list[int], new: list[int]) -> None:
            names = self.source.data["name"]
            callback(str(names[new[0]]) if new and new[0] < len(names) else "")

        self.source.selected.on_change("indices", chosen)

    def show(self, grid: Grid) -> None:
        """Bring the chart to this page and these figures."""
        rows = list(reversed(grid.rows))
        if list(self.rows.factors) != rows:
            self.rows.factors = rows
            self.figure.height = plot_height(len(rows))
        if list(self.columns.factors) != list(grid.columns):
            self.columns.factors = list(grid.columns)
        if (self.mapper.low, self.mapper.high) != (grid.low, grid.high) or not self.ticks.ticks:
            self.mapper.update(low=grid.low, high=grid.high)
        ticks = [4, 6, 8, 10, 12, 14] if grid.metric == "ratio" else [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
        ticks = [tick for tick in ticks if grid.low <= tick <= grid.high]
        if list(self.ticks.ticks) != ticks:
            self.ticks.ticks = ticks
            self.format.format = "%.0f×" if grid.metric == "ratio" else "%.2f"
        unit = "times smaller than float32" if grid.metric == "ratio" else "per cent of codes that are zero"
        title = f"{METRICS[grid.metric]} by layer and parameter ({unit})"
        if title_of(self.figure).text != title:
            title_of(self.figure).text = title
        # Every page has the same number of cells: the browser may draw in between, when some columns are
        # those of the new page and some those of the old one.
        lines = [self._line(cell, grid) for cell in grid.cells]
        lines += [NO_CELL] * (min(LAYERS_A_PAGE, grid.layers) * len(grid.columns) - len(lines))
        sync(self.source, {name: [line[i] for line in lines] for i, name in enumerate(COLUMNS)})

    @staticmethod
    def _line(cell: Cell, grid: Grid) -> tuple[object, ...]:
        if cell.state == "absent":
            return NO_CELL
        share = 0.0
        if cell.value is not None and grid.high > grid.low:
            share = (cell.value - grid.low) / (grid.high - grid.low)
        ink = ("#10181d" if share > 0.5 else "#ffffff") if cell.state == "done" else NEUTRAL
        names = cell.names[0] if len(cell.names) == 1 else f"{cell.done} of {len(cell.names)} tensors"
        return (
            cell.row,
            cell.column,
            float("nan") if cell.value is None else cell.value,
            cell.text,
            ink,
            WAITING,
            CURRENT if grid.current in cell.names else CLEAR,
            2.5 if grid.current in cell.names else 0.0,
            names,
            {"done": "pressed", "current": "under way", "waiting": "waiting"}[cell.state],
            fig.ratio(cell.ratio),
            fig.percent(cell.sparsity),
            fig.significant(cell.planes),
            fig.significant(cell.bits),
            fig.significant(cell.mse),
            fig.significant(cell.cosine, 4),
        )


NAN = float("nan")
BAR_COLUMNS = ("row", "value", "low", "high", "text", "colour")


class SparsityBars:
    """Zeros of each layer of the page against the target, in the same rows as the heatmap."""

    def __init__(self, rows: object) -> None:
        self.source = ColumnDataSource({name: [] for name in BAR_COLUMNS})
        self.range = Range1d(start=0, end=0.6)
        self.figure = chart("Zeros by layer", 260, x_range=self.range, y_range=rows, x_axis_location="above")
        plot = self.figure
        plot.ygrid.grid_line_color = None
        plot.yaxis.axis_label = "Layer"
        plot.min_border_left = 44
        plot.xaxis.ticker = FixedTicker(ticks=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        plot.xaxis.formatter = CustomJSTickFormatter(code="return Math.round(tick * 100) + ' %'")
        self.band = BoxAnnotation(
            left=SPARSITY_BAND[0],
            right=SPARSITY_BAND[1],
            fill_color="#009E73",
            fill_alpha=0.12,
            level="underlay",
        )
        self.line = Span(
            location=0.44, dimension="height", line_color=CURRENT, line_width=2, line_dash="dashed"
        )
        plot.add_layout(self.band)
        bars = plot.hbar(
            y="row", right="value", height=0.7, source=self.source, fill_color="colour", line_color=None
        )
        plot.segment("low", "row", "high", "row", source=self.source, line_color=NEUTRAL, line_width=2)
        plot.text(
            0,
            "row",
            text="text",
            source=self.source,
            text_color="#ffffff",
            text_font=value(FONT),
            x_offset=6,
            text_font_size="11.5px",
            text_baseline="middle",
        )
        plot.add_layout(self.line)
        plot.add_tools(
            hover(
                [bars],
                [("Layer", "@row"), ("Zeros", "@text"), ("Least", "@low{0.0 %}"), ("Most", "@high{0.0 %}")],
            )
        )
        self.pane = pane(plot, "sparsity bars")

    def show(self, grid: Grid, target: SparsityTarget) -> None:
        """Bring the bars to this page and these figures."""
        self.figure.height = plot_height(len(grid.rows))
        title = (
            f"Zeros by layer (band 25–45 %, dashed: {target.name})"
            if target.value is not None
            else (f"Zeros by layer (band 25–45 %, {target.name})")
        )
        if title_of(self.figure).text != title:
            title_of(self.figure).text = title
        if self.line.visible != (target.value is not None):
            self.line.visible = target.value is not None
        if target.value is not None and self.line.location != target.value:
            self.line.location = target.value
        most = max([0.6, *(bar.high for bar in grid.bars if bar.high is not None)])
        if self.range.end != most:
            self.range.end = most
        lines = [
            (
                bar.row,
                *(NAN if part is None else part for part in (bar.value, bar.low, bar.high)),
                bar.text,
                OKABE_ITO[0] if bar.inside else CURRENT,
            )
            for bar in grid.bars
        ]
        lines += [(NOWHERE, NAN, NAN, NAN, "", CLEAR)] * (min(LAYERS_A_PAGE, grid.layers) - len(lines))
        sync(self.source, {name: [line[i] for line in lines] for i, name in enumerate(BAR_COLUMNS)})
