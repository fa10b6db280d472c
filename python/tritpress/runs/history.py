"""The runs of a folder, from run.json and snapshot.json alone: no event is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritpress.errors import TritpressError
from tritpress.events.reader import StateReader
from tritpress.events.snapshot import State, load_snapshot
from tritpress.runs.directory import RunDirectory, default_runs_dir
from tritpress.runs.liveness import is_alive_record


def list_runs(runs_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """A summary of each run, newest first; folders that are no runs are passed over.

    Keys: id, name, path, status, alive, created, started, updated, seconds, model, out, step (1-7 or None),
    step_name, layers_done, layers_total, ratio_file, bits_per_weight, planes_mean, perplexity_change,
    accuracy_kept, gates {name: true | false | null}, error, exit_code. `status` is run.json's, except that a
    run whose worker is gone without a word is "died".
    """
    directory = Path(runs_dir) if runs_dir is not None else default_runs_dir()
    summaries = []
    for path in directory.glob("*/run.json"):
        try:
            summaries.append(summary(RunDirectory(path.parent)))
        except TritpressError:
            continue
    return sorted(summaries, key=lambda run: (run["created"] or 0, run["id"]), reverse=True)


def summary(run: RunDirectory) -> dict[str, Any]:
    """One entry of `list_runs`. Raises `InputError` when run.json cannot be read."""
    record = run.read_run()
    state = load_snapshot(run.snapshot_path) or {}
    alive = is_alive_record(record)
    figures = state.get("figures", {})
    steps = state.get("steps", [])
    running = next((step for step in steps if step["state"] in ("running", "failed")), None)
    started, updated = state.get("started"), state.get("updated")
    return {
        "id": run.id,
        "name": record.get("name"),
        "path": str(run.path),
        "status": status_of(record, alive),
        "alive": alive,
        "created": record.get("created"),
        "started": started,
        "updated": updated,
        "seconds": updated - started if started and updated else None,
        "model": record.get("model"),
        "out": record.get("out"),
        "step": running["n"] if running else None,
        "step_name": running["name"] if running else None,
        "layers_done": len(state.get("layers", {})),
        "layers_total": len(state.get("targets", [])),
        **{
            key: figures.get(key)
            for key in ("ratio_file", "bits_per_weight", "planes_mean", "perplexity_change", "accuracy_kept")
        },
        "gates": {name: gate.get("passed") for name, gate in state.get("gates", {}).items()},
        "error": record.get("error"),
        "exit_code": record.get("exit_code"),
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
    """created, running, paused, finished, failed, stopped; or died: the worker ended without a word."""
    status = str(record.get("status", "created"))
    return "died" if status in ("created", "running", "paused") and not alive else status
