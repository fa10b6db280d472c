"""One tensor in pictures: histograms before and after, and its blocks before, after and their error."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource, LinearColorMapper, Range1d
from bokeh.models.annotations import ColorBar  # mypy does not find it in bokeh.models
from bokeh.models.formatters import CustomJSTickFormatter
from bokeh.palettes import Cividis256, PuOr11, interp_palette
from panel import Column, FlexBox

from tritpress.dashboard.components import twins
from tritpress.dashboard.components.charts import figure, hover, pane
from tritpress.dashboard.components.html import Fragment, Markup, join, panel
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.theme import OKABE_ITO
from tritpress.dashboard.views.diff import Bars, Picture, TensorView

DIVERGING = interp_palette(PuOr11[::-1], 255)
"""Orange below zero, purple above, for readers of any colour vision."""

PER_CENT = "return (tick * 100).toFixed(tick < 0.0995 ? 1 : 0) + ' %'"


class Histograms:
    """Weights before and after on one scale, one chart above the other."""

    def __init__(self) -> None:
        self.sources: dict[str, ColumnDataSource] = {}
        charts = []
        for key, title, colour in (
            ("before", "Weights before", OKABE_ITO[0]),
            ("after", "Weights after", OKABE_ITO[5]),
        ):
            source = self.sources[key] = ColumnDataSource({"left": [], "right": [], "top": []})
            made = figure(
                title,
                x_label="Weight / mean |weight| of its group",
                y_label="Share of weights",
                export_name=f"weights {key}",
                height=210,
                x_range=Range1d(start=-4, end=4),
            )
            made.y_range.start = 0  # type: ignore[attr-defined]
            made.yaxis.formatter = CustomJSTickFormatter(code=PER_CENT)
            bars: Any = made.quad(
                left="left", right="right", top="top", bottom=0, source=source,
                fill_color=colour, line_color=colour, line_width=0.5,
            )  # fmt: skip
            made.add_tools(
                hover([bars], [("From", "@left{0.00}"), ("To", "@right{0.00}"), ("Share", "@top{0.00 %}")])
            )
            charts.append(pane(made, title))
        self.twin = Fragment()
        self.column = Column(
            *charts,
            self.twin.pane,
            sizing_mode="stretch_width",
            styles={"flex": "2 1 420px", "min-width": "0"},
        )

    def show(self, bars: Bars) -> None:
        """Bring both up to date."""
        for key, source in self.sources.items():
            sync(source, {"left": bars.left, "right": bars.right, "top": getattr(bars, key)})
        edges = [*bars.left, *bars.right[-1:]]
        self.twin.set(
            twins.folded(
                "The weights as a table", [twins.histogram(edges, bars.before, bars.after, "weights")]
            )
        )


class BlockPictures:
    """Three images side by side; before and after share their colours."""

    def __init__(self) -> None:
        self.weights = LinearColorMapper(palette=DIVERGING, low=-1, high=1)
        self.errors = LinearColorMapper(palette=list(Cividis256), low=0, high=1)
        self.sources: dict[str, ColumnDataSource] = {}
        panes = []
        for key, title, mapper in (
            ("before", "Blocks before: mean weight", self.weights),
            ("after", "Blocks after: mean weight", self.weights),
            ("error", "Blocks: root mean square error", self.errors),
        ):
            source = self.sources[key] = ColumnDataSource({"image": [], "y": [], "dw": [], "dh": []})
            made = figure(
                title,
                x_label="Block of columns (inputs)",
                y_label="Block of rows (outputs)",
                export_name=f"blocks {key}",
                height=330,
                x_range=Range1d(start=0, end=64),
                y_range=Range1d(start=64, end=0),
            )
            made.min_border_right = 4
            image: Any = made.image(
                "image",
                x=0,
                y="y",
                dw="dw",
                dh="dh",
                source=source,
                color_mapper=mapper,  # type: ignore[call-arg]
            )
            made.add_layout(
                ColorBar(
                    color_mapper=mapper, width=10, padding=4, major_label_text_font_size="11px",
                    background_fill_alpha=0.0, title="Weight" if key != "error" else "Error",
                ),
                "right",
            )  # fmt: skip
            made.add_tools(
                hover([image], [("Block", "row $y{0.0}, column $x{0.0}"), ("Value", "@image{0.00000}")])
            )
            panes.append(pane(made, title))
            panes[-1].styles = {"flex": "1 1 300px", "min-width": "0", "max-width": "560px"}
        self.charts = [made.object for made in panes]
        self.words = Fragment()
        self.row = FlexBox(*panes, sizing_mode="stretch_width", gap="8px", align_items="start")
        self.column = Column(self.row, self.words.pane, sizing_mode="stretch_width", margin=(16, 0, 0, 0))

    def show(self, picture: Picture) -> None:
        """Bring the three up to date."""
        self.weights.update(low=-picture.limit, high=picture.limit)
        self.errors.update(high=picture.largest)
        height, width = picture.before.shape
        for made in self.charts:
            made.x_range.end, made.y_range.start = width, height
        for key, source in self.sources.items():
            source.data = {
                "image": [getattr(picture, key)],
                "y": [0],
                "dw": [width],
                "dh": [height],
            }
        self.words.set(_words(picture))


class TensorPictures:
    """All of one tensor, under the table."""

    def __init__(self) -> None:
        self.facts = Fragment()
        self.facts.pane.styles = {"flex": "1 1 320px", "min-width": "0"}
        self.histograms, self.blocks = Histograms(), BlockPictures()
        self.top = FlexBox(
            self.facts.pane,
            self.histograms.column,
            sizing_mode="stretch_width",
            gap="16px",
            align_items="start",
        )
        self.column = Column(
            self.top, self.blocks.column, sizing_mode="stretch_width", margin=(16, 0, 0, 0), visible=False
        )

    def show(self, view: TensorView) -> None:
        """Show that tensor."""
        rows = join(Markup("<dt>{}</dt><dd>{}</dd>").format(*fact) for fact in view.facts)
        self.facts.set(panel(view.name, Markup('<dl data-tensor="{}">{}</dl>').format(view.name, rows)))
        self.histograms.show(view.bars)
        self.blocks.show(view.picture)
        self.histograms.column.visible = self.blocks.column.visible = self.column.visible = True

    def say(self, markup: Markup | None) -> None:
        """Words in place of pictures; None shows nothing at all."""
        if markup is not None:
            self.facts.set(markup)
            self.histograms.column.visible = self.blocks.column.visible = False
        self.column.visible = markup is not None


def _words(picture: Picture) -> Markup:
    return Markup('<p class="soft small" data-blocks>{}</p>{}').format(
        " ".join(picture.words),
        twins.folded("These pictures as tables", (_table(key, picture) for key in picture.twins)),
    )


def _table(key: str, picture: Picture) -> Markup:
    title, cells = picture.twins[key]
    columns = len(cells[0]) if cells else 0
    return twins.table(
        f"{title} by parts of the tensor",
        ("Rows \\ columns", *(f"{n + 1}/{columns}" for n in range(columns))),
        [(f"{n + 1}/{len(cells)}", *row) for n, row in enumerate(cells)],
        f"blocks-{key}",
        f"data-blocks-{key}",
    )
