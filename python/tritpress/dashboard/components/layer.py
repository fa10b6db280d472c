"""The view of one tensor: what was chosen and why, its figures, its weights before and after, its scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import panel_material_ui as pmui
import param
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, DataRange1d, FixedTicker, Range1d
from bokeh.models.annotations import Span  # mypy does not find it in bokeh.models
from panel import Column, FlexBox, Row
from panel.custom import JSComponent

from tritpress.dashboard.components import twins
from tritpress.dashboard.components.charts import figure, hover, pane, title_of
from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import CURRENT, NEUTRAL, OKABE_ITO
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.layer import Histogram, LayerView, Scales

PER_CENT = "return (tick * 100).toFixed(tick < 0.095 ? 1 : 0) + ' %'"


class Anchor(JSComponent):
    """Scrolls to where it stands, when `asked` moves and that place is low on the screen or below it."""

    asked = param.Integer(default=0)

    _esm = """
    export function render({ model }) {
      const mark = document.createElement("span")
      model.on("asked", () => setTimeout(() => {
        if (mark.getBoundingClientRect().top < window.innerHeight * 0.6) return
        const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches
        mark.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" })
      }, 60))
      return mark
    }
    """


class LayerPanel:
    """Shows a tensor below the grid; empty until a cell is opened."""

    def __init__(self) -> None:
        self.head, self.facts, self.twin, self.sample = Fragment(), Fragment(), Fragment(), Fragment()
        self.name = ""
        self.quiet = False
        self.chosen: Callable[[str], None] = lambda name: None
        self.close = pmui.Button(
            label="Close", variant="text", size="small", margin=0, on_click=lambda _: self.chosen("")
        )
        self.siblings = pmui.Select(
            label="Tensor of this cell", options=[], size="small", margin=(0, 0, 8, 0), visible=False
        )
        self.siblings.param.watch(self._sibling, "value")
        self._build_charts()
        left = Column(
            self.siblings,
            self.facts.pane,
            sizing_mode="stretch_width",
            margin=0,
            styles={"flex": "1 1 340px", "min-width": "0"},
        )
        self.body = FlexBox(left, self.charts, sizing_mode="stretch_width", gap="16px", align_items="start")
        self.anchor = Anchor(height=0, margin=0)
        self.row = Column(
            self.anchor,
            Row(self.head.pane, self.close, sizing_mode="stretch_width", align="center", margin=0),
            self.body,
            sizing_mode="stretch_width",
            margin=(20, 0, 0, 0),
            visible=False,
        )

    def _build_charts(self) -> None:
        self.before = ColumnDataSource({"left": [], "right": [], "top": []}, name="weights before")
        self.after = ColumnDataSource({"left": [], "right": [], "top": []}, name="weights after")
        self.scales = ColumnDataSource({"left": [], "right": [], "top": [], "from": [], "to": []})
        self.histograms = [
            _histogram(source, title, colour, name)
            for source, title, colour, name in (
                (self.before, "Weights before", NEUTRAL, "weights-before"),
                (self.after, "Weights after", OKABE_ITO[0], "weights-after"),
            )
        ]
        self.lines = [
            Span(location=0, dimension="height", line_color=CURRENT, line_width=2, line_dash="dashed")
            for _ in range(4)
        ]
        for number, line in enumerate(self.lines):
            self.histograms[number // 2].add_layout(line)
        self.scale_axis = FixedTicker(ticks=[])
        made = figure(
            "Scales",
            export_name="scales",
            x_label="Scale (evenly spaced in its logarithm)",
            y_label="Share",
            height=190,
            x_range=Range1d(start=0, end=1),
        )
        assert isinstance(made.y_range, DataRange1d)
        made.y_range.start = 0
        made.yaxis.formatter = CustomJSTickFormatter(code=PER_CENT)
        made.xaxis.ticker = self.scale_axis
        bars = made.quad(
            left="left",
            right="right",
            top="top",
            bottom=0,
            source=self.scales,
            fill_color=OKABE_ITO[2],
            line_color=None,
        )
        made.add_tools(hover([bars], [("From", "@from"), ("To", "@to"), ("Share", "@top{0.00 %}")]))
        self.scale_figure = made
        self.scale_pane = pane(made, "scales")
        self.histogram_panes = [pane(made, str(made.name)) for made in self.histograms]
        self.charts = Column(
            *self.histogram_panes,
            self.scale_pane,
            self.sample.pane,
            self.twin.pane,
            sizing_mode="stretch_width",
            styles={"flex": "2 1 420px", "min-width": "0"},
        )

    def hide(self) -> None:
        """Nothing is chosen."""
        self.name = ""
        if self.row.visible:
            self.row.visible = False

    def open(self, name: str, names: tuple[str, ...], place: str) -> None:
        """A tensor was chosen, one of its cell's; its figures follow."""
        self.name = name
        self.quiet = True
        self.siblings.visible = len(names) > 1
        if list(self.siblings.options) != list(names):
            self.siblings.options = list(names)
        self.siblings.value = name
        self.quiet = False
        self._head(name, place)
        self.row.visible = True

    def reveal(self) -> None:
        """Bring the view into sight."""
        self.anchor.asked += 1

    def say(self, title: str, text: str) -> None:
        """There are no figures, and why."""
        self.facts.set(empty(title, text))
        self.charts.visible = False

    def show(self, view: LayerView) -> None:
        """Show that tensor."""
        self._head(view.name, view.place)
        rows = join(Markup("<dt>{}</dt><dd>{}</dd>").format(fact.name, fact.value) for fact in view.facts)
        why = join(Markup('<p style="margin-bottom:7px">{}</p>').format(sentence) for sentence in view.why)
        missing = Markup('<p class="soft small" data-missing style="margin-top:10px">{}</p>').format(
            view.missing
        )
        self.facts.set(
            panel("Chosen, and why", Markup('<div class="why" data-why>{}</div>').format(why))
            + Markup('<div style="height:12px"></div>')
            + panel(
                "Figures",
                Markup("<dl data-layer>{}</dl>{}").format(rows, missing if view.missing else Markup("")),
            )
        )
        histogram, scales = view.histogram, view.scales
        for shown in self.histogram_panes:
            shown.visible = histogram is not None
        self.scale_pane.visible = scales is not None
        if histogram is not None:
            self._show_histogram(histogram, view)
        if scales is not None:
            self._show_scales(scales)
        self.twin.set(_twin(view))
        self.charts.visible = histogram is not None or scales is not None

    def _show_histogram(self, histogram: Histogram, view: LayerView) -> None:
        edges = {"left": list(histogram.edges[:-1]), "right": list(histogram.edges[1:])}
        sync(self.before, {**edges, "top": list(histogram.before)})
        sync(self.after, {**edges, "top": list(histogram.after)})
        for number, line in enumerate(self.lines):
            line.visible = bool(view.thresholds)
            if view.thresholds:
                line.location = view.thresholds[number % 2]
        words = f" ({view.threshold_words})" if view.thresholds else ""
        title_of(self.histograms[0]).text = f"Weights before{words}"
        title_of(self.histograms[1]).text = f"Weights after{words}"
        self.sample.set(Markup('<p class="soft small" data-sample>Of {}.</p>').format(histogram.sample))

    def _show_scales(self, scales: Scales) -> None:
        count = len(scales.shares)
        names = [fig.significant(edge) for edge in scales.edges]
        columns: dict[str, Sequence[Any]] = {
            "left": list(range(count)),
            "right": list(range(1, count + 1)),
            "top": list(scales.shares),
            "from": names[:-1],
            "to": names[1:],
        }
        sync(self.scales, columns)
        ticks = [count * part // 4 for part in range(5)]
        self.scale_figure.x_range.end = count  # type: ignore[attr-defined]
        self.scale_axis.ticks = ticks
        self.scale_figure.xaxis[0].major_label_overrides = {tick: names[tick] for tick in ticks}
        medians = ", ".join(plane[2] for plane in scales.planes)
        median = "median" if len(scales.planes) == 1 else "medians"
        words = f"Scales of {fig.plural(len(scales.planes), 'plane')} ({median} {medians})"
        title_of(self.scale_figure).text = words

    def _head(self, name: str, place: str) -> None:
        self.head.set(
            Markup(
                '<h2 class="break" data-tensor style="margin:0">{} <span class="soft">{}</span></h2>'
            ).format(name, place)
        )

    def _sibling(self, event: Any) -> None:
        if not self.quiet and event.new:
            self.chosen(str(event.new))


def _histogram(source: ColumnDataSource, title: str, colour: str, export_name: str) -> Any:
    made = figure(
        title,
        export_name=export_name,
        x_label="Weight / mean |weight| of its group",
        y_label="Share",
        height=190,
        x_range=(-4, 4),
    )
    assert isinstance(made.y_range, DataRange1d)
    made.y_range.start = 0
    made.yaxis.formatter = CustomJSTickFormatter(code=PER_CENT)
    bars = made.quad(
        left="left", right="right", top="top", bottom=0, source=source, fill_color=colour, line_color=None
    )
    made.add_tools(
        hover([bars], [("From", "@left{0.00}"), ("To", "@right{0.00}"), ("Share", "@top{0.00 %}")])
    )
    return made


def _twin(view: LayerView) -> Markup:
    """Both histograms in bins of a half, and the scales by plane, as tables."""
    parts = []
    if view.histogram is not None:
        shown = view.histogram
        parts.append(twins.histogram(shown.edges, shown.before, shown.after, f"{view.name}-histograms"))
    if view.scales is not None:
        head = ("Plane", "Least", "Median", "Largest")
        parts.append(
            twins.table("Scales", head, view.scales.planes, f"{view.name}-scales", mark="data-scales")
        )
    return twins.folded("These charts as tables", parts)
