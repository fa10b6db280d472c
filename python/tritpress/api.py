"""Compression from Python: the worker process does the work, this side follows its events."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritpress.config import CompressionConfig
from tritpress.errors import InputError, StopRequested, TritpressError, UsageError
from tritpress.events.reader import StateReader
from tritpress.invocation import resume_line
from tritpress.runs.commands import send
from tritpress.runs.directory import RunDirectory, find_run
from tritpress.runs.follow import WorkerDied, follow, worker_runs
from tritpress.runs.launch import launch
from tritpress.runs.launch import resume as resume_worker

STOP_PATIENCE = 120.0
"""Seconds that a worker may take to stop (one tensor or one training step) before we no longer wait."""

OnEvent = Callable[[dict[str, Any]], None]


def compress(
    model: str | Path,
    out: str | Path,
    config: CompressionConfig | None = None,
    *,
    on_event: OnEvent | None = None,
    runs_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Compress the Hugging Face directory `model` into `out`; returns the report (what `report.json` holds).

    A worker process does the work and goes on if this one dies; `on_event` gets each of its events as a
    dict. `runs_dir` defaults to `$TRITPRESS_RUNS`, else `./runs`. When `on_event` raises, or on Ctrl-C, the
    worker is asked to stop and the exception goes on to the caller.

    Raises `UsageError` and `InputError` for what cannot work, `StopRequested` when the run was stopped by
    others, and `TritpressError` with the worker's own sentence for all else. A gate or a check of the
    handoff that fails is no error.
    """
    run = launch(model, out, config, runs_dir)
    return wait(run, on_event)


def resume(
    run: str | Path | RunDirectory,
    *,
    on_event: OnEvent | None = None,
    runs_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Take a stopped, failed or killed run up again and return its report; raises like `compress`."""
    directory = run if isinstance(run, RunDirectory) else find_run(run, runs_dir)
    before = StateReader(directory.path)
    before.poll()
    resume_worker(directory)
    return wait(directory, on_event, before.state["offset"])


def wait(
    run: RunDirectory,
    on_event: OnEvent | None = None,
    offset: int = 0,
    *,
    on_stop: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Follow a run that is at work from `offset` of its log to its end and return its report.

    Raises like `compress`. `on_stop` is called before waiting for a worker that was just asked to stop.
    """
    try:
        end = _follow(run, on_event, offset)
    except WorkerDied as error:
        raise WorkerDied(f"{error}; `{resume_line(run.path)}` goes on from what is done") from None
    except BaseException:
        if on_stop is not None:
            on_stop()
        stop(run)
        raise
    if end["type"] == "run.failed":
        raise _error(end, run)
    if end.get("status") == "stopped":
        raise StopRequested(f"run {run.id} was stopped; `{resume_line(run.path)}` goes on from what is done")
    return json.loads(run.report_path.read_bytes())


def stop(run: RunDirectory, patience: float = STOP_PATIENCE) -> bool:
    """Ask the worker to stop and wait until it has; whether it did. A run that is over has."""
    try:
        send(run, "stop")
    except TritpressError:
        return True
    deadline = time.monotonic() + patience
    while worker_runs(run):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _follow(run: RunDirectory, on_event: OnEvent | None, offset: int) -> dict[str, Any]:
    event: dict[str, Any] = {}
    for event in follow(run, offset):
        if on_event is not None:
            on_event(event)
    return event


def _error(end: dict[str, Any], run: RunDirectory) -> TritpressError:
    kinds = {"UsageError": UsageError, "InputError": InputError}
    error = kinds.get(str(end.get("kind")), TritpressError)(str(end.get("error")))
    with contextlib.suppress(OSError):  # where it happened, for who looks at tracebacks
        _, found, tail = run.log_path.read_text(errors="replace").rpartition("Traceback (most recent")
        if found:
            error.add_note(f"In the worker ({run.log_path}):\n{found}{tail}")
    return error
