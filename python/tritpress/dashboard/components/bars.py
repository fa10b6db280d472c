"""Zeros of each layer against the target line and the gate's band, in the same rows as the grid beside it."""

from __future__ import annotations

from collections.abc import Sequence

from bokeh.core.properties import value
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, FixedTicker, Range1d
from bokeh.models.annotations import BoxAnnotation, Span  # mypy does not find them in bokeh.models

from tritpress.dashboard.components.charts import figure, hover, pane, title_of
from tritpress.dashboard.components.heatmap import CLEAR, Rows, plot_height
from tritpress.dashboard.theme import CURRENT, FONT, NEUTRAL, OKABE_ITO
from tritpress.dashboard.views.progress import SPARSITY_BAND, Bar, Board, SparsityTarget, Window

NAN = float("nan")
COLUMNS = ("y", "row", "value", "middle", "low", "high", "text", "colour", "state")


class SparsityBars:
    """A bar for each layer: mean of its codes; a grey stroke from its least to its most sparse tensor."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.source = ColumnDataSource({name: [] for name in COLUMNS}, name="zeros")
        self.range = Range1d(start=0, end=0.6)
        self.figure = figure(
            "Zeros by layer",
            export_name="zeros-by-layer",
            x_label="Share of codes that are zero",
            x_range=self.range,
            y_range=rows.range,
            x_axis_location="above",
        )
        plot = self.figure
        plot.ygrid.grid_line_color = None
        plot.min_border_left = 44
        plot.xaxis.axis_label_standoff = 2
        rows.label(plot.yaxis[0])
        plot.xaxis.ticker = FixedTicker(ticks=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        plot.xaxis.formatter = CustomJSTickFormatter(code="return Math.round(tick * 100) + ' %'")
        self.band = BoxAnnotation(
            left=SPARSITY_BAND[0],
            right=SPARSITY_BAND[1],
            fill_color="#009E73",
            fill_alpha=0.12,
            line_color="#009E73",
            line_alpha=0.5,
            line_dash="dotted",
            level="underlay",
        )
        self.line = Span(
            location=0.44, dimension="height", line_color=CURRENT, line_width=2, line_dash="dashed"
        )
        plot.add_layout(self.band)
        # Not hbar: bokeh draws the bars of rows beyond the page as lines along the frame's edge.
        bars = plot.rect(
            x="middle",
            y="y",
            width="value",
            height=0.7,
            source=self.source,
            fill_color="colour",
            line_color=None,
        )
        plot.segment("low", "y", "high", "y", source=self.source, line_color=NEUTRAL, line_width=2)
        plot.text(
            0,
            "y",
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
                [
                    ("Layer", "@row"),
                    ("Zeros", "@text"),
                    ("Least of its tensors", "@low{0.0 %}"),
                    ("Most", "@high{0.0 %}"),
                    ("Band", "@state"),
                ],
            )
        )
        self.pane = pane(plot, "zeros-by-layer")

    def show(
        self, board: Board, window: Window, target: SparsityTarget, changed: Sequence[int], everything: bool
    ) -> None:
        """Bring the bars to the rows that changed; the page is the grid's."""
        height = plot_height(window.height)
        if self.figure.height != height:
            self.figure.height = height
        dashed = f"dashed: {target.name}" if target.value is not None else target.name
        title = f"Zeros by layer (band 25–45 %, {dashed})"
        if title_of(self.figure).text != title:
            title_of(self.figure).text = title
        if self.line.visible != (target.value is not None):
            self.line.visible = target.value is not None
        if target.value is not None and self.line.location != target.value:
            self.line.location = target.value
        most = max([0.6, *(bar.high for bar in board.bars if bar.high is not None)])
        if self.range.end != most:
            self.range.end = most
        if everything or len(self.source.data["y"]) != len(board.bars):
            lines = [_line(y, bar) for y, bar in enumerate(board.bars)]
            self.source.data = {name: [line[i] for line in lines] for i, name in enumerate(COLUMNS)}
        elif changed:
            self.source.patch(
                {
                    name: [(y, _line(y, board.bars[y])[i]) for y in changed]
                    for i, name in enumerate(COLUMNS)
                    if name not in ("y", "row")
                }
            )


def _line(y: int, bar: Bar) -> tuple[object, ...]:
    half = None if bar.value is None else bar.value / 2
    return (
        y,
        bar.row,
        *(NAN if part is None else part for part in (bar.value, half, bar.low, bar.high)),
        bar.text,
        CLEAR if bar.value is None else OKABE_ITO[0] if bar.inside else CURRENT,
        "" if bar.inside is None else "inside" if bar.inside else "outside: marked !",
    )
