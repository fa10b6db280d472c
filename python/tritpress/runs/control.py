"""The worker's side of commands: pause, resume, stop, set."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from tritpress.config import CompressionConfig
from tritpress.errors import StopRequested
from tritpress.events.rules import parse_rules
from tritpress.events.schema import STEP_NAMES
from tritpress.events.writer import EventWriter
from tritpress.runs.alerts import Watch
from tritpress.runs.directory import RunDirectory
from tritpress.runs.outbox import Courier
from tritpress.runs.settings import TensorSettings


class WorkerContext:
    """The `RunContext` of a worker: `emit` goes to the event log, `check` obeys what was asked meanwhile.

    Every event also goes past the rules of alerts; an alert goes to the log and to its receivers.
    """

    def __init__(self, writer: EventWriter, run: RunDirectory, config: CompressionConfig) -> None:
        self.writer = writer
        self.run = run
        self.watch = Watch(parse_rules(config.alerts), self._alert, writer.state)
        self.courier = Courier(run, config, say=self._warn)
        self.settings = TensorSettings(run, writer.state)
        self.paused_seconds = 0.0
        self._changed = threading.Condition()
        self._pause = False
        self._stop: str | None = None

    def emit(self, type: str, /, **fields: Any) -> None:
        step = fields.get("step")
        if type == "step.progress" and isinstance(step, int) and 1 <= step <= len(STEP_NAMES):
            fields.setdefault("name", STEP_NAMES[step - 1])
        self.writer.emit(type, **fields)
        self.watch.see(type, fields)

    def _alert(self, alert: dict[str, Any]) -> None:
        self.writer.emit("alert", **alert)
        self.courier.take(alert)

    def _warn(self, message: str) -> None:
        try:
            self.writer.emit("log", level="warning", message=message)
        except OSError as error:
            print(f"cannot write into {self.run.path}: {error}", file=sys.stderr)

    def check(self) -> None:
        if self._stop is None and not self._pause:
            return
        with self._changed:
            if self._stop is None:
                self._wait_while_paused()
            if self._stop is not None:
                raise StopRequested(self._stop)

    def begin(self, tensor: str) -> dict[str, dict[str, float | None]]:
        """Call before a tensor is pressed: what `set` changed since the last call, by tensor."""
        return self.settings.begin(tensor)

    def wait(self, seconds: float) -> None:
        """Wait for so long, or until asked to stop: then raises `StopRequested`."""
        with self._changed:
            if self._stop is None:
                self._changed.wait(seconds)
            if self._stop is not None:
                raise StopRequested(self._stop)

    def _wait_while_paused(self) -> None:
        start = time.monotonic()
        self.run.update_run(status="paused")  # before the event: who hears it may read the record
        self.emit("run.paused")
        while self._pause and self._stop is None:
            self._changed.wait()
        seconds = time.monotonic() - start
        self.paused_seconds += seconds
        if self._stop is None:
            self.run.update_run(status="running")
            self.emit("run.resumed", seconds=seconds)

    def obey(self, command: dict[str, Any]) -> None:
        """Take one command in and acknowledge it; `check` makes it take effect."""
        name = str(command.get("command"))
        given = command.get("args")
        arguments: dict[str, Any] = given if isinstance(given, dict) else {}
        ok, detail = self._take(name, arguments)
        self.emit("command.ack", id=command["id"], command=name, ok=ok, detail=detail)

    def request_stop(self, reason: str) -> None:
        """Make the next `check` raise `StopRequested(reason)`. Never waits for the main thread."""
        with self._changed:
            self._stop = reason
            self._changed.notify_all()

    def _take(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        if name == "stop":
            self.request_stop("stopped on request")
            return True, "stops after the tensor or training step at hand"
        if name in ("pause", "resume"):
            with self._changed:
                if self._pause == (name == "pause"):
                    return True, f"was {'paused' if self._pause else 'running'} already"
                self._pause = name == "pause"
                self._changed.notify_all()
            return True, "pauses after the tensor or training step at hand" if name == "pause" else "goes on"
        if name == "set":
            if (
                set(arguments) == {"name"}
                and isinstance(arguments["name"], str)
                and arguments["name"].strip()
            ):
                self.run.update_run(name=arguments["name"].strip()[:200])
                return True, "renamed"
            ok, detail = self.settings.take(arguments)
            if ok:
                self.emit("log", message=f"Set while at work: {detail}")
            return ok, detail
        return False, f"unknown command {name!r}"
