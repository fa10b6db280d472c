"""The URL of a page: which runs and tab it names, and what the shown tab adds (`?run=ID&tab=KEY&page=2`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

import panel as pn

if TYPE_CHECKING:
    from tritpress.dashboard.session import Session

OWN = ("run", "tab")
"""Keys of the query that belong to the page; all others are the shown tab's."""


class Routing:
    """Keeps the URL and what is shown the same, both ways."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.busy = False  # while the page itself changes what is shown: nothing is pushed or gone to

    def attach(self) -> None:
        """Show what the URL names and follow it (back and forward)."""
        location = pn.state.location
        self.go(_parse(location.search) if location is not None else {})
        if location is not None:
            location.param.watch(self._changed, "search")

    def go(self, query: Mapping[str, str]) -> None:
        """Show what `query` names."""
        session, busy = self.session, self.busy
        self.busy = True
        try:
            runs = tuple(part for part in query.get("run", "").split(",") if part)
            session.context.runs = runs
            first = runs[0] if runs else ""
            wanted = query.get("tab") or default_tab(bool(runs))
            keys = [tab.key for tab in session.tabs]
            session.shown_tabs.active = keys.index(wanted if wanted in keys else default_tab(bool(runs)))
            opened = session.feed.id if session.feed else session.context.missing
            if first != opened or (first and session.feed is None):  # a missing one may be there by now
                session.open(first, runs)
            tab = session.tab
            tab.go({key: value for key, value in query.items() if key not in OWN})
            session.refresh_list()
            session.refresh(everything=True)
        finally:
            self.busy = busy

    def open_run(self, run_id: str, tab: str | None, query: Mapping[str, str]) -> None:
        """Open a run (or several, "a,b") on the tab of that key or on the present one; the URL says so."""
        shown = self.session.tab.key
        key = tab or (shown if run_id and shown != "runs" else default_tab(bool(run_id)))
        found = {"run": run_id, "tab": key, **query}
        if tab is None and key == shown and not query:
            found |= self.session.tab.query()
        self.go(found)
        self.push()

    def url(self) -> dict[str, str]:
        """The query that names what is shown now."""
        session, tab = self.session, self.session.tab
        found: dict[str, str] = {}
        if session.context.runs and session.feed is not None:
            found["run"] = ",".join(session.context.runs)
        if tab.key != default_tab("run" in found):
            found["tab"] = tab.key
        return {**found, **{key: value for key, value in tab.query().items() if key not in OWN}}

    def push(self) -> None:
        """Put what is shown into the URL."""
        location = pn.state.location
        if location is None or self.busy:
            return
        found = self.url()
        self.busy = True
        try:
            location.search = f"?{urlencode(found, safe=',')}" if found else ""
        finally:
            self.busy = False

    def _changed(self, event: object) -> None:
        location = pn.state.location
        if self.busy or location is None:
            return
        query = _parse(location.search)
        if query != self.url():
            self.go(query)


def default_tab(run_open: bool) -> str:
    """The tab that a URL means when it names none."""
    return "overview" if run_open else "runs"


def _parse(search: str) -> dict[str, str]:
    pairs = parse_qsl(search.removeprefix("?"), keep_blank_values=True)
    runs = [value for key, value in pairs if key == "run"]  # run=A,B and run=A&run=B mean the same
    return {**dict(pairs), **({"run": ",".join(runs)} if runs else {})}
