"""A worker process around a small pipeline made for the tests of runs and command line.

`python tests/runs_helper.py RUN_PATH` is the worker; `use(monkeypatch)` makes `launch` start it. What the
pipeline does is said by the run's `config.seed` (see `PIPELINES`).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

SLOW, FAST, FAILS, CRASHES, WRONG_OPTION, FULL_DISK, GATE_FAILS, SLOWER = 0, 1, 2, 3, 4, 5, 6, 7
UNJUDGED, CHECK_FAILS = 8, 9


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `launch` and `resume` start this file as the worker."""
    monkeypatch.setattr(
        "tritpress.runs.launch.worker_command", lambda run: [sys.executable, __file__, str(run.path)]
    )


def tiny_model(folder: Path) -> Path:
    """A directory that passes for a model at first sight."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def pipeline(config, run, ctx) -> dict:
    """Ten tensors, each kept in the work folder; a resumed run takes up where the last one was."""
    from tritpress.errors import InputError, UsageError

    run.choose(threads=2, number_format="float32" if not run.chosen else "something else")
    if config.seed == FAILS:
        raise InputError("the tensor a.weight holds a NaN: give a model without")
    if config.seed == CRASHES:
        raise ZeroDivisionError("of all things\nin two lines")
    if config.seed == WRONG_OPTION:
        raise UsageError("--device cuda: there is no CUDA device")
    if config.seed == FULL_DISK:
        raise OSError(28, "No space left on device", "out/model.safetensors")
    out = Path(run.read_run()["out"])
    ctx.emit("step.started", step=4, name="ternarization")
    for i in range(10):
        kept = run.work / f"tensor{i}"
        if not kept.exists():
            if config.seed in (SLOW, SLOWER):
                time.sleep(0.1 if config.seed == SLOW else 0.6)
            kept.write_text("codes")
            ctx.emit("layer.finished", name=f"t{i}", layer=i, kind="q", rows=4, cols=4, planes=1, bits=2.25)
            ctx.emit("step.progress", step=4, done=i + 1, total=10, detail=f"t{i}")
        ctx.check()
    ctx.emit("step.finished", step=4, name="ternarization", seconds=1.0, skipped=None)
    gate = {
        "name": "ratio",
        "target": 6.0,
        "actual": 5.0,
        "passed": config.seed != GATE_FAILS,
        "advice": "less",
    }
    if config.seed in (UNJUDGED, CHECK_FAILS):
        gate |= {"actual": None, "passed": None, "advice": "not measured: evaluation switched off"}
    ctx.emit("gate", **gate)
    report = {"run": run.id, "gates": [gate], "chosen": run.chosen}
    if config.seed == CHECK_FAILS:
        report["handoff"] = [
            {"name": "size on disk", "passed": None, "detail": "not checked"},
            {"name": "tokenizer round trips", "passed": False, "detail": "it differs"},
        ]
        ctx.emit("handoff", items=report["handoff"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report))
    return report


if __name__ == "__main__":
    from tritpress.runs.directory import RunDirectory
    from tritpress.runs.worker import work

    sys.exit(work(RunDirectory(sys.argv[1]), pipeline))
