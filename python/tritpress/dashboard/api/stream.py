"""The WebSocket of the API: a run's events after a number, then each as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from tornado import web, websocket

from tritpress.dashboard.api.errors import ApiError
from tritpress.dashboard.api.handlers import beside, check_guard, error_answer, find, whole_number
from tritpress.dashboard.api.seek import offset_after, read_lines
from tritpress.dashboard.security import Guard
from tritpress.dashboard.store import UNFINISHED, RunStore
from tritpress.runs.directory import RunDirectory

LOOK_EVERY = 0.1
"""Seconds between two looks at a log."""

LIVENESS_EVERY = 1.0

EVENTS, SIZE = 1000, 512 << 10
"""Events and bytes in one message, about."""

STREAMS = 200
"""Streams that are open at once, at most."""


class Stream(websocket.WebSocketHandler):
    """Each message is a JSON array of events, or {"standing": "live", "gone" or "over"} when that changed.

    Gone: unfinished, but without a worker; over: finished, failed or stopped.
    """

    running = 0

    def initialize(self, runs_dir: Path, guard: Guard | None) -> None:
        self.store = RunStore(runs_dir)
        self.guard = guard
        self.task: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        check_guard(self)
        self.run = find(self.store, self.path_args[0])
        self.after = whole_number(self, "after", 0, 0, 2**53)
        if Stream.running >= STREAMS:
            raise ApiError(503, f"{STREAMS} streams are open already")
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise ApiError(426, "this is a WebSocket: ask with Upgrade: websocket")

    @property
    def ping_interval(self) -> float | None:
        return 20.0

    @property
    def max_message_size(self) -> int:
        return 4096  # nothing is expected from the other side

    def check_origin(self, origin: str) -> bool:
        return True  # the guard has looked at it

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        body, status = error_answer(status_code, kwargs.get("exc_info"))
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(body))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, ApiError | web.HTTPError):
            super().log_exception(typ, value, tb)

    def open(self, *_: str) -> None:
        Stream.running += 1
        self.task = asyncio.create_task(self._follow(self.run, self.after))

    def on_message(self, message: str | bytes) -> None:
        return None

    def on_close(self) -> None:
        if self.task is not None:
            Stream.running -= 1
            self.task.cancel()
            self.task = None

    async def _follow(self, run: RunDirectory, after: int) -> None:
        path = run.events_path
        loop = asyncio.get_running_loop()
        offset = await beside(offset_after, path, after)
        told, last, next_look = "live", "live", 0.0
        with contextlib.suppress(websocket.WebSocketClosedError):
            while True:
                lines: list[bytes] = []
                if _size(path) > offset:
                    lines, offset = await beside(read_lines, path, offset, EVENTS, SIZE)
                if lines:
                    await self.write_message(b"[" + b",".join(lines) + b"]")
                    continue
                if loop.time() >= next_look:
                    next_look = loop.time() + LIVENESS_EVERY
                    standing = await beside(standing_of, run)
                    # Told at the second look: what the worker wrote last has been read between the two.
                    if standing == last and standing != told:
                        told = standing
                        await self.write_message(json.dumps({"standing": standing}))
                    last = standing
                await asyncio.sleep(LOOK_EVERY)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def standing_of(run: RunDirectory) -> str:
    """live, gone (unfinished, but its worker is gone) or over."""
    from tritpress.errors import TritpressError
    from tritpress.runs.liveness import is_alive_record

    try:
        record = run.read_run()
    except TritpressError:
        return "over"  # it was moved away
    if record.get("status") not in UNFINISHED:
        return "over"
    return "live" if is_alive_record(record) else "gone"
