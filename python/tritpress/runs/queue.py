"""Runs that wait for others: each queued run has its own worker process, which waits for those before it.

Nobody else is needed: the page and the command line that made the run may end. `run.json` names in `after`
the runs that were at work or waiting when it was queued; it starts when none of them has a living worker any
more, however they ended. A queued run is stopped like any other.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tritpress.errors import TritpressError
from tritpress.runs.directory import REMOTE, RunDirectory, check_run_id
from tritpress.runs.liveness import is_alive

if TYPE_CHECKING:
    from tritpress.runs.control import WorkerContext

LOCK = ".queue.lock"
LOOK_EVERY = 0.5


@contextmanager
def queueing(runs_dir: Path) -> Iterator[list[str]]:
    """The runs at work or waiting now; until it ends no other process may queue a run in that folder."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    with open(runs_dir / LOCK, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield live_runs(runs_dir)


def live_runs(runs_dir: str | Path) -> list[str]:
    """Ids of the runs in `runs_dir` that have a living worker here: at work, paused, or in the queue."""
    found = [RunDirectory(path.parent) for path in Path(runs_dir).glob("*/run.json")]
    return sorted(run.id for run in found if is_alive(run) and run.read_run().get("origin") != REMOTE)


def ahead(run: RunDirectory) -> list[str]:
    """Ids of the runs that `run` still waits for."""
    return [name for name in run.read_run().get("after") or [] if _alive(run.path.parent, name)]


def wait_for_turn(run: RunDirectory, context: WorkerContext) -> None:
    """Wait until no run before this one lives. Raises `StopRequested` when asked to stop meanwhile."""
    told: list[str] | None = None
    while waiting := ahead(run):
        if waiting != told:
            context.emit("run.queued", after=waiting)
            told = waiting
        context.wait(LOOK_EVERY)


def _alive(runs_dir: Path, name: str) -> bool:
    try:
        return is_alive(RunDirectory(runs_dir / check_run_id(name)))
    except TritpressError:
        return False
