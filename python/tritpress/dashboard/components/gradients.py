"""Gradient norm of every pressed tensor by layer, on a log axis; what is dead or explodes says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.core.properties import value
from bokeh.models import BasicTicker, ColumnDataSource, LogTickFormatter, NumeralTickFormatter, Range1d
from bokeh.models.annotations import LegendItem  # mypy does not find it in bokeh.models
from bokeh.models.renderers import GlyphRenderer

from tritpress.dashboard.components.charts import figure, hover, legend, pane
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import CURRENT, FONT, MARKERS, NEUTRAL, OKABE_ITO
from tritpress.dashboard.views.quality import MARK_WORDS, GradientPage


class GradientChart:
    """A colour and a shape for each parameter, a grey dash for the same tensor in the original."""

    def __init__(self) -> None:
        self.range = Range1d(start=1e-3, end=1)
        self.layers = Range1d(start=-0.6, end=5.6)
        self.sources: dict[str, ColumnDataSource] = {}
        self.figure = figure(
            "Gradient norm by layer",
            x_label="Layer",
            y_label="Gradient norm (log axis)",
            export_name="quality-gradients",
            height=360,
            y_axis_type="log",
            y_range=self.range,
            x_range=self.layers,
        )
        plot = self.figure
        plot.xaxis.ticker = BasicTicker(mantissas=[1, 2, 5], min_interval=1)
        plot.xaxis.formatter = NumeralTickFormatter(format="0")
        plot.yaxis.formatter = LogTickFormatter(min_exponent=2)
        self.legend = legend(plot)
        self.legend.ncols = 4  # two short lines also fit a narrow page
        self.marks = ColumnDataSource({"x": [], "y": [], "text": []}, name="gradient:marks")
        self.originals = ColumnDataSource({"x": [], "y": []}, name="gradient:original")
        dashes: GlyphRenderer[Any] = plot.scatter(
            "x", "y", source=self.originals, marker="dash", size=12, line_color=NEUTRAL, line_width=2
        )
        plot.text(
            "x",
            "y",
            text="text",
            source=self.marks,
            text_font_size="12px",
            text_font_style="bold",
            text_font=value(FONT),
            text_color=CURRENT,
            text_align="center",
            text_baseline="bottom",
            y_offset=-9,
        )
        self.legend.items = [LegendItem(label="in the original", renderers=[dashes])]
        self.pane = pane(plot, "gradient norms")

    def show(self, found: GradientPage) -> None:
        """Bring the points up to date."""
        ends = (found.low * 0.6, found.high * 4)  # room for what is written over a point
        if (self.range.start, self.range.end) != ends:
            self.range.update(start=ends[0], end=ends[1])
        span = (found.first - 0.6, found.last + 0.6)
        if (self.layers.start, self.layers.end) != span:
            self.layers.update(start=span[0], end=span[1])
        count = len(found.kinds)
        marks: list[tuple[float, float, str]] = []
        dashes: list[tuple[float, float]] = []
        for index, kind in enumerate(found.kinds):
            points = [point for point in found.points if point.kind == kind]
            # Parameters of one layer stand side by side instead of on top of one another.
            shift = (index - (count - 1) / 2) * 0.7 / max(count, 1)
            marks += [
                (point.layer + shift, point.norm, MARK_WORDS[point.mark])
                for point in points
                if point.mark != "ok"
            ]
            dashes += [(point.layer + shift, point.original) for point in points if point.original]
            columns: dict[str, Sequence[Any]] = {
                "x": [point.layer + shift for point in points],
                "norm": [point.norm for point in points],
                "name": [point.name for point in points],
                "shown": [point.shown for point in points],
                "before": [point.before for point in points],
                "state": [MARK_WORDS[point.mark] or "healthy" for point in points],
                "size": [8 if point.mark == "ok" else 13 for point in points],
            }
            if kind not in self.sources:
                self._add(kind, columns)
            sync(self.sources[kind], columns)
        for kind in self.sources.keys() - set(found.kinds):
            sync(self.sources[kind], {name: [] for name in self.sources[kind].data})
        sync(self.marks, {key: [mark[i] for mark in marks] for i, key in enumerate(("x", "y", "text"))})
        sync(self.originals, {key: [dash[i] for dash in dashes] for i, key in enumerate(("x", "y"))})

    def _add(self, kind: str, columns: dict[str, Sequence[Any]]) -> None:
        index = len(self.sources)
        source = ColumnDataSource({name: [] for name in columns}, name=f"gradient:{kind}")
        self.sources[kind] = source
        dots: GlyphRenderer[Any] = self.figure.scatter(
            "x",
            "norm",
            source=source,
            size="size",
            marker=MARKERS[index % len(MARKERS)],
            fill_color=OKABE_ITO[index % len(OKABE_ITO)],
            line_color=OKABE_ITO[index % len(OKABE_ITO)],
            fill_alpha=0.85,
        )
        rows = [("Tensor", "@name"), ("Gradient norm", "@shown"), ("In the original", "@before")]
        self.figure.add_tools(hover([dots], [*rows, ("State", "@state")]))
        self.legend.items = [*self.legend.items[:-1], LegendItem(label=kind, renderers=[dots]),
                             self.legend.items[-1]]  # fmt: skip
