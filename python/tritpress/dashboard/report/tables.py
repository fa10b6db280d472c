"""The tables of a run: as words for the report, as plain numbers for CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.sections import shareable
from tritpress.dashboard.report.svg import clean
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.quality import gate_cards
from tritpress.dashboard.views.status import STEP_TITLES
from tritpress.events.snapshot import weights_of
from tritpress.runs.comparison import task_results
from tritpress.runs.diff import tensor_diffs

WHENS = ("before", "packed", "dequantized")


OF_A_RUN = (
    "id", "name", "tags", "note", "status", "model", "created", "started", "updated", "seconds", "ratio_file",
    "bits_per_weight", "planes_mean", "perplexity_change", "accuracy_kept", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """`rows` of text or numbers under `head`; None stands for what is not known."""

    key: str
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def csv(self) -> str:
        """As CSV: numbers unrounded, nothing where nothing is known."""
        return csv_text(self.head, self.rows)


def csv_text(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV of RFC 4180. Text that a spreadsheet would run as a formula is told apart by an apostrophe."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(map(_cell, head))
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def runs_csv(runs: Sequence[dict[str, Any]]) -> str:
    """Runs as `list_runs` tells them, a line each; a gate that was not measured stays empty."""
    gates = list(dict.fromkeys(name for run in runs for name in run.get("gates") or {}))
    rows = [
        (
            *(", ".join(run.get(key) or ()) if key == "tags" else run.get(key) for key in OF_A_RUN),
            *((run.get("gates") or {}).get(name) for name in gates),
        )
        for run in runs
    ]
    return csv_text((*OF_A_RUN, *(f"gate_{name}" for name in gates)), rows)


def tables(facts: Facts) -> list[Table]:
    """Every table that has rows."""
    state = facts.state
    makers = (_figures, _gates, _layers, _training, _metrics, _gradients, _steps, _outputs, _handoff, _config,
              _alerts)  # fmt: skip
    return [table for table in (make(facts, state) for make in makers) if table.rows]


def _figures(facts: Facts, state: dict[str, Any]) -> Table:
    found: dict[str, Any] = state["evaluations"]
    keys = list(dict.fromkeys(key for when in WHENS for key in found.get(when) or {}))
    rows = [(key, *((found.get(when) or {}).get(key) for when in WHENS)) for key in keys]
    rows += [(key, None, value, None) for key, value in state["figures"].items() if fig.known(value)]
    for key in ("perplexity_interval", "accuracy_interval"):
        interval = state["figures"].get(key)
        if isinstance(interval, list | tuple):
            rows += [(f"{key}_{end}", None, value, None) for end, value in zip(("low", "high"), interval)]
    tasks = state.get("tasks")
    if tasks is not None:
        ends = zip(("low", "high"), tasks.get("interval") or ())
        rows += [("tasks_accuracy_kept", None, tasks.get("accuracy_kept"), None)]
        rows += [(f"tasks_interval_{end}", None, value, None) for end, value in ends]
        rows += [
            (f"task_{r.get('task')}_{r.get('metric')}", r.get("original"), r.get("packed"), None)
            for r in task_results(state)
        ]
    return Table("before-after", ("figure", "original", "packed", "dequantized"), tuple(rows))


def _gates(facts: Facts, state: dict[str, Any]) -> Table:
    rows = []
    for card in gate_cards(state):
        gate = state["gates"].get(card.name)
        if gate is not None:
            target = gate.get("target")
            low, high = target if isinstance(target, list | tuple) and len(target) == 2 else (target, None)
            rows.append((card.name, low, high, gate.get("actual"), card.word, gate.get("advice")))
    return Table("gates", ("gate", "target", "target_high", "actual", "verdict", "advice"), tuple(rows))


def _layers(facts: Facts, state: dict[str, Any]) -> Table:
    head = ("name", "layer", "kind", "rows", "cols", "weights", "planes", "group_size", "bits", "ratio",
            "sparsity", "zeros_all_planes", "mse", "relative_error", "cosine", "sign_flips", "threshold_used",
            "gradient_norm")  # fmt: skip
    diffs = {diff.name: diff for diff in tensor_diffs(state)}
    rows = []
    for name, layer in state["layers"].items():
        values = {
            **layer,
            "name": name,
            "kind": diffs[name].kind,
            "weights": weights_of(layer),
            "gradient_norm": state["gradients"].get(name),
        }
        rows.append(tuple(values.get(key) for key in head))
    return Table("layers", head, tuple(rows))


def _training(facts: Facts, state: dict[str, Any]) -> Table:
    points = list(state["finetune"])
    last = state.get("finetune_last")
    if last and points and last.get("step", 0) > points[-1].get("step", 0):
        points.append(last)
    head = tuple(dict.fromkeys(("step", *(key for point in points for key in point))))
    return Table("training", head, tuple(tuple(point.get(key) for key in head) for point in points))


def _metrics(facts: Facts, state: dict[str, Any]) -> Table:
    rows = [
        (name, *(list(point) + [None] * 4)[:4])
        for name, points in state["metrics"].items()
        for point in points
    ]
    return Table("custom-metrics", ("metric", "time", "value", "step", "tokens"), tuple(rows))


def _gradients(facts: Facts, state: dict[str, Any]) -> Table:
    original = state.get("gradients_original") or {}
    rows = [(name, norm, original.get(name)) for name, norm in state["gradients"].items()]
    return Table("gradient-norms", ("name", "norm", "norm_in_the_original"), tuple(rows))


def _steps(facts: Facts, state: dict[str, Any]) -> Table:
    rows = [
        (step["n"], STEP_TITLES[step["n"]][0], step["state"], step["seconds"], step["reason"])
        for step in state["steps"]
    ]
    return Table("steps", ("step", "name", "state", "seconds", "reason"), tuple(rows))


def _outputs(facts: Facts, state: dict[str, Any]) -> Table:
    rows = [(o.get("path"), o.get("bytes"), o.get("sha256")) for o in state["outputs"]]
    return Table("outputs", ("path", "bytes", "sha256"), tuple(rows))


def _handoff(facts: Facts, state: dict[str, Any]) -> Table:
    rows = [(item.get("name"), item.get("passed"), item.get("detail")) for item in state["handoff"]]
    return Table("handoff", ("check", "passed", "detail"), tuple(rows))


def _config(facts: Facts, state: dict[str, Any]) -> Table:
    rows = [(key, shareable(key, value)) for key, value in facts.config.items()]
    return Table("configuration", ("setting", "value"), tuple(rows))


def _alerts(facts: Facts, state: dict[str, Any]) -> Table:
    keys = ("t", "level", "rule", "message", "value", "limit", "step", "name")
    rows = [tuple(alert.get(key) for key in keys) for alert in state["alerts"]]
    return Table("alerts", ("time", *keys[1:]), tuple(rows))
