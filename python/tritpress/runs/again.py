"""Pressing single tensors of a run again, finished or not: what has to be forgotten before it is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritpress.errors import InputError, UsageError
from tritpress.formats.output import write_atomically
from tritpress.formats.store import TensorStore
from tritpress.runs.directory import REMOTE, RunDirectory
from tritpress.runs.launch import resume
from tritpress.runs.liveness import is_alive


def press_again(run: RunDirectory, tensors: Sequence[str]) -> RunDirectory:
    """Forget those tensors' codes and start a worker that presses them anew by the run's own plan.

    In a calibrated run so are the tensors of their block and of all later ones: these were fitted to what the
    forgotten ones gave. Everything made from the codes (training, outputs, validation) is done again too.
    Raises `UsageError` for a tensor that is none of the run's and for a run that is at work, is worked on
    elsewhere or has not come to its plan.
    """
    if run.read_run().get("origin") == REMOTE:
        raise UsageError(f"run {run.id} is worked on elsewhere: its tensors can only be pressed again there")
    if is_alive(run):
        raise UsageError(f"run {run.id} is at work: stop it before tensors are pressed again")
    path = run.work / "plan.json"
    if not path.is_file():
        raise UsageError(f"run {run.id} has not pressed anything yet: resume it without --press-again")
    plan = json.loads(path.read_text(encoding="utf-8"))
    known: dict[str, dict[str, Any]] = plan["tensors"]
    for name in tensors:
        if name not in known:
            raise UsageError(f"--press-again {name}: run {run.id} has no such tensor")
    written = _read_written(run.work / "written.json")
    for step in (4, 5, 6):  # records first: a crash in between leaves a run that does these steps again
        (run.work / f"step{step}.json").unlink(missing_ok=True)
    store = TensorStore(run.work / "tensors")
    for name in _with_later(known, tensors) if plan.get("basis") == "calibrated" else tensors:
        store.remove(name)
    for folder in ("finetuned", "fine-tuning"):  # trained from the codes that are forgotten
        shutil.rmtree(run.work / folder, ignore_errors=True)
    for file in ("fine-tuning.json", "finetuned-rest.safetensors"):
        (run.work / file).unlink(missing_ok=True)
    if written is not None:
        _know_outputs_again(run.work / "written.json", written)
    if run.read_run().get("status") == "finished":
        run.update_run(status="stopped")
    return resume(run)


def _with_later(known: dict[str, dict[str, Any]], tensors: Sequence[str]) -> list[str]:
    layers = [known[name]["layer"] for name in tensors if known[name]["layer"] is not None]
    first = min(layers, default=2**31)
    return [n for n, p in known.items() if n in tensors or (p["layer"] is not None and p["layer"] >= first)]


def _read_written(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); remove it and the outputs, then press again"
        ) from None


def _know_outputs_again(path: Path, written: dict[str, Any]) -> None:
    """The outputs are this run's to replace, damaged or not, while they hold the files that it wrote."""
    for folder, listed in written.items():
        names = {name for name, *_ in listed} if isinstance(listed, list) else None
        there = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        if names == {str(p.relative_to(folder)) for p in there}:
            written[folder] = [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_ino] for p in there]
    write_atomically(path, json.dumps(written, indent=1))
