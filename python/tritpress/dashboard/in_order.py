"""What changes on a page is sent in the order in which it changed.

Panel writes changes at once, or a moment later while another message is being written; Bokeh sends those made
on its models directly at the end of a callback. One could overtake the other: the change of a new chart came
before the chart, and the browser, which knew of no such chart, threw away the whole message.
"""

from __future__ import annotations

from typing import Any

from bokeh.document import Document
from panel.io.document import _WRITE_BLOCK, _WRITE_MSGS, schedule_write_events, write_events


def send_in_order(doc: Document) -> None:
    """From now on Bokeh's messages of a served document go the way of Panel's."""
    context = doc.session_context
    session: Any = getattr(context, "session", None)
    if session is None:  # no browser is served
        return

    def patched(event: Any) -> None:
        told: Any = session._current_patch_connection if event.setter is session else None
        connections = [each for each in session._subscribed_connections if each is not told]
        if not connections:  # the browser's own change
            return
        later = doc in _WRITE_BLOCK or doc in _WRITE_MSGS or any(_writing(each) for each in connections)
        (schedule_write_events if later else write_events)(doc, connections, [event])

    session._document_patched = patched


def _writing(connection: Any) -> bool:
    """Whether a message of several parts is half written."""
    lock = getattr(connection._socket, "write_lock", None)
    return lock is not None and lock._block._value == 0
