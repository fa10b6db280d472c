"""The Overview tab as data: what the run has reached and where it stands in its seven steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.ending import broke_off, over, reached
from tritpress.dashboard.views.eta import time_left_words
from tritpress.dashboard.views.status import (
    STEP_TITLES,
    Samples,
    State,
    actual_words,
    gate_target_words,
    gate_title,
    headline,
    passed_of,
    step_left,
)
from tritpress.dashboard.views.written import out_folder, written_bytes
from tritpress.events.snapshot import accuracy_judged, step_worked
from tritpress.runs.comparison import task_results

DEFAULT_TARGETS: dict[str, Any] = {
    "ratio": 6.0,
    "accuracy": 0.95,
    "perplexity": 0.10,
    "sparsity": [0.25, 0.45],
    "gradient_flow": 1.0,
}
"""The gates as the product defines them; the run's own `gate` events win."""


@dataclass(frozen=True)
class Tile:
    """One figure with its unit, what stands beside it, and its target. `passed` None: not judged yet."""

    key: str
    title: str
    value: str
    beside: str
    target: str
    passed: bool | None


@dataclass(frozen=True)
class StepLine:
    n: int
    title: str
    about: str
    state: str  # waiting, running, done, skipped, failed; of a run that broke off also stopped, unreached
    word: str
    time: str
    share: float | None  # 0 to 1 for a running step that knows how far it is
    detail: str


def tiles(state: State, lost: bool = False) -> list[Tile]:
    """The five figures of the run, each with its target; what is to come of it until the run is over."""
    ended = over(state, lost)
    figures, gates = state["figures"], state["gates"]
    head = headline(state)
    before, after = figures.get("bytes_fp32"), written_bytes(state, "packed")
    original = (state["evaluations"].get("before") or {}).get("perplexity")
    packed = (state["evaluations"].get("packed") or {}).get("perplexity")
    beside_ratio = f"{head.bits} · {head.planes}"
    if head.ratio == fig.NOTHING:
        beside_ratio = "no plan was made" if ended else head.note
    elif not head.measured:
        beside_ratio = f"{beside_ratio} · {head.note}"
    return [
        _tile("ratio", figures.get("ratio_file") if head.measured else None, beside_ratio, gates, head.ratio),
        Tile(
            "size",
            "Size",
            fig.size(after),
            f"from {fig.size(before)} in float32"
            if fig.known(before)
            else "not written"
            if ended
            else "written in step 6",
            _size_target(before, gates.get("ratio")),
            None,
        ),
        _tile(
            "sparsity",
            figures.get("sparsity"),
            f"{fig.percent(figures.get('zeros_all_planes'))} zero in every plane"
            if fig.known(figures.get("zeros_all_planes"))
            else "share of zero codes",
            gates,
        ),
        _tile(
            "perplexity",
            figures.get("perplexity_change"),
            f"{fig.significant(original)} → {fig.significant(packed)}"
            if fig.known(packed)
            else "not measured"
            if ended
            else "measured in step 7",
            gates,
        ),
        _tile("accuracy", accuracy_judged(state)[0], _accuracy_words(state, ended), gates),
    ]


def _size_target(before: float | None, gate: dict[str, Any] | None) -> str:
    """The bytes that the ratio's gate allows."""
    ratio = (gate or {}).get("target") or DEFAULT_TARGETS["ratio"]
    return f"≤ {fig.size(before / ratio)}" if fig.known(before) and fig.known(ratio) and ratio > 0 else ""


def _tile(
    name: str, value: float | None, beside: str, gates: dict[str, Any], unmeasured: str = fig.NOTHING
) -> Tile:
    gate = gates.get(name)
    target = gate["target"] if gate and gate.get("target") is not None else DEFAULT_TARGETS[name]
    passed = passed_of(gate.get("passed")) if gate else None
    words = actual_words(name, value, target) if fig.known(value) else unmeasured
    return Tile(name, gate_title(name), words, beside, gate_target_words(name, target), passed)


def _accuracy_words(state: State, ended: bool) -> str:
    """Which accuracy the tile and its gate are of: the tasks' where the run asks for tasks, else top-1."""
    kept, _, of_tasks = accuracy_judged(state)
    if not of_tasks:
        return _top1(state)
    if not fig.known(kept):
        words = "of tasks, not measured" if ended or state.get("tasks") else "of tasks, run in step 7"
    else:
        count = len(task_results(state))
        words = f"mean of {fig.plural(count, 'task')}" if count else "mean of the tasks"
    top1 = state["figures"].get("accuracy_kept")
    return words + (f" · top-1 kept {fig.percent(top1)}" if fig.known(top1) else "")


def _top1(state: State) -> str:
    original = (state["evaluations"].get("before") or {}).get("top1")
    packed = (state["evaluations"].get("packed") or {}).get("top1")
    if not fig.known(original):
        return "of the original's top-1"
    if not fig.known(packed):
        return f"original's top-1 {fig.percent(original)}"
    return f"top-1 {fig.percent(original)} → {fig.percent(packed)}"


STEP_WORDS = {
    "waiting": "waiting",
    "running": "running",
    "done": "done",
    "skipped": "skipped",
    "failed": "failed",
    "stopped": "stopped here",
    "unreached": "not reached",
}


def step_lines(
    state: State,
    now: float,
    bases: dict[int, tuple[float, float]] | None = None,
    lost: bool = False,
    samples: Samples | None = None,
) -> list[StepLine]:
    """The seven steps with their times; a running one with how far it is, unless its worker is gone. Of a run
    that broke off the step that was at work was interrupted or stopped, those after it were not reached.
    """
    lines = [
        _step_line(step, state, now, (bases or {}).get(step["n"]), (samples or {}).get(step["n"], ()))
        for step in state["steps"]
    ]
    return [_ended(line, state) for line in lines] if broke_off(state, lost) else lines


def _ended(line: StepLine, state: State) -> StepLine:
    if line.state == "running":
        return replace(line, state="failed", word="interrupted", time="", detail=line.about)
    if line.state != "waiting":
        return line
    now = "stopped" if reached(state, line.n) else "unreached"
    return replace(line, state=now, word=STEP_WORDS[now])


def _step_line(
    step: dict[str, Any],
    state: State,
    now: float,
    base: tuple[float, float] | None,
    samples: Sequence[tuple[float, float]],
) -> StepLine:
    title, about = STEP_TITLES[step["n"]]
    share, time, detail = None, "", step.get("detail") or ""
    if step["state"] == "running":
        if fig.known(step.get("total")) and fig.known(step.get("done")) and step["total"] > 0:
            share = min(max(step["done"] / step["total"], 0.0), 1.0)
        if fig.known(step.get("started")) and state["status"] == "running":
            time = fig.duration(int(step_worked(step, now) or 0) or None)
            time = "" if time == fig.NOTHING else time.replace(".0 s", " s")
        left = step_left(step, now, base, samples) if state["status"] == "running" else None
        detail = " · ".join(part for part in (detail, time_left_words(left)) if part)
        detail = detail or about
    elif step["state"] in ("done", "failed"):
        time, detail = fig.duration(step.get("seconds")) if step["state"] == "done" else "", about
    elif step["state"] == "skipped":
        time, detail = "", step.get("reason") or about
    else:
        detail = about
    return StepLine(
        step["n"],
        title,
        about,
        step["state"],
        STEP_WORDS.get(step["state"], step["state"]),
        time,
        share,
        detail,
    )


@dataclass(frozen=True)
class Fact:
    name: str
    value: str


def facts(state: State, now: float) -> list[Fact]:
    """What was pressed and how: the model and the settings that matter."""
    model, config = state.get("model") or {}, state.get("config") or {}
    targets = state.get("targets") or []
    layers = len({target.get("layer") for target in targets if target.get("layer") is not None})
    found = [
        Fact("Model", model.get("path") or fig.NOTHING),
        Fact("Architecture", model.get("architecture") or fig.NOTHING),
        Fact(
            "Parameters",
            " · ".join(
                part
                for part in (
                    fig.large_count(model.get("parameters")),
                    f"size class {model['size_class']}" if model.get("size_class") else "",
                    model.get("source_dtype") or "",
                )
                if part
            ),
        ),
        Fact(
            "Pressed",
            f"{fig.plural(len(targets), 'tensor')} in {fig.plural(layers, 'layer')}"
            if targets
            else fig.NOTHING,
        ),
        Fact("Settings", settings_words(config)),
        Fact("Output", out_folder(state) or fig.NOTHING),
    ]
    return found


def settings_words(config: dict[str, Any]) -> str:
    """The run's configuration in one line; only what was chosen."""
    if not config:
        return fig.NOTHING
    parts = []
    if config.get("planes") is not None:
        parts.append(f"{fig.plural(config['planes'], 'plane')} everywhere")
    elif config.get("target_ratio") is not None:
        parts.append(f"target {fig.ratio(config['target_ratio'])}")
    else:
        parts.append("target by size class")
    sparsity = config.get("sparsity")
    if sparsity == "free":
        parts.append("sparsity free")
    elif fig.known(sparsity):
        parts.append(f"sparsity {fig.percent(sparsity, 0)}")
    if config.get("threshold") is not None:
        parts.append(f"threshold {fig.significant(config['threshold'])}")
    parts.append(f"method {config.get('method', 'auto')}")
    parts.append(_finetune_words(config))
    parts.append(f"seed {config.get('seed', 0)}")
    return " · ".join(parts)


def _finetune_words(config: dict[str, Any]) -> str:
    if config.get("finetune") is False:
        return "no fine-tuning"
    budget = ""
    if config.get("epochs") is not None:
        budget = fig.plural(config["epochs"], "epoch")
    elif config.get("tokens") is not None:
        budget = f"{fig.count(config['tokens'])} tokens"
    elif config.get("minutes") is not None:
        budget = f"{fig.significant(config['minutes'])} min"
    word = "fine-tuning" if config.get("finetune") else "fine-tuning if needed"
    filtered = config.get("optimizer") == "mugrokfast"
    weight = f"λ {config.get('grokfast_lambda', 0.1):g}" if filtered else ""
    return " ".join(part for part in (word, budget, weight) if part)
