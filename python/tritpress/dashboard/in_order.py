"""What changes on a page is sent in the order in which it changed, and all of it.

Panel writes changes at once, or a moment later while another message is being written; Bokeh sends those made
on its models directly at the end of a callback. One could overtake the other: the change of a new chart came
before the chart, and the browser, which knew of no such chart, threw away the whole message.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from bokeh.document import Document
from panel.io.document import (
    _WRITE_BLOCK,
    _WRITE_MSGS,
    _dispatch_msgs,
    _dispatch_write_task,
    schedule_write_events,
    write_events,
)
from tornado.websocket import WebSocketClosedError


def send_in_order(doc: Document) -> None:
    """From now on Bokeh's messages of a served document go the way of Panel's."""
    found: Any = getattr(doc.session_context, "session", None)
    if found is None:  # no browser is served
        return
    weak = weakref.ref(found)

    def patched(event: Any) -> None:
        session = weak()
        if session is None or session.destroyed:
            return
        if session._pending_writes is None:  # Panel tries again later, as with Bokeh's own
            raise RuntimeError("a document was changed without its lock")
        told = session._current_patch_connection if event.setter is session else None
        connections = [each for each in session._subscribed_connections if each is not told]
        if not connections:  # the browser's own change
            return
        doc = session.document
        later = doc in _WRITE_BLOCK or doc in _WRITE_MSGS or any(_writing(each) for each in connections)
        with contextlib.suppress(WebSocketClosedError):  # then nobody is there to be told
            (schedule_write_events if later else write_events)(doc, connections, [event])

    found._document_patched = patched


def send_waiting(doc: Document) -> None:
    """Send what Panel has kept and, where two of its tasks met, forgotten; to be called now and then."""
    if doc in _WRITE_MSGS and doc not in _WRITE_BLOCK:
        _WRITE_BLOCK[doc] = True
        _dispatch_write_task(doc, _dispatch_msgs, doc)


def _writing(connection: Any) -> bool:
    """Whether a message of several parts is half written."""
    lock = getattr(connection._socket, "write_lock", None)
    return lock is not None and lock._block._value == 0
