"""Curves of several runs in one chart, each with its own colour, dash and name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import BasicTickFormatter, ColumnDataSource, DataRange1d, NumeralTickFormatter
from panel import FlexBox

from tritpress.dashboard.components.charts import figure, hover, legend, pane
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import OKABE_ITO
from tritpress.dashboard.views.compare import Overlay

DASHES: tuple[Any, ...] = ("solid", "dashed", "dotdash", "dotted", "dashdot", [14, 3, 2, 3, 2, 3])
MARKERS: tuple[Any, ...] = ("diamond", "circle", "square", "triangle", "inverted_triangle", "plus")


class OverlayCharts:
    """Made for a list of runs; `show` brings the curves up to date."""

    def __init__(self) -> None:
        self.row = FlexBox(sizing_mode="stretch_width", gap="12px", align_items="start")
        self.sources: dict[str, list[ColumnDataSource]] = {}
        self.made: tuple[Any, ...] = ()

    def show(self, names: Sequence[str], overlays: Sequence[Overlay]) -> None:
        """`names` are the runs' names in the order of the lines."""
        shown = [overlay for overlay in overlays if not overlay.empty]
        kind = (tuple(names), tuple((overlay.key, overlay.x_label, overlay.dots) for overlay in shown))
        if kind != self.made:
            self.made = kind
            self.row.objects = [self._chart(names, overlay) for overlay in shown]
        for overlay in shown:
            for source, (x, y) in zip(self.sources[overlay.key], overlay.lines):
                sync(source, {"x": x, "y": y})

    def _chart(self, names: Sequence[str], overlay: Overlay) -> Any:
        largest = max((abs(y) for _, ys in overlay.lines for y in ys if y == y), default=1.0)
        made = figure(
            overlay.title,
            x_label=overlay.x_label,
            y_label=overlay.y_label,
            export_name=f"compare {overlay.key}",
            height=320,
            zoom=True,
            y_range=DataRange1d(default_span=largest or 1.0),  # the height while all values are the same
        )
        made.xaxis.formatter = NumeralTickFormatter(format="0,0[.]0")
        made.yaxis.formatter = BasicTickFormatter(power_limit_low=-4, power_limit_high=6)
        items, lines = [], []
        self.sources[overlay.key] = []
        for place, name in enumerate(names):
            source = ColumnDataSource({"x": [], "y": []})
            self.sources[overlay.key].append(source)
            line: Any = made.line(
                "x", "y", source=source, name=name, line_width=2,
                line_color=OKABE_ITO[place], line_dash=DASHES[place],
            )  # fmt: skip
            lines.append(line)
            if overlay.dots:
                dot = {"size": 7, "marker": MARKERS[place], "color": OKABE_ITO[place]}
                lines.append(made.scatter("x", "y", source=source, name=name, **dot))
            items.append((name if len(name) < 40 else f"{name[:38]}…", [line]))
        added = legend(made, items)
        added.orientation = "vertical" if len(names) > 3 else "horizontal"
        y = "@y{0.000e+0}" if largest < 0.01 else "@y{0,0.[0000]}"
        rows = [("Run", "$name"), (overlay.x_label, "@x{0,0.[0]}"), (overlay.title, y)]
        made.add_tools(hover(lines, rows))
        part = pane(made, overlay.title)
        part.styles = {"flex": "1 1 420px", "min-width": "0"}
        return part
