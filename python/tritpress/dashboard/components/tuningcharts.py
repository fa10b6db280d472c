"""Three charts over the threshold: zeros, error, perplexity; now and the chosen setting are marked."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource
from bokeh.models.formatters import CustomJSTickFormatter
from panel import FlexBox

from tritpress.dashboard.components.charts import figure, hover, legend, pane
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import OKABE_ITO
from tritpress.dashboard.views.tuning import Charts

PER_CENT = "return (tick * 100).toFixed(tick < 0.0995 && tick > 0 ? 1 : 0) + ' %'"

TITLES = {
    "zeros": ("Zero codes", "Share of codes", "@zeros{0.0 %}"),
    "error": ("Relative error", "Squared error / squared norm", "@error{0.00 %}"),
    "perplexity": ("Predicted perplexity", "Perplexity, log scale", "@perplexity{0.00}"),
}


class TuningCharts:
    """The curves of what is chosen; a circle is now, a diamond the setting."""

    def __init__(self) -> None:
        keys = ("threshold", *TITLES)
        self.curve = ColumnDataSource({key: [] for key in keys})
        self.now = ColumnDataSource({key: [] for key in keys})
        self.chosen = ColumnDataSource({key: [] for key in keys})
        self.panes = {}
        for key, (title, label, shown) in TITLES.items():
            made = figure(
                title,
                x_label="Threshold / mean |weight| of the group",
                y_label=label,
                export_name=f"tuning {key}",
                height=280,
                **({"y_axis_type": "log"} if key == "perplexity" else {}),  # type: ignore[arg-type]
            )
            if key != "perplexity":
                made.yaxis.formatter = CustomJSTickFormatter(code=PER_CENT)
            line: Any = made.line("threshold", key, source=self.curve, line_color=OKABE_ITO[0], line_width=2)
            now: Any = made.scatter(
                "threshold", key, source=self.now, size=12, marker="circle",
                fill_color=OKABE_ITO[0], line_color="white",
            )  # fmt: skip
            chosen: Any = made.scatter(
                "threshold", key, source=self.chosen, size=15, marker="diamond",
                fill_color=OKABE_ITO[5], line_color="white",
            )  # fmt: skip
            legend(made, [("Foretold", [line]), ("Now", [now]), ("Chosen", [chosen])])
            rows = [("Threshold", "@threshold{0.00}"), (title, shown)]
            made.add_tools(hover([line], rows, mode="vline"), hover([now, chosen], rows))
            self.panes[key] = pane(made, title)
            self.panes[key].styles = {"flex": "1 1 320px", "min-width": "0"}
        self.row = FlexBox(
            *self.panes.values(), sizing_mode="stretch_width", gap="12px", align_items="start", visible=False
        )

    def show(self, charts: Charts) -> None:
        """Bring them up to date."""
        nothing = [float("nan")] * len(charts.thresholds)
        sync(
            self.curve,
            {
                "threshold": charts.thresholds,
                "zeros": charts.zeros,
                "error": charts.error,
                "perplexity": charts.perplexity or nothing,
            },
        )
        for source, mark in ((self.now, charts.now), (self.chosen, charts.chosen)):
            sync(
                source,
                {
                    "threshold": [mark.threshold] if mark else [],
                    "zeros": [mark.zeros] if mark else [],
                    "error": [mark.error] if mark else [],
                    "perplexity": [mark.perplexity] if mark else [],
                },
            )
        foretold = charts.perplexity is not None
        if self.panes["perplexity"].visible != foretold:
            self.panes["perplexity"].visible = foretold
        if not self.row.visible:
            self.row.visible = True

    def hide(self) -> None:
        """There is nothing to show."""
        if self.row.visible:
            self.row.visible = False
