"""A worker whose pipeline plays the events in $TRITPRESS_SCRIPT: [[type, fields, seconds to wait], ...].

`python tests/alerts_helper.py RUN_PATH` is the worker; `play(monkeypatch, runs_dir, script)` starts one. In
fields the texts "NaN" and "Infinity" stand for those numbers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest


def play(monkeypatch: pytest.MonkeyPatch, folder: Path, script: list[list[Any]], **config: Any) -> Any:
    """Launch a run with that script."""
    import runs_helper
    from tritpress.config import CompressionConfig
    from tritpress.runs.launch import launch

    monkeypatch.setattr(
        "tritpress.runs.launch.worker_command", lambda run: [sys.executable, __file__, str(run.path)]
    )
    monkeypatch.setenv("TRITPRESS_SCRIPT", json.dumps(script))
    model = folder / "model"
    if not model.exists():
        runs_helper.tiny_model(model)
    return launch(model, None, CompressionConfig(**config), folder / "runs")


def pipeline(config: Any, run: Any, ctx: Any) -> dict[str, Any]:
    gates = []
    for kind, fields, wait in json.loads(os.environ["TRITPRESS_SCRIPT"]):
        if kind == "kill":  # as a power cut would
            os.kill(os.getpid(), signal.SIGKILL)
        fields = {
            key: float(value) if value in ("NaN", "Infinity") else value for key, value in fields.items()
        }
        ctx.emit(kind, **fields)
        if kind == "gate":
            gates.append(fields)
        ends = time.monotonic() + wait
        while time.monotonic() < ends:
            time.sleep(0.02)
            ctx.check()
    return {"run": run.id, "gates": gates}


if __name__ == "__main__":
    from tritpress.runs.directory import RunDirectory
    from tritpress.runs.worker import work

    sys.exit(work(RunDirectory(sys.argv[1]), pipeline))
