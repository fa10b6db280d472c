"""The state of a run, folded from its events, so that a late reader never replays all of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritpress.events.schema import COMMON_KEYS, SCHEMA_VERSION, STEP_NAMES, encode
from tritpress.events.series import add_point, new_book

log = logging.getLogger(__name__)

FINETUNE_POINTS = 2000
METRIC_POINTS = 2000
LOG_LINES = 200
ACKS = 50
ALERTS = 200

FIGURES = (
    "bytes",
    "bytes_fp32",
    "ratio_file",
    "ratio_layers",
    "ratio_disk",
    "bits_per_weight",
    "planes_mean",
    "sparsity",
    "zeros_all_planes",
    "perplexity_change",
    "perplexity_interval",
    "accuracy_kept",
    "accuracy_interval",
)

WORK = frozenset(
    (
        "step.started", "step.progress", "step.finished", "model", "plan", "figures", "handoff",
        "layer.started", "layer.finished", "evaluation", "finetune.step", "gradient", "tasks", "gate",
        "output", "metric",
    )
)  # fmt: skip
"""Types of which each says that the run is at work. Logs, alerts and answers to commands do not: a worker may
write them before it begins."""

MOST_TOLD = 100
"""At most so many different faults of events are logged in one process."""

State = dict[str, Any]
_told: set[tuple[str, str]] = set()


def initial_state(run: str = "") -> State:
    """The state before any event: plain JSON, no histograms in it ever."""
    return {
        "v": SCHEMA_VERSION,
        "run": run,
        "seq": 0,  # of the last event folded in; the first one is 1
        "offset": 0,  # bytes of events.jsonl folded in; kept by writer and reader
        "status": "created",
        "after": [],  # the runs that a queued one waits for
        "name": None,
        "error": None,
        "exit_code": None,
        "report": None,
        "started": None,
        "updated": None,
        "finished": None,
        "idle": 0.0,  # seconds in which no worker was at it, or one that was paused
        "idle_since": None,  # when the present pause began
        "worked_at": None,  # the last word of the work itself: commands are heard before it begins again
        "out": None,
        "remote_out": None,  # of a run that is worked on elsewhere: its folder there
        "model": None,
        "config": {},
        "targets": [],
        "plan": None,
        "steps": [
            {
                "n": n,
                "name": name,
                "state": "waiting",
                "started": None,
                "idle": 0.0,  # seconds of pauses since it started
                "seconds": None,
                "reason": None,
                "done": None,
                "total": None,
                "detail": None,
            }
            for n, name in enumerate(STEP_NAMES, 1)
        ],
        "layers": {},
        "current": None,
        "broke_at": None,  # the tensor that was at work when the run failed
        "evaluations": {},
        "figures": {},
        "finetune": [],
        "finetune_book": new_book(),
        "finetune_last": None,
        "gradients": {},
        "gradients_original": {},
        "tasks": None,  # lm-eval's, the packed model's results beside the original's
        "gates": {},
        "handoff": [],
        "outputs": [],
        "metrics": {},  # name -> [[time, value, training step, tokens], ...]
        "metric_books": {},
        "alerts": [],
        "log": [],
        "acks": {},
        "write_seconds": None,
    }


def fold(state: State, event: dict[str, Any], strict: bool = False) -> State:
    """Bring `event` into `state` (changed in place and returned).

    Deterministic: snapshot plus later events gives exactly what all events give. Unknown types and keys are
    passed over, and what a later version may write of a known type in another shape: the process's log says
    so once for each type and error. With `strict` that raises `LookupError`, `TypeError`, `ValueError` or
    `AttributeError`, and `state` is not to be used any more. `offset` is not touched: only who reads or
    writes the file knows it.
    """
    state["seq"] = event["seq"]
    state["run"] = event.get("run") or state["run"]
    if state["status"] in ("created", "queued") and event["type"] in WORK:
        _run_started(state, {"t": event["t"]})  # who pushes events may leave run.started out
    handler = _HANDLERS.get(event["type"])
    if handler is not None:
        try:
            handler(state, event)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if strict:
                raise
            _tell(state, event, error)
    state["updated"] = event["t"]
    if event["type"] in WORK or event["type"].startswith("run."):
        state["worked_at"] = event["t"]
    return state


def _tell(state: State, event: dict[str, Any], error: Exception) -> None:
    which = (event["type"], repr(error))
    if which not in _told and len(_told) < MOST_TOLD:
        _told.add(which)
        trace = error if log.isEnabledFor(logging.DEBUG) else None
        words = "event %s of run %s (%s) is passed over: %r"
        log.warning(words, event["seq"], state["run"], event["type"], error, exc_info=trace)


def worked(state: State, until: float) -> float | None:
    """Seconds at work until then: without pauses and what lay between two workers. None: never begun."""
    if state.get("started") is None:
        return None
    since = state.get("idle_since")
    end = until if since is None else min(since, until)
    return max(end - state["started"] - state.get("idle", 0.0), 0.0)


def step_worked(step: dict[str, Any], until: float, idle_since: float | None = None) -> float | None:
    """Seconds that a running step was at work until then, without pauses; `idle_since`: the run's. None: not
    begun.
    """
    if step.get("started") is None:
        return None
    end = until if idle_since is None else min(idle_since, until)
    return max(end - step["started"] - (step.get("idle") or 0.0), 0.0)


def accuracy_judged(state: State) -> tuple[float | None, Any, bool]:
    """(share kept, its interval, whether of tasks): what the accuracy gate reads, tasks where they are run.

    None while the tasks of a run that asks for them have no result; held-out top-1 of one that does not.
    """
    figures, tasks = state.get("figures") or {}, state.get("tasks")
    if tasks is not None:
        return tasks.get("accuracy_kept"), tasks.get("interval"), True
    if (state.get("config") or {}).get("tasks"):  # snapshots of older versions have the gate's figure alone
        return ((state.get("gates") or {}).get("accuracy") or {}).get("actual"), None, True
    return figures.get("accuracy_kept"), figures.get("accuracy_interval"), False


def weights_of(tensor: Mapping[str, Any]) -> int | None:
    """Weights of a tensor as an event tells of it, over all its experts; rows times columns where it does not
    say. None where those are not told either.
    """
    weights = _whole(tensor.get("weights"))
    return weights if weights is not None and weights > 0 else weights_of_one(tensor)


def weights_of_one(tensor: Mapping[str, Any]) -> int | None:
    """Rows times columns: weights of a tensor, of one expert where there are several. None where not told."""
    rows, cols = _whole(tensor.get("rows")), _whole(tensor.get("cols"))
    return rows * cols if rows is not None and cols is not None else None


def _whole(value: Any) -> int | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1 << 63:
        return None
    return int(value)


def load_snapshot(path: str | Path) -> State | None:
    """The snapshot at `path`, or None when there is none, it is damaged, or of a version not known here."""
    try:
        state = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
    if (
        not isinstance(state, dict)
        or state.get("v") != SCHEMA_VERSION
        or not isinstance(state.get("offset"), int)
    ):
        return None
    return {**initial_state(), **state}


def save_snapshot(path: str | Path, state: State) -> None:
    """Write `state` so that a reader sees the old one or the new one, never half of it."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(encode(state))
    os.replace(temporary, path)


def _fields(event: dict[str, Any], *without: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in COMMON_KEYS and key not in without}


def _texts(event: dict[str, Any], key: str) -> list[str]:
    found = event.get(key)
    if found is not None and not (isinstance(found, list) and all(isinstance(item, str) for item in found)):
        raise TypeError(f"{key!r} must be a list of texts")
    return found or []


def _parts(event: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = event.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in found
    ):
        raise TypeError(f"{key!r} must be a list of objects with names")
    return found


def _step(state: State, event: dict[str, Any]) -> dict[str, Any] | None:
    n = event.get("step")
    return state["steps"][n - 1] if isinstance(n, int) and 1 <= n <= len(STEP_NAMES) else None


def _end_running_step(state: State, becomes: str) -> None:
    for step in state["steps"]:
        if step["state"] == "running":
            step["state"] = becomes
    state["current"] = None


def _end_idle(state: State, event: dict[str, Any], since: float | None) -> None:
    if since is not None:
        state["idle"] += max(event["t"] - since, 0.0)
    state["idle_since"] = None


def _run_started(state: State, event: dict[str, Any]) -> None:
    if state["started"] is not None:
        _end_idle(state, event, state["idle_since"] or state["finished"] or state["worked_at"])
    _end_running_step(state, "waiting")  # of a worker that died
    for step in state["steps"]:
        if step["state"] == "failed":
            step["state"] = "waiting"
    state.update(status="running", error=None, exit_code=None, report=None, finished=None, broke_at=None)
    if state["started"] is None:
        state["started"] = event["t"]
    for key in ("config", "name", "out", "remote_out"):
        if event.get(key) is not None:
            state[key] = event[key]
    if state["model"] is None and event.get("model"):
        state["model"] = {"path": event["model"]}


def _run_queued(state: State, event: dict[str, Any]) -> None:
    state.update(status="queued", after=_texts(event, "after"))


def _run_paused(state: State, event: dict[str, Any]) -> None:
    if state["status"] != "paused":
        state.update(status="paused", idle_since=event["t"])


def _run_resumed(state: State, event: dict[str, Any]) -> None:
    state["status"] = "running"
    before = state["idle"]
    _end_idle(state, event, state["idle_since"])
    for step in state["steps"]:
        if step["state"] == "running":  # snapshots of older versions count no pauses of a step
            step["idle"] = step.get("idle", 0.0) + state["idle"] - before


def _run_finished(state: State, event: dict[str, Any]) -> None:
    _end_idle(state, event, state["idle_since"])
    state.update(
        status=event.get("status", "finished"),
        exit_code=event.get("exit_code"),
        report=event.get("report"),
        finished=event["t"],
        write_seconds=event.get("write_seconds"),
    )
    _end_running_step(state, "waiting")


def _run_failed(state: State, event: dict[str, Any]) -> None:
    _end_idle(state, event, state["idle_since"])
    state.update(
        status="failed",
        error=event.get("error"),
        exit_code=event.get("exit_code", 1),
        finished=event["t"],
        write_seconds=event.get("write_seconds"),
    )
    current = (state["current"] or {}).get("name")
    state["broke_at"] = current if current not in state["layers"] else None
    _end_running_step(state, "failed")


def _step_started(state: State, event: dict[str, Any]) -> None:
    step = _step(state, event)
    if step is not None:
        step.update(
            state="running", started=event["t"], idle=0.0, seconds=None, reason=None, done=None, total=None,
            detail=None,
        )  # fmt: skip


def _step_progress(state: State, event: dict[str, Any]) -> None:
    step = _step(state, event)
    if step is not None:
        step.update(done=event.get("done"), total=event.get("total"), detail=event.get("detail"))
        # The tensors of step 4 are the ones the page marks; other steps name what they do in the bar itself.
        if step["n"] == 4 and event.get("detail"):
            state["current"] = {"name": event["detail"]}


def _step_finished(state: State, event: dict[str, Any]) -> None:
    step = _step(state, event)
    if step is not None:
        reason = event.get("skipped")
        step.update(
            state="skipped" if reason else "done", seconds=event.get("seconds"), reason=reason or None
        )
        state["current"] = None


def _model(state: State, event: dict[str, Any]) -> None:
    model, targets = event.get("model"), _parts(event, "targets")
    if not isinstance(model, dict | None):
        raise TypeError("'model' must be an object")
    state.update(model=model, targets=targets)


def _plan(state: State, event: dict[str, Any]) -> None:
    state["plan"] = {**_fields(event), "tensors": _parts(event, "tensors")}


def _layer_started(state: State, event: dict[str, Any]) -> None:
    state["current"] = _fields(event)


def _layer_finished(state: State, event: dict[str, Any]) -> None:
    state["layers"][event["name"]] = _fields(event, "histogram")


def _evaluation(state: State, event: dict[str, Any]) -> None:
    state["evaluations"][event["when"]] = _fields(event, "when")


def _figures(state: State, event: dict[str, Any]) -> None:
    state["figures"].update(_fields(event))


def _finetune_step(state: State, event: dict[str, Any]) -> None:
    point = {"t": event["t"], **_fields(event)}
    points = state["finetune"]
    # A resumed run takes up training at its last checkpoint: what lay beyond it is done again.
    while points and points[-1].get("step", 0) >= point.get("step", 0):
        points.pop()
        state["finetune_book"].update(count=0, open=0)
    state["finetune_last"] = point
    state["steps"][4].update(done=point.get("step"), total=point.get("steps"))
    add_point(points, state["finetune_book"], point, _training_values, FINETUNE_POINTS)


def _training_values(point: dict[str, Any]) -> tuple[Any, Any]:
    return point.get("loss"), point.get("grad_norm")


def _gradient(state: State, event: dict[str, Any]) -> None:
    state["gradients"][event["layer"]] = event.get("norm")
    if "original" in event:
        state["gradients_original"][event["layer"]] = event["original"]


def _tasks(state: State, event: dict[str, Any]) -> None:
    state["tasks"] = _fields(event)


def _gate(state: State, event: dict[str, Any]) -> None:
    state["gates"][event["name"]] = _fields(event)


def _handoff(state: State, event: dict[str, Any]) -> None:
    state["handoff"] = _parts(event, "items")


def _output(state: State, event: dict[str, Any]) -> None:
    outputs = [output for output in state["outputs"] if output.get("path") != event.get("path")]
    state["outputs"] = [*outputs, _fields(event)]


def _metric(state: State, event: dict[str, Any]) -> None:
    name, last = event["name"], state["finetune_last"] or {}
    point = [event["t"], event.get("value"), *(event.get(key, last.get(key)) for key in ("step", "tokens"))]
    book = state["metric_books"].setdefault(name, new_book())
    add_point(state["metrics"].setdefault(name, []), book, point, lambda point: (point[1],), METRIC_POINTS)


def _alert(state: State, event: dict[str, Any]) -> None:
    state["alerts"] = [*state["alerts"], {"t": event["t"], **_fields(event)}][-ALERTS:]


def _log(state: State, event: dict[str, Any]) -> None:
    state["log"] = [*state["log"], {"t": event["t"], **_fields(event)}][-LOG_LINES:]


def _command_ack(state: State, event: dict[str, Any]) -> None:
    state["acks"][event["id"]] = {"t": event["t"], **_fields(event, "id")}
    for oldest in list(state["acks"])[:-ACKS]:
        del state["acks"][oldest]


_HANDLERS = {
    "run.started": _run_started,
    "run.queued": _run_queued,
    "run.paused": _run_paused,
    "run.resumed": _run_resumed,
    "run.finished": _run_finished,
    "run.failed": _run_failed,
    "step.started": _step_started,
    "step.progress": _step_progress,
    "step.finished": _step_finished,
    "model": _model,
    "plan": _plan,
    "layer.started": _layer_started,
    "layer.finished": _layer_finished,
    "evaluation": _evaluation,
    "figures": _figures,
    "finetune.step": _finetune_step,
    "gradient": _gradient,
    "tasks": _tasks,
    "gate": _gate,
    "handoff": _handoff,
    "output": _output,
    "metric": _metric,
    "alert": _alert,
    "log": _log,
    "command.ack": _command_ack,
}
