"""Messages to a browser come in the order of the changes, whether Panel or Bokeh sends them."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from bokeh.document import Document
from bokeh.document.events import ModelChangedEvent
from bokeh.models import Column, Div
from bokeh.protocol import Protocol
from bokeh.server.connection import ServerConnection
from bokeh.server.session import ServerSession
from panel.io.document import _WRITE_BLOCK, unlocked
from panel.io.state import set_curdoc, state
from tornado import locks
from tornado.websocket import WebSocketClosedError, WebSocketHandler
from tritpress.dashboard.in_order import send_in_order, send_waiting


class Socket(WebSocketHandler):
    """Of a browser that is never there: keeps what it is sent."""

    def __init__(self) -> None:
        self.write_lock = locks.Lock()
        self.sent: list[str] = []
        self.ws_connection = self  # type: ignore[assignment]

    def is_closing(self) -> bool:
        return False

    def write_message(self, message: Any, binary: bool = False) -> Any:
        self.sent.append(message)
        done: asyncio.Future[None] = asyncio.get_event_loop().create_future()
        done.set_result(None)
        return done

    async def send_message(self, message: Any) -> None:
        with await self.write_lock.acquire():
            for part in (message.header_json, message.metadata_json, message.content_json):
                self.write_message(part)


def changes_of(sent: list[str]) -> list[str]:
    """The property of every change that was sent."""
    contents = [json.loads(part) for part in sent]
    return [
        event["attr"]
        for content in contents
        for event in content.get("events", [])
        if event["kind"] == "ModelChanged"
    ]


def served(in_order: bool) -> tuple[Document, Column, ServerSession, Socket]:
    """A page with an empty column, and what its browser is sent."""
    doc, root = Document(), Column(children=[])
    doc.add_root(root)
    session = ServerSession("one", doc)  # type: ignore[arg-type]
    doc._session_context = lambda: SimpleNamespace(session=session, id="one")  # type: ignore[assignment,return-value]
    socket = Socket()
    ServerConnection(Protocol(), socket, None, session)  # type: ignore[arg-type]
    state._loaded[doc] = True
    state._connected[doc] = True
    state._thread_id_[doc] = threading.get_ident()
    if in_order:
        send_in_order(doc)
    return doc, root, session, socket


async def order(in_order: bool, busy: bool, direct_first: bool) -> list[str]:
    """A chart is put on a page by Panel's way and changed by Bokeh's, or the other way round."""
    doc, root, session, socket = served(in_order)
    chart = Div(text="a chart")

    def change() -> None:
        with set_curdoc(doc):
            if direct_first:
                root.children = [chart]
                with unlocked():
                    chart.text = "changed"
            else:
                with unlocked():
                    root.children = [chart]
                chart.text = "changed"

    writing = await socket.write_lock.acquire() if busy else None
    task = asyncio.ensure_future(session.with_document_locked(change))
    await asyncio.sleep(0.02)
    if writing is not None:
        writing.__exit__(None, None, None)
    await task
    return await sent(socket, 2)


async def sent(socket: Socket, count: int) -> list[str]:
    """The changes that were sent, once there are so many."""
    until = asyncio.get_running_loop().time() + 10
    while len(changes_of(socket.sent)) < count and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.01)
    return changes_of(socket.sent)


def test_a_change_does_not_overtake_what_it_changes() -> None:
    async def run() -> None:
        for busy in (False, True):
            for first in (False, True):
                assert await order(True, busy, first) == ["children", "text"], (busy, first)

    asyncio.run(run())


def test_it_would_overtake_without() -> None:
    """What this guards against is still there: when this fails `in_order` may have become needless."""

    async def run() -> list[list[str]]:
        return [await order(False, busy, first) for busy in (False, True) for first in (False, True)]

    assert ["text", "children"] in asyncio.run(run())


def test_what_was_kept_and_forgotten_is_sent() -> None:
    async def run() -> None:
        doc, root, session, socket = served(True)
        writing = await socket.write_lock.acquire()
        await session.with_document_locked(lambda: setattr(root, "children", [Div(text="a chart")]))
        _WRITE_BLOCK.pop(doc)  # as another of Panel's tasks does at its end
        writing.__exit__(None, None, None)
        await asyncio.sleep(0.05)
        assert changes_of(socket.sent) == []
        send_waiting(doc)
        assert await sent(socket, 1) == ["children"]
        send_waiting(doc)
        await asyncio.sleep(0.05)
        assert changes_of(socket.sent) == ["children"]

    asyncio.run(run())


def test_a_browser_that_is_gone_breaks_nothing_and_the_lock_is_asked_for() -> None:
    async def run() -> None:
        doc, root, session, socket = served(True)
        with pytest.raises(RuntimeError, match="lock"):
            session._document_patched(ModelChangedEvent(doc, root, "children", []))

        def gone(message: Any, binary: bool = False) -> Any:
            raise WebSocketClosedError

        socket.write_message = gone  # type: ignore[method-assign]
        await session.with_document_locked(lambda: setattr(root, "children", [Div(text="a chart")]))

    asyncio.run(run())
