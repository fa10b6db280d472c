"""The list of runs as data."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig

SHOWN = 50

WORDS = {
    "created": ("Starting", "live", "●"),
    "running": ("Running", "live", "●"),
    "paused": ("Paused", "warning", "❚❚"),
    "finished": ("Finished", "good", "✓"),
    "failed": ("Failed", "bad", "✕"),
    "died": ("Worker gone", "bad", "✕"),
    "stopped": ("Stopped", "warning", "■"),
}


@dataclass(frozen=True)
class RunLine:
    id: str
    name: str
    label: str
    tone: str
    mark: str
    model: str
    ratio: str
    bits: str
    perplexity: str
    gates: str
    started: str


def run_lines(runs: list[dict[str, Any]]) -> list[RunLine]:
    """The newest runs, those at work on top."""
    first = {"running": 0, "paused": 0, "created": 0}
    ordered = sorted(runs, key=lambda run: first.get(run.get("status") or "", 1))
    return [_line(run) for run in ordered[:SHOWN]]


def _line(run: dict[str, Any]) -> RunLine:
    label, tone, mark = WORDS.get(run.get("status") or "", (str(run.get("status")), "neutral", "○"))
    if run.get("status") == "finished" and False in _verdicts(run.get("gates")):
        tone, mark = "warning", "!"
    model = run.get("model")
    path = model.get("path") if isinstance(model, dict) else model
    started = run.get("started")
    return RunLine(
        str(run["id"]),
        str(run.get("name") or run["id"]),
        label,
        tone,
        mark,
        os.path.basename(str(path).rstrip("/")) if path else fig.NOTHING,
        fig.ratio(run.get("ratio_file")),
        f"{run['bits_per_weight']:.2f}" if fig.known(run.get("bits_per_weight")) else fig.NOTHING,
        fig.change(run.get("perplexity_change")),
        _gates(run.get("gates")),
        time.strftime("%d %b %H:%M", time.localtime(started)) if fig.known(started) else fig.NOTHING,
    )


def _gates(gates: Any) -> str:
    verdicts = _verdicts(gates)
    if not verdicts:
        return fig.NOTHING
    passed = sum(verdict is True for verdict in verdicts)
    return f"{passed} of {len(verdicts)} pass"


def _verdicts(gates: dict[str, bool | None] | None) -> list[bool | None]:
    return list((gates or {}).values())


def run_options(runs: list[dict[str, Any]], open_run: str | None) -> dict[str, str]:
    """Names for the run selector: label to run id, newest first, "" for a new run."""
    options = {"New run": ""}
    for line in run_lines(runs):
        label = f"{line.mark} {line.name} · {line.started}"
        options[label if label not in options else f"{label} ({line.id})"] = line.id
    if open_run and open_run not in options.values():
        options[open_run] = open_run
    return options
