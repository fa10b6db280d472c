"""Messages to a browser come in the order of the changes, whether Panel or Bokeh sends them."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

from bokeh.document import Document
from bokeh.models import Column, Div
from bokeh.protocol import Protocol
from bokeh.server.connection import ServerConnection
from bokeh.server.session import ServerSession
from panel.io.document import unlocked
from panel.io.state import set_curdoc, state
from tornado import locks
from tornado.websocket import WebSocketHandler
from tritpress.dashboard.in_order import send_in_order


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


def changes_of(sent: list[str]) -> list[tuple[str, str]]:
    """(model, property) of every change that was sent."""
    contents = [json.loads(part) for part in sent]
    return [
        (event["model"]["id"], event["attr"])
        for content in contents
        for event in content.get("events", [])
        if event["kind"] == "ModelChanged"
    ]


async def order(in_order: bool, busy: bool, direct_first: bool) -> tuple[list[tuple[str, str]], Div]:
    """A chart is put on a page by Panel's way and changed by Bokeh's (or the other way round)."""
    doc, root, chart = Document(), Column(children=[]), Div(text="a chart")
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
    held = session.with_document_locked(change)
    task = asyncio.ensure_future(held)
    await asyncio.sleep(0.02)
    if writing is not None:
        writing.__exit__(None, None, None)
    await task
    await asyncio.sleep(0.05)
    return [each for each in changes_of(socket.sent) if each[1] in ("children", "text")], chart


def test_a_change_does_not_overtake_what_it_changes() -> None:
    async def run() -> None:
        for busy in (False, True):
            for direct_first in (False, True):
                sent, chart = await order(True, busy, direct_first)
                assert [attr for _, attr in sent] == ["children", "text"], (busy, direct_first)
                assert sent[1][0] == chart.id

    asyncio.run(run())


def test_it_would_overtake_without() -> None:
    """What this guards against is still there: when this fails `in_order` may have become needless."""

    async def run() -> list[list[str]]:
        found = [await order(False, busy, first) for busy in (False, True) for first in (False, True)]
        return [[attr for _, attr in sent] for sent, _ in found]

    assert ["text", "children"] in asyncio.run(run())
