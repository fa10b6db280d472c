"""Runs put away: `RUNS/.trash/<id>`, whole and restorable until someone empties that folder by hand."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from tritpress.errors import InputError, TritpressError, UsageError
from tritpress.runs.directory import RunDirectory, check_run_id, default_runs_dir, write_json
from tritpress.runs.history import summary
from tritpress.runs.liveness import is_alive

FOLDER = ".trash"
MARK = "deleted.json"


def delete_run(run: RunDirectory) -> Path:
    """Move the run into the trash and return where it lies now.

    Raises `UsageError` when it is at work or waits in the queue, `InputError` when it is no run.
    """
    run.read_run()
    if is_alive(run):
        raise UsageError(f"run {run.id} is at work: stop it before you delete it")
    # Held while the folder moves, so that no worker takes the run up in between.
    with open(run.lock_path, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"run {run.id} has a worker: stop it before you delete it") from None
        target = run.path.parent / FOLDER / run.id
        number = 1
        while target.exists():  # a run of that id was deleted before
            number += 1
            target = target.with_name(f"{run.id}.{number}")
        try:
            target.parent.mkdir(exist_ok=True)
            write_json(run.path / MARK, {"t": time.time(), "id": run.id})
            os.rename(run.path, target)
        except OSError as error:
            (run.path / MARK).unlink(missing_ok=True)
            raise TritpressError(f"run {run.id} cannot be moved to {target}: {error.strerror}") from None
    return target


def list_trash(runs_dir: str | Path | None = None, most: int | None = None) -> list[dict[str, Any]]:
    """Runs in the trash, last deleted first: what `history.summary` says, `deleted` (seconds) and `was`.

    `id` is the name in the trash, which `restore_run` takes; `was` the id that the run had. With `most` the
    last deleted alone, and of the others no more is read than when they were.
    """
    marks = [(path.parent, _mark(path.parent)) for path in (_folder(runs_dir) / FOLDER).glob("*/run.json")]
    found: list[dict[str, Any]] = []
    for path, mark in sorted(marks, key=lambda entry: _deleted(entry[1]) or 0, reverse=True):
        if most is not None and len(found) >= most:
            break
        try:
            facts = summary(RunDirectory(path))
        except TritpressError:
            continue
        found.append({**facts, "deleted": _deleted(mark), "was": str(mark.get("id") or path.name)})
    return found


def restore_run(run_id: str, runs_dir: str | Path | None = None) -> RunDirectory:
    """Move a run of that id (or its beginning, when one alone begins so) out of the trash.

    Raises `InputError` when the trash has none, `UsageError` when a run of its id is there again.
    """
    folder = _folder(runs_dir)
    trash = folder / FOLDER
    names = sorted(path.parent.name for path in trash.glob("*/run.json"))
    matching = [name for name in names if name == run_id] or [
        name for name in names if run_id and name.startswith(run_id)
    ]
    if len(matching) != 1:
        what = f"{len(matching)} runs that begin with" if matching else "no run"
        raise InputError(f"the trash {trash} has {what} {run_id!r}")
    source = trash / matching[0]
    was = check_run_id(str(_mark(source).get("id") or source.name))
    target = folder / was
    if target.exists():
        raise UsageError(f"there is a run {was!r} in {folder} again: delete or move it first")
    try:
        os.rename(source, target)
    except OSError as error:
        raise TritpressError(f"{source} cannot be moved to {target}: {error.strerror}") from None
    (target / MARK).unlink(missing_ok=True)
    return RunDirectory(target)


def _folder(runs_dir: str | Path | None) -> Path:
    return Path(runs_dir) if runs_dir is not None else default_runs_dir()


def _deleted(mark: dict[str, Any]) -> float | None:
    t = mark.get("t")
    return float(t) if isinstance(t, int | float) else None


def _mark(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
