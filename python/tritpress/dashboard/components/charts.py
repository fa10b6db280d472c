"""What all charts have in common: size, tools, type."""

from __future__ import annotations

from typing import Any

import panel as pn
from bokeh.models import FactorRange, HoverTool
from bokeh.models.annotations import Title
from bokeh.plotting import figure

from tritpress.dashboard.theme import NEUTRAL

__all__ = ["chart", "factors", "hover", "pane", "title_of"]


def chart(title: str, height: int, **params: Any) -> figure:
    """An empty chart that fills the width of its place."""
    made = figure(
        title=title,
        height=height,
        min_width=200,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        **params,
    )
    made.toolbar.logo = None
    heading = title_of(made)
    heading.text_font_size = "14px"
    heading.text_font_style = "bold"
    made.min_border_right = 12
    made.min_border_left = 12
    for axis in (*made.xaxis, *made.yaxis):
        axis.axis_label_text_font_size = "12px"
        axis.major_label_text_font_size = "12px"
        axis.axis_label_standoff = 8
        axis.axis_line_color = NEUTRAL
        axis.minor_tick_line_color = None
    made.output_backend = "canvas"
    return made


def title_of(made: figure) -> Title:
    """The chart's title: bokeh makes an object of the string that it was given."""
    assert isinstance(made.title, Title)
    return made.title


def hover(renderers: list[Any], rows: list[tuple[str, str]], **params: Any) -> HoverTool:
    """A tooltip; bokeh escapes the values that it puts in."""
    return HoverTool(renderers=renderers, tooltips=rows, **params)


def pane(made: figure, name: str) -> pn.pane.Bokeh:
    """The chart as a part of the page."""
    return pn.pane.Bokeh(made, sizing_mode="stretch_width", margin=0, name=name)


def factors(values: list[str]) -> FactorRange:
    """A range of names."""
    return FactorRange(factors=values, range_padding=0.0)
