"""What all charts have in common: size, type, title, axis labels, legend, and a name to export them by."""

from __future__ import annotations

from typing import Any

import panel as pn
from bokeh.models import BoxZoomTool, FactorRange, HoverTool
from bokeh.models.annotations import Legend, LegendItem, Title  # mypy does not find them in bokeh.models
from bokeh.plotting import figure as bokeh_figure

from tritpress.dashboard.theme import NEUTRAL

__all__ = ["factors", "figure", "hover", "legend", "pane", "title_of"]

ZOOM = "box_zoom,xpan,wheel_zoom,reset"
"""Tools of a chart that can be zoomed; wheel and pan wait until they are chosen, so that the page scrolls."""


def figure(
    title: str,
    *,
    x_label: str = "",
    y_label: str = "",
    export_name: str = "",
    height: int = 260,
    zoom: bool = False,
    **params: Any,
) -> bokeh_figure:
    """An empty chart that fills the width of its place.

    `export_name` is the chart's `name`: what its picture is called when it is saved. With `zoom` the reader
    can zoom and pan; a range once chosen so stays while data arrives, until Reset.
    """
    made = bokeh_figure(
        title=title,
        name=export_name or None,
        height=height,
        min_width=200,
        sizing_mode="stretch_width",
        tools=ZOOM if zoom else "",
        toolbar_location="right" if zoom else None,
        x_axis_label=x_label or None,
        y_axis_label=y_label or None,
        **params,
    )
    made.toolbar.logo = None
    if zoom:
        made.toolbar.active_scroll = None
        made.toolbar.active_drag = next(tool for tool in made.tools if isinstance(tool, BoxZoomTool))
        made.toolbar.autohide = True
    heading = title_of(made)
    heading.text_font_size = "14px"
    heading.text_font_style = "bold"
    made.min_border_right = 22  # a label at the axis' end stands half outside
    made.min_border_left = 12
    for axis in (*made.xaxis, *made.yaxis):
        axis.axis_label_text_font_size = "12px"
        axis.major_label_text_font_size = "12px"
        axis.axis_label_standoff = 8
        axis.axis_line_color = NEUTRAL
        axis.minor_tick_line_color = None
    made.output_backend = "canvas"
    return made


def title_of(made: bokeh_figure) -> Title:
    """The chart's title: bokeh makes an object of the string that it was given."""
    assert isinstance(made.title, Title)
    return made.title


def legend(made: bokeh_figure, items: list[tuple[str, list[Any]]] | None = None) -> Legend:
    """A legend in one line above the chart: (label, renderers) each."""
    added = Legend(
        location="center",
        orientation="horizontal",
        items=[LegendItem(label=label, renderers=renderers) for label, renderers in items or []],
        label_text_font_size="12px",
        margin=0,
        padding=4,  # type: ignore[arg-type]
        background_fill_alpha=0.0,
        border_line_color=None,
    )
    made.add_layout(added, "above")
    return added


def hover(renderers: list[Any], rows: list[tuple[str, str]], **params: Any) -> HoverTool:
    """A tooltip; bokeh escapes the values that it puts in."""
    return HoverTool(renderers=renderers, tooltips=rows, **params)


def pane(made: bokeh_figure, name: str) -> pn.pane.Bokeh:
    """The chart as a part of the page. Panel gives its own name on to the chart: the one to export it by."""
    return pn.pane.Bokeh(made, sizing_mode="stretch_width", margin=0, name=made.name or name)


def factors(values: list[str]) -> FactorRange:
    """A range of names."""
    return FactorRange(factors=values, range_padding=0.0)
