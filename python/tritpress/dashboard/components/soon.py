"""Answering clicks and messages of a page's parts where charts may be changed."""

from __future__ import annotations

from collections.abc import Callable

import panel as pn


def soon(action: Callable[[], None]) -> None:
    """Do `action` next, holding the page's lock: messages and clicks come without it, and data of a chart
    cannot be changed then.
    """
    doc = pn.state.curdoc
    if doc is not None and doc.session_context is not None:
        doc.add_next_tick_callback(action)
    else:
        action()
