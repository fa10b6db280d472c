"""What the buttons do: start, pause, resume, stop and reset, acknowledgements, and work beside the loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.html import Fragment, Markup
from tritpress.dashboard.views.form import config_of
from tritpress.errors import TritpressError

if TYPE_CHECKING:
    from tritpress.dashboard.session import Session

log = logging.getLogger(__name__)

WORKERS = ThreadPoolExecutor(4, thread_name_prefix="tritpress-beside")

ACK_PATIENCE = 20.0
"""Seconds after which the page says that the worker has not answered yet."""

AT_WORK = ("created", "running", "paused")


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
    """Starts and steers runs for one page."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.context = session.context
        self.pending: Pending | None = None
        self.jobs: list[Job] = []
        self.dialog = self._reset_dialog()

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
            self._act(lambda job=job: job.then(job.future.result()), job.what)  # type: ignore[misc]
            self.session.apply_controls()
        if self.pending is not None:
            self._look_for_ack(self.pending, now)

    def say(self, tone: str, text: str) -> None:
        """Say something to the reader; an empty text takes the last one away."""
        self.session.sidebar.say(tone, text)

    # Starting

    def start(self) -> None:
        """Start a run with what the sidebar says and follow it."""
        self._act(self._start, "The run could not be started")

    def _start(self) -> None:
        sidebar = self.session.sidebar
        sidebar.look()
        if not sidebar.check.ok:
            self.say("bad", sidebar.check.lines[0])
            return
        form = sidebar.form()
        self._launch(form.model, config_of(form), None, None)

    def start_run(
        self,
        model: str,
        config_values: Mapping[str, Any],
        name: str | None = None,
        then: Callable[[Any], None] | None = None,
    ) -> None:
        """Start a run of `model` with these settings; `then(run)` instead of opening it."""
        from tritpress.config import make_config

        self._act(
            lambda: self._launch(model, make_config(dict(config_values)), name, then),
            "The run could not be started",
        )

    def _launch(
        self, model: str, config: Any, name: str | None, then: Callable[[Any], None] | None
    ) -> None:
        from tritpress.runs.launch import launch

        self._may_act()

        def started(run: Any) -> None:
            self.say("neutral", "")
            self.context.store.refresh_list()
            if then is not None:
                then(run)
            else:
                self.context.open_run(run.id)

        self.background(
            lambda: launch(model, None, config, self.context.store.runs_dir, name=name),
            started,
            "The worker process is starting.",
            "The run could not be started",
            steers=True,
        )

    # Commands

    def toggle(self) -> None:
        """Pause, or go on."""
        feed = self.session.feed
        if feed is None:
            return
        if feed.lost or feed.state["status"] in ("stopped", "failed"):
            self._act(self._take_up, "The run could not be taken up again")
        else:
            self.send(feed.id, "resume" if feed.state["status"] == "paused" else "pause")

    def _take_up(self) -> None:
        from tritpress.runs.directory import RunDirectory
        from tritpress.runs.launch import resume

        self._may_act()
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

    def send(self, run_id: str, command: str, **args: Any) -> None:
        """Send a command to that run's worker and wait for its answer."""
        self._act(lambda: self._send(run_id, command, args), f"The {command} command could not be sent")

    def _send(self, run_id: str, command: str, args: dict[str, Any]) -> None:
        from tritpress.errors import InputError
        from tritpress.runs.commands import send
        from tritpress.runs.directory import RunDirectory

        self._may_act()
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
        elif feed.lost or feed.state["status"] in ("finished", "failed", "stopped"):
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
        """Go back to the empty page; a run at work is asked about first."""
        feed = self.session.feed
        if feed is not None and not feed.lost and feed.state["status"] in AT_WORK:
            self.dialog.open = True
        else:
            self._reset()

    def _reset(self) -> None:
        self.dialog.open = False
        self.context.open_run("")
        self.session.sidebar.fill(self.session.default)
        self.say("neutral", "")
        self.session.apply_controls()

    def _stop_and_reset(self) -> None:
        self.dialog.open = False
        feed = self.session.feed
        if feed is not None:
            self.stop()
            name = feed.state.get("name") or feed.id
            self._reset()
            self.say("warning", f"{name} was asked to stop; it stays in the list and can be resumed.")

    def _reset_dialog(self) -> pmui.Dialog:
        text = Fragment(
            Markup(
                "<p>A stopped run keeps what is finished and can be resumed. "
                "It can also go on by itself while this page starts another.</p>"
            )
        )
        button: dict[str, Any] = {"margin": (16, 8, 8, 0), "disable_elevation": True}
        return pmui.Dialog(
            text.pane,
            pn.FlexBox(
                pmui.Button(
                    label="Stop it and reset",
                    color="primary",
                    on_click=lambda _: self._stop_and_reset(),
                    **button,
                ),
                pmui.Button(
                    label="Leave it at work", variant="outlined", on_click=lambda _: self._reset(), **button
                ),
                pmui.Button(
                    label="Cancel",
                    variant="text",
                    on_click=lambda _: self.dialog.param.update(open=False),
                    **button,
                ),
            ),
            title="This run is still at work",
            title_variant="h6",
            close_on_click=True,
        )

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

    def _may_act(self) -> None:
        if not self.context.may_act:
            raise TritpressError(self.context.why_not or "this page only shows runs")

    def _act(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
        except TritpressError as error:
            self.say("bad", str(error))
        except (OSError, ValueError, KeyError) as error:
            log.exception("%s", what)
            self.say("bad", f"{what}: {error}")
