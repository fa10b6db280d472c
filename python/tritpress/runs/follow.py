"""Following a run until it ends: its events, and the end of a worker that could not say a word."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tritpress.errors import TritpressError
from tritpress.events.reader import EventReader
from tritpress.events.schema import ENDED
from tritpress.runs.directory import RunDirectory
from tritpress.runs.launch import worker_process
from tritpress.runs.liveness import is_alive

ENDS = ("run.finished", "run.failed")
LIVENESS_EVERY = 1.0

LAST_WORD = 5.0
"""Seconds that the last event may come after the end is in run.json."""


class WorkerDied(TritpressError):
    """The worker process ended without a last event (killed, out of memory, power)."""


def follow(run: RunDirectory, offset: int = 0, *, interval: float = 0.05) -> Iterator[dict[str, Any]]:
    """Yield the run's events from `offset` on until its `run.finished` or `run.failed`.

    Raises `WorkerDied` when the worker is gone without one.
    """
    reader = EventReader(run.events_path, offset)
    checked = time.monotonic()
    while True:
        for event in reader.poll():
            yield event
            if event["type"] in ENDS:
                return
        time.sleep(interval)
        if time.monotonic() - checked >= LIVENESS_EVERY:
            checked = time.monotonic()
            if not worker_runs(run):
                # What it wrote between our last look and its end is still to be read. One that has noted its
                # end in run.json says so in the log a moment later.
                until = time.monotonic() + (LAST_WORD if _noted_its_end(run) else 0.0)
                while True:
                    for event in reader.poll():
                        yield event
                        if event["type"] in ENDS:
                            return
                    if time.monotonic() >= until:
                        break
                    time.sleep(interval)
                raise WorkerDied(f"the worker of run {run.id} ended without a word (see {run.log_path})")


def _noted_its_end(run: RunDirectory) -> bool:
    try:
        return run.read_run().get("status") in ENDED
    except TritpressError:
        return False


def worker_runs(run: RunDirectory) -> bool:
    """Whether the worker process is there; one that this process started is reaped on the way."""
    process = worker_process(run)
    if process is not None:
        return process.poll() is None
    return is_alive(run)
