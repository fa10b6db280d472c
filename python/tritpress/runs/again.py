"""Pressing single tensors of a run again, finished or not: what has to be forgotten before it is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from tritpress.errors import UsageError
from tritpress.formats.store import TensorStore
from tritpress.runs.directory import RunDirectory
from tritpress.runs.launch import resume
from tritpress.runs.liveness import is_alive


def press_again(run: RunDirectory, tensors: Sequence[str]) -> RunDirectory:
    """Forget those tensors' codes and start a worker that presses them anew by the run's own plan.

    Everything made from the codes (training, outputs, validation) is done again too. Raises `UsageError` for
    a tensor that is none of the run's and for a run that is at work or has not come to its plan.
    """
    if is_alive(run):
        raise UsageError(f"run {run.id} is at work: stop it before tensors are pressed again")
    plan = run.work / "plan.json"
    if not plan.is_file():
        raise UsageError(f"run {run.id} has not pressed anything yet: resume it without --press-again")
    known = json.loads(plan.read_text(encoding="utf-8"))["tensors"]
    for name in tensors:
        if name not in known:
            raise UsageError(f"--press-again {name}: run {run.id} has no such tensor")
    for step in (4, 5, 6):  # records first: a crash in between leaves a run that does these steps again
        (run.work / f"step{step}.json").unlink(missing_ok=True)
    store = TensorStore(run.work / "tensors")
    for name in tensors:
        store.remove(name)
    for folder in ("finetuned", "fine-tuning"):  # trained from the codes that are forgotten
        shutil.rmtree(run.work / folder, ignore_errors=True)
    for file in ("fine-tuning.json", "finetuned-rest.safetensors"):
        (run.work / file).unlink(missing_ok=True)
    if run.read_run().get("status") == "finished":
        run.update_run(status="stopped")
    return resume(run)
