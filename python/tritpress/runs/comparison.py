"""Two to six runs side by side: settings that differ, figures, gates. Base install only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LEAST, MOST = 2, 6

Better = Literal["low", "high"] | None


@dataclass(frozen=True)
class Side:
    """One of the runs: its id, name, status and state."""

    id: str
    name: str
    status: str
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting in each run, in their order."""

    key: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values[1:])


@dataclass(frozen=True)
class Figure:
    """One figure in each run; `best` are the places of the best ones, empty where none is better."""

    key: str
    title: str
    better: Better
    values: tuple[float | None, ...]
    intervals: tuple[tuple[float, float] | None, ...] = ()

    @property
    def best(self) -> tuple[int, ...]:
        known = [value for value in self.values if value is not None]
        if self.better is None or len(known) < 2 or min(known) == max(known):
            return ()
        wanted = min(known) if self.better == "low" else max(known)
        return tuple(place for place, value in enumerate(self.values) if value == wanted)


FIGURES: tuple[tuple[str, str, Better, tuple[str, ...]], ...] = (
    ("bytes", "Size packed", "low", ("evaluations", "packed", "bytes")),
    ("ratio_file", "Ratio, file", "high", ("figures", "ratio_file")),
    ("ratio_layers", "Ratio, pressed tensors", "high", ("figures", "ratio_layers")),
    ("ratio_disk", "Ratio, on disk", "high", ("figures", "ratio_disk")),
    ("bits_per_weight", "Bits a weight", "low", ("figures", "bits_per_weight")),
    ("planes_mean", "Planes", None, ("figures", "planes_mean")),
    ("sparsity", "Sparsity", None, ("figures", "sparsity")),
    ("perplexity_before", "Perplexity, original", None, ("evaluations", "before", "perplexity")),
    ("perplexity", "Perplexity, packed", "low", ("evaluations", "packed", "perplexity")),
    ("perplexity_change", "Perplexity change", "low", ("figures", "perplexity_change")),
    ("top1", "Top-1, packed", "high", ("evaluations", "packed", "top1")),
    ("accuracy_kept", "Top-1 kept, packed", "high", ("figures", "accuracy_kept")),
    ("kl", "KL divergence", "low", ("evaluations", "packed", "kl")),
    ("agreement", "Same top-1 as the original", "high", ("evaluations", "packed", "agreement")),
    ("latency_ms", "Latency, packed", "low", ("evaluations", "packed", "latency_ms")),
    ("tokens_per_s", "Evaluation speed, packed", "high", ("evaluations", "packed", "tokens_per_s")),
)
"""Key, title, which is better, and where it stands in a run's state."""

DEQUANTIZED = "_dequantized"
"""Ends the key of a figure of the dequantized model; before it stands the packed model's."""

OF_DEQUANTIZED: tuple[tuple[str, str, Better], ...] = (
    ("bytes", "Size", "low"),
    ("perplexity", "Perplexity", "low"),
    ("top1", "Top-1", "high"),
    ("kl", "KL divergence", "low"),
    ("agreement", "Same top-1", "high"),
    ("latency_ms", "Latency", "low"),
    ("tokens_per_s", "Evaluation speed", "high"),
    ("memory_bytes", "Memory", "low"),
)

OF_TASK = "task:"
"""Begins the key of the packed model's result in one task."""

WHERE_KNOWN: tuple[tuple[str, str, Better, tuple[str, ...]], ...] = (
    ("tasks_kept", "Accuracy kept, tasks", "high", ("tasks", "accuracy_kept")),
    ("memory_bytes_before", "Memory, original", None, ("evaluations", "before", "memory_bytes")),
    ("memory_bytes", "Memory, packed", "low", ("evaluations", "packed", "memory_bytes")),
    *(
        (f"{key}{DEQUANTIZED}", f"{title}, dequantized", better, ("evaluations", "dequantized", key))
        for key, title, better in OF_DEQUANTIZED
    ),
)
"""Further figures, left out where no run has them."""


def shown_as(key: str) -> str:
    """The key of the figure that has the same unit: the mean of the tasks for a task, the packed model's."""
    return "tasks_kept" if key.startswith(OF_TASK) else key.removesuffix(DEQUANTIZED)


def settings(sides: Sequence[Side]) -> list[Setting]:
    """The model and every setting; those that differ first, in their own order."""
    rows = [Setting("model", tuple((side.state.get("model") or {}).get("path") for side in sides))]
    keys = dict.fromkeys(key for side in sides for key in side.state.get("config") or {})
    rows += [Setting(key, tuple((side.state.get("config") or {}).get(key) for side in sides)) for key in keys]
    return sorted(rows, key=lambda row: not row.differs)


def figures(sides: Sequence[Side]) -> list[Figure]:
    """Every figure, those of `WHERE_KNOWN` last; None where a run has not measured it (yet)."""
    rows = []
    for key, title, better, place in FIGURES:
        values = tuple(_number(_at(side.state, place)) for side in sides)
        if key == "bytes":
            values = tuple(_packed_bytes(side.state, value) for side, value in zip(sides, values))
        intervals: tuple[tuple[float, float] | None, ...] = ()
        if key == "perplexity_change":
            intervals = tuple(_interval(side.state) for side in sides)
        rows.append(Figure(key, title, better, values, intervals))
    rows.append(Figure("seconds", "Time of the steps", "low", tuple(_seconds(side.state) for side in sides)))
    further = [
        Figure(key, title, better, tuple(_number(_at(side.state, place)) for side in sides))
        for key, title, better, place in WHERE_KNOWN
    ]
    further += [
        Figure(OF_TASK + name, f"{name}, packed", "high", tuple(_of_task(side.state, name) for side in sides))
        for name in dict.fromkeys(str(r.get("task")) for side in sides for r in task_results(side.state))
    ]
    return rows + [row for row in further if any(value is not None for value in row.values)]


def gates(sides: Sequence[Side]) -> list[tuple[str, tuple[Mapping[str, Any] | None, ...]]]:
    """Each gate's event in every run, None where it is not judged (yet)."""
    names = dict.fromkeys(
        [*("ratio", "accuracy", "perplexity", "sparsity", "gradient_flow")]
        + [name for side in sides for name in side.state["gates"]]
    )
    return [(name, tuple(side.state["gates"].get(name) for side in sides)) for name in names]


def comparison(sides: Sequence[Side]) -> dict[str, Any]:
    """All of it as plain data, for `--json`."""
    return {
        "runs": [{"id": side.id, "name": side.name, "status": side.status} for side in sides],
        "settings": [
            {"key": row.key, "differs": row.differs, "values": list(row.values)} for row in settings(sides)
        ],
        "figures": [
            {
                "key": row.key,
                "title": row.title,
                "better": row.better,
                "values": list(row.values),
                "best": [sides[place].id for place in row.best],
                **({"intervals": [list(i) if i else None for i in row.intervals]} if row.intervals else {}),
            }
            for row in figures(sides)
        ],
        "gates": [
            {
                "name": name,
                "passed": [None if gate is None else gate.get("passed") for gate in found],
                "actual": [None if gate is None else gate.get("actual") for gate in found],
                "target": [None if gate is None else gate.get("target") for gate in found],
            }
            for name, found in gates(sides)
        ],
    }


def _at(state: Mapping[str, Any], place: Sequence[str]) -> Any:
    found: Any = state
    for key in place:
        found = (found or {}).get(key)
    return found


def task_results(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of the run's tasks, one a task: task, metric, original, packed, kept, documents."""
    return list((state.get("tasks") or {}).get("results") or ())


def _of_task(state: Mapping[str, Any], task: str) -> float | None:
    found = (r.get("packed") for r in task_results(state) if str(r.get("task")) == task)
    return _number(next(found, None))


def _packed_bytes(state: Mapping[str, Any], measured: float | None) -> float | None:
    return measured if measured is not None else _number(state["figures"].get("packed_bytes"))


def _seconds(state: Mapping[str, Any]) -> float | None:
    """Time of all steps, once the last one is over."""
    steps = state["steps"]
    if any(step["state"] not in ("done", "skipped") for step in steps):
        return None
    return float(sum(step["seconds"] or 0.0 for step in steps))


def _interval(state: Mapping[str, Any]) -> tuple[float, float] | None:
    found = state["figures"].get("perplexity_interval")
    if isinstance(found, list | tuple) and len(found) == 2:
        low, high = _number(found[0]), _number(found[1])
        if low is not None and high is not None:
            return low, high
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
