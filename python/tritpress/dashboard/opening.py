"""How a page opens fast.

Its head and what it is about go out before its session is made, so that the browser takes in the scripts
meanwhile; and one session is kept ready, built while nobody waits, that the next page takes over.
"""

from __future__ import annotations

import asyncio
import html
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from bokeh.server.contexts import ApplicationContext
from bokeh.server.session import ServerSession
from bokeh.util.token import generate_jwt_token, generate_session_id
from panel.io.server import DocHandler, RequestProxy
from panel.io.state import set_curdoc, state
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.iostream import StreamClosedError

from tritpress.dashboard.routing import default_tab
from tritpress.dashboard.shell import shell
from tritpress.dashboard.store import Feed, RunStore

if TYPE_CHECKING:
    from tritpress.dashboard.session import Session

log = logging.getLogger(__name__)

MARKS = ("<!--opening-->", "<!--scripts-->", "<!--opened-->")
"""In the page's template: before the shell, before the scripts, after them."""

READY_AFTER = 2.5
"""Seconds without a new page until the next one is built: building holds the server for half a second."""

PATIENCE = 60.0
"""Seconds that a browser may take to connect to the session of the page it was sent; Bokeh gives it 15."""

APPEARANCE = "tritpress-appearance"
"""The cookie that says whether the page is to be `dark`."""

building: ContextVar[list[Session] | None] = ContextVar("building", default=None)
"""While a page is built that nobody asked for: where it puts itself."""


class Spare:
    """The page that is kept ready."""

    def __init__(self) -> None:
        self.made: tuple[ServerSession, Session] | None = None
        self.made_for = self.wanted = ""  # the appearance: of the page that is ready, of the last one shown
        self.context: ApplicationContext | None = None
        self.application: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def later(self, seconds: float) -> None:
        """Build one in so many seconds if there is none then; a later call takes the place of an earlier."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_event_loop()
        self._timer = loop.call_later(seconds, lambda: loop.create_task(self._build()))

    async def _build(self) -> None:
        self._timer = None
        if self.made is not None or self.context is None:
            return
        app, pages = self.application, []  # type: ignore[var-annotated]
        session_id = generate_session_id(secret_key=app.secret_key, signed=app.sign_sessions)
        self.made_for = self.wanted
        headers = HTTPHeaders({"Host": "localhost", "Cookie": f"{APPEARANCE}={self.made_for}"})
        line = RequestStartLine("GET", str(self.context._url), "HTTP/1.1")
        request = HTTPServerRequest(start_line=line, headers=headers)
        mark = building.set(pages)
        try:
            session = await self.context.create_session_if_needed(session_id, request)
        except Exception:
            log.exception("no page could be built ahead")
            return
        finally:
            building.reset(mark)
        if pages:
            session.block_expiration()
            self.made = session, pages[0]

    def take(self, handler: Opening) -> ServerSession | None:
        """The ready page, told who asks for it; None when there is none."""
        if self.made is None:
            return None
        session, page = self.made
        self.made = None
        session.unblock_expiration()
        if self.made_for != self.wanted or "theme" in handler.request.query_arguments:
            return None  # it looks otherwise: the server lets it go soon
        app, context = handler.application, session.document.session_context
        payload = handler._generate_token_payload()
        token = generate_jwt_token(
            session.id,
            secret_key=app.secret_key,
            signed=app.sign_sessions,
            expiration=app.session_token_expiration,
            extra_payload=dict(payload),
        )
        assert context is not None
        session._token = context._token = token  # type: ignore[attr-defined]
        context._request = RequestProxy(  # type: ignore[attr-defined]
            handler.request,
            arguments=payload["arguments"],
            cookies=payload["cookies"],
            headers=payload["headers"],
        )
        session._last_unsubscribe_time = _now()
        with set_curdoc(session.document):
            query = handler.request.query
            assert state.location is not None
            state.location.search = f"?{query}" if query else ""
            page.enter()
        return session


class Opening(DocHandler):
    """Answers with the page in three parts: head and shell, scripts, and what depends on its session."""

    store: RunStore
    spare: Spare
    known: ClassVar[dict[str, tuple[str, str]]] = {}
    """Head and scripts of the last page by its appearance: all pages have the same."""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        spare = self.spare
        self.appearance = "dark" if self.get_cookie(APPEARANCE) == "dark" else ""
        spare.wanted = self.appearance
        self.sent = self.known.get(self.appearance)
        feed, self.shown = self._shell()
        try:
            if self.sent is not None:
                self.set_header("Content-Type", "text/html; charset=UTF-8")
                self.set_header("Cache-Control", "no-store")
                super().write(self.sent[0] + self.shown)
                await self.flush()
                super().write(self.sent[1])
                await self.flush()
                if spare.made is None:
                    # Building holds the loop: what the head asks for goes out first.
                    await asyncio.sleep(0.08)
            await super().get(*args, **kwargs)  # type: ignore[misc]
        except StreamClosedError:
            return  # nobody waits any more
        except Exception:
            if self.sent is None:
                raise
            log.exception("the page could not be built")
            super().write(FAILED)
        finally:
            if feed is not None:
                self.store.close(feed)
        spare.later(READY_AFTER)

    async def get_session(self) -> ServerSession:  # type: ignore[override]
        session = self.spare.take(self) or await super().get_session()  # type: ignore[misc]
        keep_until_ready(session)
        return session

    def write(self, chunk: Any) -> None:
        places = [chunk.find(mark) for mark in MARKS] if isinstance(chunk, str) else [-1]
        if -1 in places:
            super().write(chunk)
            return
        opening, scripts, opened = places
        known = chunk[:opening], chunk[scripts:opened]
        if self.sent is None:
            self.set_header("Content-Type", "text/html; charset=UTF-8")
            super().write(known[0] + self.shown + known[1] + chunk[opened:])
        else:
            super().write(chunk[opened:])
        self.known[self.appearance] = known

    def _shell(self) -> tuple[Feed | None, str]:
        """What is shown first, and the run that is read for it."""
        run = self.get_query_argument("run", "").partition(",")[0]
        feed = self.store.open(run) if run else None
        tab = self.get_query_argument("tab", default_tab(feed is not None))
        dark = self.appearance == "dark"
        try:
            return feed, str(shell(feed, tab, self.store.runs, dark))
        except Exception:  # the page itself may still open
            log.exception("what is shown of %s first could not be made", run or "the runs")
            return feed, str(shell(None, tab, [], dark))


def keep_until_ready(session: ServerSession) -> None:
    """Keep a page's session until its browser has connected to it, as long as that may take."""
    session.block_expiration()
    kept = True

    def let_go(event: object) -> None:
        nonlocal kept
        if kept:
            kept = False
            timer.cancel()
            session.unblock_expiration()

    timer = asyncio.get_event_loop().call_later(PATIENCE, let_go, None)
    session.document.on_event("document_ready", let_go)


FAILED = """<script>
  const place = document.getElementById("opening").shadowRoot.querySelector("[data-opening]")
  place.textContent = {!r}
</script></body></html>""".format(html.escape("This page could not be built: the server's output says why."))


def install(server: Any, store: RunStore) -> None:
    """Let `server` open its pages so."""
    spare = Spare()
    handler = type("Opening", (Opening,), {"store": store, "spare": spare, "known": {}})
    for rule in server._tornado.wildcard_router.rules:
        if rule.target is DocHandler:
            rule.target = handler
            spare.context = rule.target_kwargs["application_context"]
    spare.application = server._tornado
    server.io_loop.add_callback(spare.later, 0.2)


def _now() -> float:
    from bokeh.server.session import current_time

    return float(current_time())
