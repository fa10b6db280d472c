"""A finished run with everything a report can show: details, custom metrics, a report.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

from dashboard_log import events, make_run
from tritpress.events import EventWriter
from tritpress.runs.directory import RunDirectory

METRIC = "validation/accuracy"


def write_whole_run(
    runs_dir: Path, run_id: str, *, name: str = "Whole one", steps: int = 120
) -> RunDirectory:
    """Six layers; the custom metric has values that are no numbers between those that are."""
    run = make_run(runs_dir, run_id, name=name)
    writer = EventWriter(run.path)
    for kind, fields in events(run, layers=6, steps=steps, name=name, details=True):
        if kind == "run.finished":
            for step, value in enumerate([0.5, math.nan, 0.25, math.inf, 0.125]):
                writer.emit("metric", name=METRIC, value=value, step=step)
        writer.emit(kind, **fields)
    writer.close()
    report = {
        "versions": {"torch": "2.15"},
        "machine": {"processor": "a processor", "cores": 2},
        "text": {"source": "the library", "held_out_sha256": "ab" * 32},
    }
    run.report_path.write_text(json.dumps(report))
    run.update_run(status="finished", exit_code=0)
    return run
