"""Charts of lines that grow: new points are streamed, a zoom stays, a smoothed line lies over the raw one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import panel as pn
from bokeh.models import (
    BasicTickFormatter,
    ColumnDataSource,
    DataRange1d,
    LogTicker,
    LogTickFormatter,
    NumeralTickFormatter,
)
from bokeh.models.renderers import GlyphRenderer

from tritpress.dashboard.components.charts import figure, hover, legend
from tritpress.dashboard.theme import OKABE_ITO
from tritpress.dashboard.views.curves import Chart, Line, lone_points, smooth, smooth_state

DASHES = ("solid", "dashed", "dotdash", "dotted")

HEIGHT = 270

REBUILD_EVERY = 2.0
"""Least seconds between two replacements of a long line: only one that is thinned out needs any."""

LONG = 500

FAINT = 0.38


@dataclass
class _Series:
    """A line as the browser has it."""

    source: ColumnDataSource
    raw: GlyphRenderer[Any]
    smoothed: GlyphRenderer[Any] | None
    lone: ColumnDataSource | None
    """Values that a line does not show: those between two gaps, and the only one."""
    gaps: bool = False
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    average: tuple[float, float] = (0.0, 0.0)
    replaced: float = 0.0


class CurveCard:
    """One chart. `show` brings it up to date; `logarithmic` and another x axis make the figure anew."""

    def __init__(self, height: int = HEIGHT) -> None:
        self.height = height
        self.series: dict[str, _Series] = {}
        self.share = 0.0
        self.behind = False
        self._made: tuple[Any, ...] | None = None
        self.pane = pn.pane.Bokeh(sizing_mode="stretch_width", margin=0, styles={"min-width": "0"})

    def show(self, chart: Chart, share: float = 0.0, logarithmic: bool = False, at_once: bool = True) -> None:
        """Show that chart, smoothed by `share`. Without `at_once` a long line is not replaced at every call:
        `behind` then says that it does not show all.
        """
        shape = (
            chart.title,
            chart.x_label,
            chart.y_label,
            logarithmic,
            tuple(line.key for line in chart.lines),
        )
        if shape != self._made:
            self._make(chart, logarithmic)
            self._made = shape
            self.share = -1.0
        again = share != self.share
        if again:
            self.share = share
            for series in self.series.values():
                if series.smoothed is not None:
                    series.smoothed.visible = share > 0
                    series.raw.glyph.line_alpha = FAINT if share > 0 else 1.0
        self.behind = False
        for line in chart.lines:
            self._bring(self.series[line.key], line, again, at_once)

    def _bring(self, series: _Series, line: Line, again: bool, at_once: bool) -> None:
        share, held = max(self.share, 0.0), len(series.x)
        if not again and line.x == series.x and line.y == series.y:
            return
        grows = held and not again and line.x[:held] == series.x and line.y[:held] == series.y
        if grows:
            x, y = line.x[held:], line.y[held:]
            series.source.stream({"x": x, "y": y, "s": smooth(y, share, series.average)})
            series.average = smooth_state(y, share, series.average)
        else:
            now = time.monotonic()
            if not (at_once or again or held < LONG or now - series.replaced > REBUILD_EVERY):
                self.behind = True
                return
            series.source.data = {"x": line.x, "y": line.y, "s": smooth(line.y, share)}
            series.average = smooth_state(line.y, share)
            series.replaced = now
        new = line.y[held:] if grows else line.y
        series.x, series.y = list(line.x), list(line.y)
        series.gaps = any(value != value for value in new) or (bool(grows) and series.gaps)
        self._mark_lone(series)

    def _mark_lone(self, series: _Series) -> None:
        if series.lone is None:
            return
        x, y = lone_points(series.x, series.y) if series.gaps or len(series.y) == 1 else ([], [])
        if x != series.lone.data["x"] or y != series.lone.data["y"]:
            series.lone.data = {"x": x, "y": y}

    def _make(self, chart: Chart, logarithmic: bool) -> None:
        plot = figure(
            chart.title,
            x_label=chart.x_label,
            y_label=chart.y_label + (" (log axis)" if logarithmic else ""),
            export_name=f"metrics-{chart.key}",
            height=self.height,
            zoom=True,
            y_axis_type="log" if logarithmic else "linear",
            x_range=DataRange1d(range_padding=0.02, only_visible=True),
            y_range=DataRange1d(default_span=_span_of_constants(chart), only_visible=True),
        )
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0[.]0")
        if logarithmic:
            plot.yaxis.ticker = LogTicker(desired_num_ticks=5, num_minor_ticks=0)
            plot.yaxis.formatter = LogTickFormatter(min_exponent=3)
        elif chart.whole:
            plot.yaxis.formatter = NumeralTickFormatter(format="0,0[.]0")
        else:
            plot.yaxis.formatter = BasicTickFormatter(power_limit_low=-4, power_limit_high=6)
        self.series = {}
        items = []
        for line, colour, dash in zip(chart.lines, OKABE_ITO * 4, DASHES * 8):
            source = ColumnDataSource({"x": [], "y": [], "s": []}, name=f"curve:{chart.key}:{line.key}")
            smoothed: GlyphRenderer[Any] | None = None
            raw: GlyphRenderer[Any]
            lone: ColumnDataSource | None = None
            if line.dots:
                raw = plot.scatter("x", "y", source=source, size=8, color=colour, marker="diamond")
                plot.line("x", "y", source=source, line_color=colour, line_width=1.5, line_dash=dash)
            else:
                raw = plot.line("x", "y", source=source, line_color=colour, line_width=1.8, line_dash=dash)
                smoothed = plot.line(
                    "x", "s", source=source, line_color=colour, line_width=2.4, visible=False
                )
                lone = ColumnDataSource({"x": [], "y": []}, name=f"lone:{chart.key}:{line.key}")
                plot.scatter("x", "y", source=lone, size=5, color=colour)
            self.series[line.key] = _Series(source, raw, smoothed, lone)
            items.append((line.title, [raw] if smoothed is None else [smoothed, raw]))
            rows = [(chart.x_label, "@x{0,0.[0]}"), (line.title, "@y{0,0.[0000]}")]
            if "e-" in f"{max((abs(v) for v in line.y if v == v), default=1):e}":
                rows[1] = (line.title, "@y{0.000e+0}")
            if smoothed is not None:
                rows.append(("smoothed", rows[1][1].replace("@y", "@s")))
            plot.add_tools(hover([raw], rows, mode="vline" if not line.dots else "mouse"))
        if len(items) > 1:  # the title of a chart says what its only line is
            legend(plot, items)
        self.pane.object = plot


def _span_of_constants(chart: Chart) -> float:
    """Height of the axis while all values are the same."""
    return max((abs(y) for line in chart.lines for y in line.y[:1] if y == y), default=0.0) or 1.0


class ChartGrid:
    """Charts side by side, as many in a row as there is room for; each is made once and kept."""

    def __init__(self) -> None:
        self.cards: dict[str, CurveCard] = {}
        self.box = pn.Column(
            sizing_mode="stretch_width",
            margin=0,
            styles={
                "display": "grid",
                "grid-template-columns": "repeat(auto-fill, minmax(min(420px, 100%), 1fr))",
                "gap": "14px 18px",
            },
        )

    def show(self, charts: list[Chart], share: float, logarithmic: bool, at_once: bool) -> None:
        """Show these charts and no others."""
        keys = [chart.key for chart in charts]
        for chart in charts:
            card = self.cards.get(chart.key)
            if card is None:
                card = self.cards[chart.key] = CurveCard()
            card.show(chart, share, logarithmic, at_once)
        self.cards = {key: self.cards[key] for key in keys}
        panes = [card.pane for card in self.cards.values()]
        if list(self.box.objects) != panes:
            self.box.objects = panes
        if self.box.visible != bool(panes):
            self.box.visible = bool(panes)

    @property
    def behind(self) -> bool:
        return any(card.behind for card in self.cards.values())
