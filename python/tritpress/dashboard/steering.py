"""What the buttons do: pause, resume, stop and reset, acknowledgements, and work beside the loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritpress.dashboard.components.dialogs import Question
from tritpress.dashboard.components.html import Markup
from tritpress.dashboard.views.status import status_of
from tritpress.errors import TritpressError
from tritpress.events.schema import ENDED

if TYPE_CHECKING:
    from tritpress.dashboard.session import Session

log = logging.getLogger(__name__)

WORKERS = ThreadPoolExecutor(4, thread_name_prefix="tritpress-beside")

ACK_PATIENCE = 20.0
"""Seconds after which the page says that the worker has not answered yet."""

AT_WORK = ("created", "queued", "running", "paused")


@dataclass
class Job:
    """Something done beside the server's loop. `steers`: the buttons wait for it."""

    future: Future[Any]
    then: Callable[[Any], None]
    what: str
    steers: bool


@dataclass
class Pending:
    """A command that waits for its acknowledgement."""

    run: str
    id: str
    name: str
    since: float
    said: bool = False


class Steering:
    """Steers runs for one page."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.context = session.context
        self.pending: Pending | None = None
        self.jobs: list[Job] = []
        self.question = Question(
            "This run is still at work",
            [("Stop it and reset", self._stop_and_reset), ("Leave it at work", self._reset)],
        )
        self.dialog = self.question.dialog

    @property
    def waiting(self) -> bool:
        """Whether a button was pressed whose effect is still awaited."""
        return self.pending is not None or any(job.steers for job in self.jobs)

    @property
    def busy(self) -> bool:
        """Whether the loop has something to look for."""
        return self.pending is not None or bool(self.jobs)

    def look(self, now: float) -> None:
        """Take up what has come since the last tick."""
        for job in [job for job in self.jobs if job.future.done()]:
            self.jobs.remove(job)
            self.act(lambda job=job: job.then(job.future.result()), job.what)  # type: ignore[misc]
            self.session.apply_controls()
        if self.pending is not None:
            self._look_for_ack(self.pending, now)

    def say(self, tone: str, text: str) -> None:
        """Say something to the reader; an empty text takes the last one away."""
        self.session.say(tone, text)

    # Commands

    def pause(self) -> None:
        """Pause the run. What it does may have changed since the button was drawn; then nothing is sent."""
        self._steer(resume=False)

    def resume(self) -> None:
        """Let a paused run go on, and give a stopped, failed or lost one a new worker; or as with `pause`."""
        self._steer(resume=True)

    def _steer(self, resume: bool) -> None:
        feed = self.session.feed
        if feed is None or self.waiting:
            return
        status = feed.state["status"]
        if resume and (feed.lost or status in ("stopped", "failed")):
            self.act(self._take_up, "The run could not be taken up again")
        elif not feed.lost and status == ("paused" if resume else "running"):
            self.send(feed.id, "resume" if resume else "pause")
        else:
            now = status_of(feed.state, feed.lost).label.lower()
            self.say("warning", f"Nothing was sent, as the run changed meanwhile: {now}.")
            self.session.apply_controls()

    def _take_up(self) -> None:
        from tritpress.runs.directory import RunDirectory
        from tritpress.runs.launch import resume

        self.check_may_act()
        assert self.session.feed is not None
        run = RunDirectory(self.session.feed.path)
        self.background(
            lambda: resume(run),
            lambda _: self.say("neutral", ""),
            "A new worker takes the run up where it was.",
            "The run could not be taken up again",
            steers=True,
        )

    def stop(self) -> None:
        """Ask the worker to stop; the run can be resumed."""
        if self.session.feed is not None:
            self.send(self.session.feed.id, "stop")

    def send(self, run_id: str, command: str, **args: Any) -> bool:
        """Send a command to that run's worker and wait for its answer. Whether it was sent."""
        return self.act(lambda: self._send(run_id, command, args), f"The {command} command could not be sent")

    def _send(self, run_id: str, command: str, args: dict[str, Any]) -> None:
        from tritpress.errors import InputError
        from tritpress.runs.commands import send
        from tritpress.runs.directory import RunDirectory

        self.check_may_act()
        path = self.context.store.path_of(run_id)
        if path is None:
            raise InputError(f"there is no run {run_id!r} in {self.context.store.runs_dir}")
        sent = send(RunDirectory(path), command, **args)
        self.pending = Pending(run_id, sent, command, time.time())
        self.say("live", f"Sent: {command}. The worker answers between two tensors or training steps.")
        self.session.apply_controls()

    def _look_for_ack(self, pending: Pending, now: float) -> None:
        feed = self.session.feed
        if feed is None or feed.id != pending.run:
            self.pending = None
            return
        ack = feed.state["acks"].get(pending.id)
        if ack is not None:
            self.pending = None
            if ack.get("ok", True):
                self.say("neutral", "")
            else:
                self.say(
                    "bad", f"The worker refused to {pending.name}: {ack.get('detail') or 'no reason given'}"
                )
            self.session.apply_controls()
        elif feed.lost or feed.state["status"] in ENDED:
            self.pending = None
            self.say("warning", f"The run was over before it could {pending.name}.")
            self.session.apply_controls()
        elif now - pending.since > ACK_PATIENCE and not pending.said:
            pending.said = True
            self.say(
                "warning",
                f"The worker has not answered to {pending.name} yet; it is busy with one large tensor.",
            )

    # Reset

    def ask_reset(self) -> None:
        """Go back to the empty page; a run at work that could be stopped is asked about first."""
        if self._may_stop():
            self.question.ask(
                Markup(
                    "<p>A stopped run keeps what is finished and can be resumed. "
                    "It can also go on by itself while this page starts another.</p>"
                )
            )
        else:
            self._reset()

    def _may_stop(self) -> bool:
        feed = self.session.feed
        if feed is None or not self.context.may_act or feed.remote or feed.gone or feed.lost:
            return False
        return feed.state["status"] in AT_WORK

    def _reset(self) -> None:
        self.context.open_run("")
        self.session.sidebar.fill(self.session.default)
        self.say("neutral", "")
        self.session.apply_controls()

    def _stop_and_reset(self) -> None:
        feed = self.session.feed
        if feed is None or not self._may_stop():  # it ended while the question was open
            self._reset()
        elif self.send(feed.id, "stop"):
            self._reset()
            self.say("warning", f"{feed.name} was asked to stop; it stays in the list and can be resumed.")

    # Beside the loop

    def background(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        meanwhile: str,
        what: str,
        steers: bool = False,
    ) -> None:
        """Do what takes a second or two beside the server's loop; a later tick takes up its result."""
        self.jobs.append(Job(WORKERS.submit(work), then, what, steers))
        if meanwhile:
            self.say("live", meanwhile)
        self.session.apply_controls()

    def check_may_act(self) -> None:
        """Raises `TritpressError` on a page that only shows."""
        if not self.context.may_act:
            raise TritpressError(self.context.why_not or "this page only shows runs")

    def act(self, action: Callable[[], None], what: str) -> bool:
        """Do it. What goes wrong (False) is said in one sentence, `what` before it where it explains itself
        badly.
        """
        try:
            action()
            return True
        except TritpressError as error:
            self.say("bad", str(error))
        except (OSError, ValueError, KeyError) as error:
            log.exception("%s", what)
            self.say("bad", f"{what}: {error}")
        return False
