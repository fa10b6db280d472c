"""Pushing the events of a run that is worked on here to a dashboard in another process or machine."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tritpress.client.http import ClientError, Server
from tritpress.errors import UsageError
from tritpress.events.schema import Event, encode, most_bytes
from tritpress.runs.directory import check_run_id, new_run_id

log = logging.getLogger(__name__)

BUFFER = 100_000
"""Events that are kept while the server cannot be reached; beyond them the oldest are given up."""

EVENTS, SIZE = 2000, 2 << 20
"""Events and bytes of one push, at most; one event may be larger and then goes alone."""

REPORT = 7 << 20
"""Bytes of a report that the server takes."""

COMMON = 300
"""Bytes of the common keys of an event, at most."""

EVERY = 0.2
"""Seconds between two pushes."""

HEARTBEAT = 5.0
"""Seconds after which an empty push says that the controller is still there."""

RETRY_FIRST, RETRY_MOST = 0.5, 10.0

PATIENCE = 30.0
"""Seconds that `flush` and `close` wait when they are not told how long."""

KEPT_OUT_RETRY = 2.0
"""Seconds between two tries, at most, while another sender has the run: the server frees it at once when that
one was silent for long enough.
"""

MOST_ERROR = 20_000
"""Letters that are kept of the error of a `run.failed` that is too large as it is."""

ENDS = ("run.finished", "run.failed")
FATAL = (400, 401, 403, 404, 409, 413, 415)
"""Answers that the same push would get again."""

SILENT = "until_silent"
"""In the answer to the push of a second sender: the seconds after which it is taken if the first is gone."""


class Pusher:
    """Sends events from a thread of its own: `emit` never waits and never raises for the server's sake.

    As a context manager it begins the run (`run.started`) and ends it (`run.finished`, or `run.failed` with
    the exception's sentence), unless such an event was emitted, and flushes at the end. What the server
    refuses for good is kept in `error` and logged once; events given up for want of room are counted in
    `dropped` and told in the run's log, and so are those too large to be taken, in `oversize`.
    """

    def __init__(
        self,
        server: Server,
        name: str,
        *,
        run_id: str | None = None,
        model: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.server = server
        self.run_id = check_run_id(run_id) if run_id is not None else new_run_id()
        self.error: ClientError | None = None
        self.dropped = self.oversize = 0
        self.ended = False
        self._about = {"source": secrets.token_hex(16), "name": name, "model": model, "config": config}
        self._report: dict[str, Any] | None = None
        self._report_size = 0
        self._waiting: deque[str] = deque()  # encoded, without their number
        self._batch: list[str] = []  # on its way: sent again as it is until it is answered
        self._seq: int | None = None  # of the last event that the server has; None: not asked yet
        self._told = 0  # of those dropped
        self._changed = threading.Condition()
        self._closing = False
        self._kept_out: tuple[float, ClientError] | None = None  # by another sender: since when, the answer
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Pusher:
        if not self._waiting and self._thread is None:
            about = {key: self._about[key] for key in ("name", "model", "config")}
            self.emit("run.started", **{key: value for key, value in about.items() if value is not None})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.ended:
            if error is None:
                self.emit("run.finished", status="finished")
            else:
                self.emit("run.failed", error=f"{type(error).__name__}: {error}", exit_code=1)
        self.close()

    def emit(self, type: str, /, **fields: Any) -> None:
        """Report one event; `fields` as in docs/api.md, numpy values too. Raises `UsageError` for a field
        that has the name of a common key, TypeError for what JSON cannot hold.
        """
        taken = fields.keys() & (Event.__annotations__.keys() - {"t"})
        if taken:
            raise UsageError(f"event {type!r}: the field {sorted(taken)[0]!r} is one of the common keys")
        text = encode({"type": type, "t": time.time(), **fields})
        most = most_bytes(type) - COMMON
        if len(text) > most and type == "run.failed":  # without it the run never ends there
            kept = {key: fields[key] for key in ("error", "exit_code") if key in fields}
            if len(str(kept.get("error", ""))) > MOST_ERROR:
                kept["error"] = f"{str(kept['error'])[:MOST_ERROR]} (and so on)"
            text = encode({"type": type, "t": fields.get("t", time.time()), **kept})
        if len(text) > most:
            self._leave_out(f"the event {type!r} of {len(text):,} bytes ({most:,} at most)")
            return
        with self._changed:
            if self._closing:
                return
            self.ended = type in ENDS or (self.ended and type != "run.started")
            self._waiting.append(text)
            if len(self._waiting) > BUFFER:
                self._waiting.popleft()
                self.dropped += 1
            self._begin_thread()

    def forward(self, event: dict[str, Any]) -> None:
        """Pass on an event of a run here, with its own time; at the run's end its report goes along."""
        fields = {key: value for key, value in event.items() if key not in ("v", "run", "seq", "type")}
        if event["type"] == "run.finished" and event.get("report"):
            self.report(event["report"])
        self.emit(event["type"], **fields)

    def report(self, report: str | Path | dict[str, Any]) -> None:
        """Send a report (or the file that holds it) along; the dashboard keeps it for the run."""
        if not isinstance(report, dict):
            try:
                report = json.loads(Path(report).read_bytes())
            except (OSError, ValueError) as error:
                log.warning("the report of run %s is not pushed: %s", self.run_id, error)
                return
        size = len(encode(report))
        if size > REPORT:
            self._leave_out(f"the report of {size:,} bytes ({REPORT:,} at most)")
            return
        with self._changed:
            if self._closing:
                return
            self._report, self._report_size = dict(report), size  # type: ignore[arg-type]
            self._begin_thread()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was emitted has arrived; False when it did not within `timeout` seconds.

        None: 30 seconds, or until the server would have freed the run where another sender, which may be
        gone, has it.
        """
        begun = time.monotonic()
        with self._changed:
            self._changed.notify_all()
            while self._to_send and self.error is None and not self._closing:
                until = begun + (PATIENCE if timeout is None else timeout)
                if timeout is None and self._kept_out is not None:
                    since, answer = self._kept_out
                    until = max(until, since + float(answer.body[SILENT]) + 2 * KEPT_OUT_RETRY)
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
            return self.error is None and not self._to_send

    def close(self, timeout: float | None = None) -> bool:
        """Flush, then end the thread; whether all has arrived. Kept out by another sender until then, it
        leaves that answer in `error`.
        """
        arrived = self.flush(timeout)
        with self._changed:
            self._closing = True
            kept_out = None if arrived or self.error is not None else self._kept_out
            self._changed.notify_all()
        if kept_out is not None:
            self._give_up(kept_out[1])
        if self._thread is not None:
            self._thread.join(5.0)
        if not arrived and self.error is None:
            log.warning("not all events of run %s reached %s", self.run_id, self.server.address)
        return arrived

    # The thread

    def _begin_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tritpress-push", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause, last = RETRY_FIRST, 0.0
        while self.error is None:
            with self._changed:
                if self._closing:
                    break
                if not self._to_send:
                    self._changed.wait(EVERY)
                wanted = self._to_send or (
                    time.monotonic() - last > HEARTBEAT and not self.ended
                )
            if not wanted:
                continue
            try:
                self._push()
            except ClientError as error:
                if SILENT in error.body:
                    now = time.monotonic()
                    if self._kept_out is None:
                        log.warning("%s: tried again until that one is silent", error)
                    with self._changed:
                        since = now if self._kept_out is None else self._kept_out[0]
                        self._kept_out = since, error
                    if now - since > 2 * float(error.body[SILENT]):
                        self._give_up(error)
                        break
                    self._seq = None  # it may push more before it is
                    pause = min(pause, KEPT_OUT_RETRY)
                elif error.status in FATAL:
                    self._give_up(error)
                    break
                with self._changed:
                    if SILENT not in error.body:
                        self._kept_out = None
                    if not self._closing:
                        self._changed.wait(pause)
                pause = min(2 * pause, RETRY_MOST)
                continue
            pause, last = RETRY_FIRST, time.monotonic()
            with self._changed:
                self._kept_out = None
                self._changed.notify_all()
                if not self._closing and len(self._waiting) < EVENTS:
                    self._changed.wait(EVERY)
        self.server.close()

    def _push(self) -> None:
        if self._seq is None:
            self._seq = self._begin()
        with self._changed:
            if not self._batch:
                self._batch = self._take()
            batch, report = self._batch, self._report
            if batch and sum(map(len, batch)) + self._report_size > REPORT:
                report = None  # it goes after them
        first = self._seq + 1
        events = [{**json.loads(text), "seq": seq} for seq, text in enumerate(batch, first)]
        body: dict[str, Any] = {**self._about, "events": events}
        if report is not None:
            body["report"] = report
        path = self.server.path("runs", self.run_id, "events")
        answer = self.server.ask("POST", path, body, repeatable=True)
        with self._changed:
            self._seq = int(answer["seq"])
            self._batch = []
            if report is not None and self._report is report:
                self._report = None

    def _begin(self) -> int:
        """The number of the last event that the server has of this run: 0 of a new one."""
        try:
            return int(self.server.ask("GET", self.server.path("runs", self.run_id))["seq"])
        except ClientError as error:
            if error.status == 404:
                return 0
            raise

    def _take(self) -> list[str]:
        batch: list[str] = []
        size = 0
        if self.dropped > self._told:
            missing, self._told = self.dropped - self._told, self.dropped
            lost = f"{missing:,} events were given up while the dashboard could not be reached"
            batch.append(encode({"type": "log", "t": time.time(), "message": lost}))
        while self._waiting and len(batch) < EVENTS:
            size += len(self._waiting[0])
            if batch and size > SIZE:
                break
            batch.append(self._waiting.popleft())
        return batch

    @property
    def _to_send(self) -> bool:
        return bool(self._waiting or self._batch or self._report is not None)

    def _leave_out(self, what: str) -> None:
        """Go on without what the server would not take, and say so once."""
        self.oversize += 1
        if self.oversize > 1:
            return
        words = f"{what[0].upper()}{what[1:]} is left out: a dashboard does not take so much at once"
        log.warning("run %s: %s", self.run_id, words)
        self.emit("log", level="warning", message=words)

    def _give_up(self, error: ClientError) -> None:
        log.warning("run %s is no longer pushed to %s: %s", self.run_id, self.server.address, error)
        with self._changed:
            self.error = error
            self._waiting.clear()
            self._batch = []
            self._changed.notify_all()


def progress_callback(
    url: str, token: str | None = None, *, name: str = "a run elsewhere", run_id: str | None = None
) -> Callable[[dict[str, Any]], None]:
    """A callback that shows a run live in the dashboard at `url`; for `tritpress.compress(on_event=...)` and
    `Phase4Controller.execute(progress_callback=...)`.

    It takes each event as a dict, never raises for the server's sake, and waits for the last events to arrive
    when the run ends. `callback.pusher` is the `Pusher` behind it.
    """
    pusher = Pusher(Server(url, token), name, run_id=run_id)

    def callback(event: dict[str, Any]) -> None:
        if event["type"] == "run.started" and event.get("name"):
            event = {**event, "name": name}
        pusher.forward(event)
        if event["type"] in ENDS:
            pusher.close()

    callback.pusher = pusher  # type: ignore[attr-defined]
    return callback
