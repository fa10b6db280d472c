"""The seven steps in their order: what is done, what is skipped and why, what a resumed run finds on disk.

load -> baseline -> calibration -> ternarization -> fine-tuning -> outputs -> validation. The steps themselves
are functions of `tritpress.steps`; every one leaves what it made in the run's work folder, so that a run that
was stopped or killed goes on where it was and ends with the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritpress import steps
from tritpress.allocator import give_back_freed
from tritpress.config import CompressionConfig
from tritpress.errors import StopRequested
from tritpress.events.context import RunContext
from tritpress.report import build_report

STEPS: tuple[tuple[str, Callable[[steps.Work], str | None]], ...] = (
    ("load", steps.load),
    ("baseline", steps.baseline),
    ("calibration", steps.calibration),
    ("ternarization", steps.ternarization),
    ("fine-tuning", steps.fine_tuning),
    ("outputs", steps.outputs),
    ("validation", steps.validation),
)
"""Name and function of each step. A function returns None when it worked, or why it was skipped."""


def run(config: CompressionConfig, directory: steps.RunFolder, context: RunContext) -> dict[str, Any]:
    """Carry out (or go on with) the run in `directory` and return the report (design of `report.json`).

    Steps 1 to 6 leave a record in the work folder when they end and are not done again by a resumed run;
    within steps 4 and 5 finished tensors and training steps are kept too. Raises `TritpressError` with one
    sentence when something cannot be done and `StopRequested` when the run was asked to stop.
    """
    work = steps.Work(config=config, directory=directory, context=context)
    for number, (name, function) in enumerate(STEPS, start=1):
        context.check()
        record = _read_record(work.folder, number)
        # the first step opens what later steps need and the last one judges what lies on disk: always done
        reused = record is not None and 1 < number < 7
        if number == 6 and reused:
            reused = steps.both_lie_there(work)
        context.emit("step.started", step=number, name=name, reused=reused)
        if reused:
            assert record is not None
            steps.recall(work, number)
        else:
            record = _carry_out(work, number, name, function, record)
            give_back_freed()  # no step needs what the one before it has done with
        work.records.append(record)
        context.emit(
            "step.finished",
            step=number,
            name=name,
            seconds=record["seconds"],
            skipped=record["skipped"],
            reused=reused,
        )
    report = build_report(work)
    steps.publish_report(work, report)
    steps.drop_unasked(work)
    return report


def _carry_out(
    work: steps.Work,
    number: int,
    name: str,
    function: Callable[[steps.Work], str | None],
    earlier: dict[str, Any] | None,
) -> dict[str, Any]:
    before = _read_partial(work.folder, number) if earlier is None else 0.0
    started = _worked(work.context)
    try:
        skipped = function(work)
    except StopRequested:
        _write_json(
            work.folder / f"step{number}.partial.json", {"seconds": before + _worked(work.context) - started}
        )
        raise
    seconds = before + _worked(work.context) - started
    record = {"n": number, "name": name, "seconds": round(seconds, 3), "skipped": skipped}
    _write_json(work.folder / f"step{number}.json", record)
    return record


def _worked(context: RunContext) -> float:
    """Seconds on a clock that stands still while the run is paused (only a worker's context pauses)."""
    return time.perf_counter() - float(getattr(context, "paused_seconds", 0.0))


def _read_record(folder: Path, number: int) -> dict[str, Any] | None:
    path = folder / f"step{number}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _read_partial(folder: Path, number: int) -> float:
    path = folder / f"step{number}.partial.json"
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


def _write_json(path: Path, value: Any) -> None:
    steps.write_atomically(path, json.dumps(value, indent=1))
