"""Starting runs: at once, or, when others are at work, in the queue or beside them by choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritpress.dashboard import webhooks
from tritpress.dashboard.components.dialogs import Question
from tritpress.dashboard.components.html import Markup, join
from tritpress.dashboard.folders import refused
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.form import config_of
from tritpress.dashboard.views.runs import LIVE
from tritpress.errors import UsageError
from tritpress.runs.directory import REMOTE

if TYPE_CHECKING:
    from tritpress.dashboard.session import Session

NAMED = 5
FAILED = "The run could not be started"


@dataclass(frozen=True)
class Wanted:
    """A run that is to be started."""

    model: str
    config: Any
    name: str | None
    then: Callable[[Any], None] | None


class Starting:
    """Starts runs for one page."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.context = session.context
        self.wanted: Wanted | None = None
        self.question = Question(
            "Other runs are at work",
            [("Queue it", lambda: self._answered(True)), ("Run beside", lambda: self._answered(False))],
        )
        self.dialog = self.question.dialog

    def start(self) -> None:
        """Start a run with what the sidebar says and follow it."""
        self.session.steering.act(self._start, FAILED)

    def _start(self) -> None:
        sidebar = self.session.sidebar
        sidebar.look()
        if not sidebar.ready:
            check = sidebar.check
            self.context.say("bad", sidebar.text_check.words if check.ok else check.lines[0])
            return
        form = sidebar.form()
        self._want(Wanted(form.model, config_of(form), None, None))

    def another(self) -> None:
        """Leave the open run at work and let the form say what another one is to do."""
        feed = self.session.feed
        self.context.open_run("")
        if feed is not None:
            asks = "" if feed.remote else " Start asks whether the new run waits for it or runs beside it."
            self.context.say("neutral", f"{feed.name} goes on.{asks}")

    def start_run(
        self,
        model: str,
        config_values: Mapping[str, Any],
        name: str | None = None,
        then: Callable[[Any], None] | None = None,
    ) -> None:
        """Start a run of `model` with these settings; `then(run)` instead of opening it."""
        from tritpress.config import make_config

        self.session.steering.act(
            lambda: self._want(Wanted(model, make_config(dict(config_values)), name, then)), FAILED
        )

    def _want(self, wanted: Wanted) -> None:
        """Start it, or ask first when others are at work."""
        self.session.steering.check_may_act()
        if (why := refused(wanted.model, wanted.config)) is not None:
            raise UsageError(why)
        self.context.store.refresh_list()
        # A run that is worked on elsewhere takes nothing of this machine, and no queue here waits for it.
        live = [
            run
            for run in self.context.store.runs
            if run["alive"] and run["status"] in LIVE and run["origin"] != REMOTE
        ]
        if not live:
            self._launch(wanted, False)
            return
        self.wanted = wanted
        names = [str(run["name"] or run["id"]) for run in live[:NAMED]]
        more = f" and {len(live) - NAMED} more" if len(live) > NAMED else ""
        self.question.ask(
            Markup(
                '<p>{} at work or waiting: {}{}.</p><p style="margin-top:8px">In the queue the new run '
                "begins when they have ended, also when this page is closed. Beside them it begins now and "
                "shares memory and processors.</p>"
            ).format(
                f"{fig.plural(len(live), 'run')} {'is' if len(live) == 1 else 'are'}",
                join((Markup("<b>{}</b>").format(name) for name in names), ", "),
                more,
            )
        )

    def _answered(self, queue: bool) -> None:
        wanted, self.wanted = self.wanted, None
        if wanted is not None:
            self.session.steering.act(lambda: self._launch(wanted, queue), FAILED)

    def _launch(self, wanted: Wanted, queue: bool) -> None:
        from tritpress.runs.launch import launch

        self.session.steering.check_may_act()

        def started(run: Any) -> None:
            self.context.say("neutral", "")
            self.context.store.refresh_list()
            if wanted.then is not None:
                wanted.then(run)
            else:
                self.context.open_run(run.id)

        runs_dir = self.context.store.runs_dir

        def launched() -> Any:
            if (why := webhooks.refusal(wanted.config)) is not None:
                raise UsageError(why)
            return launch(wanted.model, None, wanted.config, runs_dir, name=wanted.name, queue=queue)

        self.session.steering.background(
            launched,
            started,
            "The run goes into the queue." if queue else "The worker process is starting.",
            FAILED,
            steers=True,
        )
