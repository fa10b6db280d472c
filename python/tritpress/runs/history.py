"""The runs of a folder, from run.json and snapshot.json alone: no event is replayed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritpress.errors import TritpressError
from tritpress.events.reader import StateReader
from tritpress.events.schema import ENDED
from tritpress.events.snapshot import State, accuracy_judged, load_snapshot, worked
from tritpress.runs.directory import RunDirectory, default_runs_dir, write_json
from tritpress.runs.labels import load_labels
from tritpress.runs.liveness import is_alive_record

log = logging.getLogger(__name__)

INDEX = ".index.json"
INDEX_VERSION = 5
SAVE_AFTER = 50
"""So many runs that are over are read before what is known of them is kept in the folder."""

FILES = ("run.json", "snapshot.json", "labels.json")
TIMELESS = ("seed", "overwrite", "alerts", "alert_webhook", "alert_command", "target_ratio", "plan",
            "sparsity", "threshold", "learning_rate", "weight_decay",
            "grokfast_lambda")  # fmt: skip
"""Settings that hardly change how long a run takes."""

LIFE = ("status", "pid", "host", "process_start", "launched", "heartbeat")


def list_runs(runs_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """A summary of each run, newest first; folders that are no runs, or cannot be read, are passed over.

    Keys: id, name, tags, note, path, status, alive, after, origin (local or remote), created, started,
    updated, seconds, step_seconds (of each of the seven, None where it is not over), alike (the same for runs
    of one model whose settings let them take about as long), model, out, step (1-7 or None), step_name,
    layers_done, layers_total, ratio_file, bits_per_weight, planes_mean, perplexity_change, accuracy_kept (as
    its gate reads it: of the tasks where there are any), gates {name: true | false | null}, error, exit_code.
    `status` is run.json's, except that a run whose worker is gone without a word is "died". Name,
    tags and note are those of `labels.json` where there is one.
    """
    return RunIndex(runs_dir).list()


class RunIndex:
    """`list_runs` again and again: a run is read only when one of its files is another than last time.

    What is known of runs that are over is also kept in `RUNS/.index.json` once there are many of them, so
    that a folder of thousands lists quickly in a new process. The file can be deleted at any time.
    """

    def __init__(self, runs_dir: str | Path | None = None) -> None:
        self.runs_dir = Path(runs_dir) if runs_dir is not None else default_runs_dir()
        self._known: dict[str, _Entry] | None = None
        self._unsaved = 0
        self._told: set[tuple[str, str]] = set()  # runs that cannot be read, and why
        self._lock = threading.Lock()

    def list(self) -> list[dict[str, Any]]:
        """As `list_runs`."""
        with self._lock:
            known = self._known if self._known is not None else self._load()
            found: dict[str, _Entry] = {}
            runs = []
            for folder in _folders(self.runs_dir):
                sign = _sign(folder)
                if sign is None:
                    continue
                entry = known.get(folder.name)
                try:
                    if entry is None or entry.sign != sign:
                        entry = _Entry(sign, *_read(RunDirectory(folder)))
                        self._unsaved += entry.over
                    found[folder.name] = entry
                    runs.append(_summary(str(self.runs_dir / folder.name), entry.record, entry.facts))
                except TritpressError:
                    continue
                except Exception as error:  # one odd run must not hide the others
                    which = (folder.name, repr(error))  # the sign of a run at work is another every second
                    if which not in self._told:
                        self._told.add(which)
                        log.warning("the run %s is left out of the list: %r", folder, error)
                    continue
            self._known = found
            if self._unsaved >= SAVE_AFTER:
                self._save(found)
        return sorted(runs, key=lambda run: (run["created"] or 0, run["id"]), reverse=True)

    def _load(self) -> dict[str, _Entry]:
        try:
            found = json.loads((self.runs_dir / INDEX).read_bytes())
            if found["v"] != INDEX_VERSION:
                return {}
            runs = found["runs"].items()
            return {name: _Entry(tuple(sign), record, facts) for name, (sign, record, facts) in runs}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _save(self, known: dict[str, _Entry]) -> None:
        over = {name: (entry.sign, entry.record, entry.facts) for name, entry in known.items() if entry.over}
        # A folder that may not be written to is listed all the same.
        with contextlib.suppress(OSError):
            write_json(self.runs_dir / INDEX, {"v": INDEX_VERSION, "runs": over})
        self._unsaved = 0


@dataclass(frozen=True)
class _Entry:
    sign: tuple[Any, ...]  # of the files that it was read from
    record: dict[str, Any]
    facts: dict[str, Any]

    @property
    def over(self) -> bool:
        return self.record.get("status") in ENDED


def summary(run: RunDirectory) -> dict[str, Any]:
    """One entry of `list_runs`. Raises `InputError` when run.json cannot be read."""
    return _summary(str(run.path), *_read(run))


def _folders(runs_dir: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(runs_dir) if not entry.name.startswith(".")]
    except OSError:
        return []


def _sign(folder: Path) -> tuple[Any, ...] | None:
    """Changes when a file of the run does; None for a folder that is no run."""
    sign: list[int] = []
    for name in FILES:
        try:
            found = os.stat(f"{folder}/{name}")
            sign += (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            if name == FILES[0]:
                return None
            sign.append(0)
    return tuple(sign)


def _read(run: RunDirectory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of run.json that says whether it lives, and what does not depend on that."""
    record = run.read_run()
    state = load_snapshot(run.snapshot_path) or {}
    labels = load_labels(run.path)
    figures = state.get("figures", {})
    steps = state.get("steps", [])
    running = next((step for step in steps if step["state"] in ("running", "failed")), None)
    started, updated = state.get("started"), state.get("updated")
    facts = {
        "name": labels.name or _text(record.get("name")),
        "tags": list(labels.tags),
        "note": labels.note,
        "after": record.get("after") or [],
        "origin": record.get("origin", "local"),
        "created": _number(record.get("created")),
        "started": started,
        "updated": updated,
        "seconds": worked(state, updated) if updated else None,
        "step_seconds": [_seconds(step) for step in steps],
        "alike": _alike(record.get("model"), state.get("config") or {}),
        "model": record.get("model"),
        "out": record.get("out"),
        "step": running["n"] if running else None,
        "step_name": running["name"] if running else None,
        "layers_done": len(state.get("layers", {})),
        "layers_total": len(state.get("targets", [])),
        **{
            key: figures.get(key)
            for key in ("ratio_file", "bits_per_weight", "planes_mean", "perplexity_change")
        },
        "accuracy_kept": accuracy_judged(state)[0],
        "gates": {name: gate.get("passed") for name, gate in state.get("gates", {}).items()},
        "error": _text(record.get("error")),
        "exit_code": record.get("exit_code"),
    }
    return {key: record.get(key) for key in LIFE}, facts


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _seconds(step: dict[str, Any]) -> float | None:
    return {"done": step["seconds"], "skipped": 0.0}.get(step["state"])


def _alike(model: Any, config: dict[str, Any]) -> str:
    told = {key: value for key, value in config.items() if key not in TIMELESS}
    return hashlib.sha256(json.dumps([model, told], sort_keys=True).encode()).hexdigest()[:16]


def _summary(path: str, record: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    alive = is_alive_record(record)
    return {
        "id": os.path.basename(path),
        "path": path,
        "status": status_of(record, alive),
        "alive": alive,
        **facts,
    }


def run_state(run: RunDirectory) -> State:
    """The run's state as of now: the snapshot and what came after it, "died" when its worker is gone."""
    reader = StateReader(run.path)
    reader.poll()
    record = run.read_run()
    if status_of(record, is_alive_record(record)) == "died":
        reader.state["status"] = "died"
    return reader.state


def status_of(record: dict[str, Any], alive: bool) -> str:
    """created, queued, running, paused, finished, failed, stopped; died: the worker ended without a word."""
    status = str(record.get("status", "created"))
    return "died" if status in ("created", "queued", "running", "paused") and not alive else status
