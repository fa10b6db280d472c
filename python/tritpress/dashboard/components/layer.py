"""The view of one tensor: its figures beside two histograms of its weights."""

from __future__ import annotations

from bokeh.models import ColumnDataSource, CustomJSTickFormatter, DataRange1d
from panel import Column, FlexBox

from tritpress.dashboard.components.charts import chart, hover, pane
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import NEUTRAL, OKABE_ITO
from tritpress.dashboard.views.layer import LayerView

PER_CENT = "return (tick * 100).toFixed(tick < 0.095 ? 1 : 0) + ' %'"


class LayerPanel:
    """Shows a tensor below the grid; empty until a cell is clicked."""

    def __init__(self) -> None:
        self.facts = Fragment()
        self.facts.pane.styles = {"flex": "1 1 320px", "min-width": "0"}
        self.before = ColumnDataSource({"left": [], "right": [], "top": []})
        self.after = ColumnDataSource({"left": [], "right": [], "top": []})
        charts = []
        for source, title, colour in (
            (self.before, "Weights before", NEUTRAL),
            (self.after, "Weights after", OKABE_ITO[0]),
        ):
            made = chart(title, 190, x_range=(-4, 4))
            assert isinstance(made.y_range, DataRange1d)
            made.y_range.start = 0
            made.yaxis.formatter = CustomJSTickFormatter(code=PER_CENT)
            made.yaxis.axis_label = "Share"
            made.xaxis.axis_label = "Weight / mean |weight| of its group"
            bars = made.quad(
                left="left",
                right="right",
                top="top",
                bottom=0,
                source=source,
                fill_color=colour,
                line_color=None,
            )
            made.add_tools(
                hover([bars], [("From", "@left{0.00}"), ("To", "@right{0.00}"), ("Share", "@top{0.00 %}")])
            )
            charts.append(pane(made, title))
        self.charts = Column(
            *charts, sizing_mode="stretch_width", styles={"flex": "2 1 420px", "min-width": "0"}
        )
        self.row = FlexBox(
            self.facts.pane,
            self.charts,
            sizing_mode="stretch_width",
            gap="16px",
            align_items="start",
            margin=(16, 0, 0, 0),
            visible=False,
        )

    def hide(self) -> None:
        """Nothing is chosen."""
        if self.row.visible:
            self.row.visible = False

    def missing(self, name: str) -> None:
        """The tensor is not pressed yet."""
        self.facts.set(
            panel(name, empty("Not pressed yet", "Its figures stand here when its turn has come."))
        )
        self.charts.visible = False
        self.row.visible = True

    def show(self, view: LayerView) -> None:
        """Show that tensor."""
        rows = join(Markup("<dt>{}</dt><dd>{}</dd>").format(fact.name, fact.value) for fact in view.facts)
        self.facts.set(panel(view.name, Markup("<dl data-layer>{}</dl>").format(rows)))
        histogram = view.histogram
        self.charts.visible = histogram is not None
        if histogram is not None:
            edges = {"left": list(histogram.edges[:-1]), "right": list(histogram.edges[1:])}
            sync(self.before, {**edges, "top": list(histogram.before)})
            sync(self.after, {**edges, "top": list(histogram.after)})
        self.row.visible = True
