"""Curves over training steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    ColumnDataSource,
    LogTickFormatter,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Legend, LegendItem  # mypy does not find them in bokeh.models
from bokeh.models.renderers import GlyphRenderer

from tritpress.dashboard.components.charts import chart, hover, pane
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import MARKERS, OKABE_ITO
from tritpress.dashboard.views.metrics import SERIES, Curves
from tritpress.dashboard.views.quality import Gradients

DASHES = ("solid", "dashed", "dotdash")


class LossCurve:
    """Loss, cross-entropy and KL by optimizer step; each with its own colour and dash."""

    def __init__(self) -> None:
        self.source = ColumnDataSource({"step": [], **{key: [] for key in SERIES}})
        self.figure = chart("Fine-tuning", 320)
        plot = self.figure
        plot.xaxis.axis_label = "Optimizer step"
        plot.yaxis.axis_label = "Nats a token"
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.yaxis.formatter = BasicTickFormatter(use_scientific=False)
        self.legend = Legend(
            location="center", orientation="horizontal", items=[], label_text_font_size="12px", margin=0
        )
        plot.add_layout(self.legend, "above")
        items = []
        for (key, title), colour, dash in zip(SERIES.items(), OKABE_ITO, DASHES):
            line: GlyphRenderer[Any] = plot.line(
                "step", key, source=self.source, line_color=colour, line_width=2, line_dash=dash
            )
            items.append((title, [line]))
        self.legend.items = [LegendItem(label=title, renderers=lines) for title, lines in items]
        plot.add_tools(
            hover(
                [items[0][1][0]],
                [("Step", "@step{0,0}"), *((title, f"@{key}{{0.0000}}") for key, title in SERIES.items())],
                mode="vline",
            )
        )
        self.pane = pane(plot, "loss curve")

    def show(self, curves: Curves) -> None:
        """Bring the curves up to date; new points are streamed."""
        nothing = [float("nan")] * len(curves.steps)
        sync(self.source, {"step": curves.steps, **{key: curves.values.get(key, nothing) for key in SERIES}})


class GradientChart:
    """Gradient norm of every pressed tensor by layer, log axis; a colour and a shape for each parameter."""

    def __init__(self) -> None:
        self.range = Range1d(start=1e-3, end=1)
        self.layers = Range1d(start=-0.6, end=5.6)
        self.sources: dict[str, ColumnDataSource] = {}
        self.figure = chart(
            "Gradient norm by layer", 340, y_axis_type="log", y_range=self.range, x_range=self.layers
        )
        plot = self.figure
        plot.xaxis.axis_label = "Layer"
        plot.yaxis.axis_label = "Gradient norm"
        plot.xaxis.ticker = BasicTicker(mantissas=[1, 2, 5], min_interval=1)
        plot.xaxis.formatter = NumeralTickFormatter(format="0")
        plot.yaxis.formatter = LogTickFormatter(min_exponent=2)
        self.legend = Legend(
            location="center", orientation="horizontal", items=[], label_text_font_size="12px", margin=0
        )
        plot.add_layout(self.legend, "above")
        self.pane = pane(plot, "gradient norms")

    def show(self, gradients: Gradients) -> None:
        """Bring the points up to date."""
        if not gradients.points:
            return
        if (self.range.start, self.range.end) != (gradients.low, gradients.high):
            self.range.update(start=gradients.low * 0.8, end=gradients.high * 1.25)
        layers = [point.layer for point in gradients.points]
        span = (min(layers) - 0.6, max(layers) + 0.6)
        if (self.layers.start, self.layers.end) != span:
            self.layers.update(start=span[0], end=span[1])
        count = len(gradients.kinds)
        for index, kind in enumerate(gradients.kinds):
            points = [point for point in gradients.points if point.kind == kind]
            # Parameters of one layer stand side by side instead of on top of one another.
            shift = (index - (count - 1) / 2) * 0.5 / max(count, 1)
            columns: dict[str, Sequence[Any]] = {
                "x": [point.layer + shift for point in points],
                "layer": [point.layer for point in points],
                "norm": [point.norm for point in points],
                "name": [point.name for point in points],
                "state": [
                    "finite, above zero" if point.mark == "ok" else "dead: zero or not finite"
                    for point in points
                ],
                "size": [8 if point.mark == "ok" else 13 for point in points],
            }
            if kind in self.sources:
                sync(self.sources[kind], columns)
                continue
            source = self.sources[kind] = ColumnDataSource(columns)
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
            self.figure.add_tools(
                hover(
                    [dots], [("Tensor", "@name"), ("Gradient norm", "@norm{0.000e+0}"), ("State", "@state")]
                )
            )
            self.legend.items = [*self.legend.items, LegendItem(label=kind, renderers=[dots])]
