"""HTML that escapes by itself: pieces are `Markup`, and what is put into one is escaped unless it is one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import panel as pn
from markupsafe import Markup

from tritpress.dashboard.theme import STYLES

__all__ = ["MORPH", "Fragment", "Markup", "empty", "join", "note", "panel"]

MORPH = (Path(__file__).parent / "morph.js").read_text(encoding="utf-8")
"""JavaScript: `morph(place, html)` changes only what differs; the page writes every fragment so."""


def join(parts: Iterable[str], between: str = "") -> Markup:
    """The parts in a row, each escaped unless it is Markup."""
    return Markup(between).join(parts)


def panel(title: str, body: str, tools: str = "") -> Markup:
    """A bordered box with a heading; `tools` stand at the heading's right."""
    heading = Markup("<h2>{}</h2>").format(title)
    if tools:
        heading = Markup('<div class="with-button">{}{}</div>').format(heading, tools)
    return Markup('<section class="panel">{}{}</section>').format(heading, body)


def empty(title: str, text: str = "") -> Markup:
    """What stands where there is nothing to show yet, and why."""
    return Markup('<div class="empty"><b>{}</b>{}</div>').format(title, text)


def note(tone: str, text: str) -> Markup:
    """A sentence with a coloured edge."""
    return Markup('<div class="note {}" role="status"><span>{}</span></div>').format(tone, text)


class Html(pn.pane.HTML):
    """Panel's own, but of a new text the text alone is set: it would set and check every property again."""

    def _update(self, ref: str, model: Any) -> None:
        model.text = self._transform_object(self.object)["object"]


class Fragment:
    """A piece of the page: sent again only when it differs; the page then changes only what differs."""

    def __init__(self, markup: str = "", **params: object) -> None:
        self.pane = Html(str(markup), stylesheets=[STYLES], sizing_mode="stretch_width", margin=0, **params)

    def set(self, markup: Markup) -> None:
        """Show `markup`."""
        text = str(markup)
        if text != self.pane.object:
            self.pane.object = text
