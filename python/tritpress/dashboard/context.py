"""What a tab may ask of the page it stands in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tritpress.dashboard.store import RunStore

if TYPE_CHECKING:
    from tritpress.dashboard.session import Session


class PageContext:
    """Handed to every tab as the first argument of its constructor.

    `may_act` is False on a page that only shows: buttons that change state are off there and say `why_not`.
    All methods are to be called from the page's own callbacks (the server's loop), never from another thread.
    """

    def __init__(self, store: RunStore, may_act: bool = True, why_not: str = "") -> None:
        self.store = store
        self.may_act = may_act
        self.why_not = why_not
        self.runs: tuple[str, ...] = ()
        """Ids of the runs that the URL names; the first is the open one (the others may not exist)."""
        self.missing = ""
        """Id of the run that was asked for and is not there, or cannot be read."""
        self._session: Session | None = None

    def bind(self, session: Session) -> None:
        """The page that carries out what is asked here."""
        self._session = session

    @property
    def session(self) -> Session:
        assert self._session is not None, "a tab may ask nothing before its page stands"
        return self._session

    def navigate(self) -> None:
        """What a tab's `query()` gives has changed: put it into the URL."""
        self.session.routing.push()

    def open_run(self, run_id: str, tab: str | None = None, **query: str) -> None:
        """Open that run ("a,b" opens several; "" closes) on that tab, with the tab's own query."""
        self.session.routing.open_run(run_id, tab, query)

    def say(self, tone: str, text: str) -> None:
        """Say something to the reader; `tone` is neutral, live, good, warning or bad."""
        self.session.steering.say(tone, text)

    def start_run(
        self,
        model: str,
        config_values: Mapping[str, Any],
        name: str | None = None,
        then: Callable[[Any], None] | None = None,
    ) -> None:
        """Start a run in the background, as the Start button does; `then(run)` instead of opening it."""
        self.session.starting.start_run(model, config_values, name, then)

    def send(self, run_id: str, command: str, **args: Any) -> None:
        """Send a command to that run's worker; the page says what the worker answered."""
        self.session.steering.send(run_id, command, **args)

    def background(
        self, work: Callable[[], Any], then: Callable[[Any], None], meanwhile: str = "", what: str = ""
    ) -> None:
        """Do `work()` beside the server's loop, then `then(result)` on it. Errors are said, with `what`."""
        self.session.steering.background(work, then, meanwhile, what or "That did not work")
