"""What a run is doing right now, in words, and what the reader can do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tritpress.dashboard.views.eta import TimeLeft, run_left, time_left, time_left_words
from tritpress.dashboard.views.figures import (
    NOTHING,
    change,
    known,
    percent,
    plural,
    ratio,
    significant,
)
from tritpress.dashboard.views.written import models_written
from tritpress.events.schema import ENDED
from tritpress.events.snapshot import step_worked, weights_of, worked

State = dict[str, Any]

NO_NAMES: Mapping[str, str] = MappingProxyType({})

ELSEWHERE = "This run is worked on elsewhere: it hears no commands from here"
"""Why a run that is only told of here cannot be steered."""

FINEST = 6
"""Digits after the point to which a gate's value and its limit are told apart."""

GATE_NAMES = ("ratio", "accuracy", "perplexity", "sparsity", "gradient_flow")

STEP_TITLES = {
    1: ("Load", "Read the model, find the tensors to press"),
    2: ("Baseline", "Measure the original on held-out text"),
    3: ("Calibration", "Record activations on calibration text"),
    4: ("Ternarization", "Press every tensor to the target"),
    5: ("Fine-tuning", "Train the ternary weights against the original"),
    6: ("Outputs", "Write the packed and the dequantized model"),
    7: ("Validation", "Measure both outputs, judge the five gates"),
}


@dataclass(frozen=True)
class Status:
    """`tone` is one of neutral, live, good, warning, bad; `mark` a sign that says the same without colour."""

    label: str
    tone: str
    mark: str
    sentence: str


LOST = (
    "The worker process ended without a word. What is finished is on disk: Resume goes on.",
    "Nothing more is heard of this run, which is worked on elsewhere. What it told is kept.",
)
PAUSED = (
    "Paused on request; nothing is lost. Resume goes on.",
    "Paused on request; nothing is lost. It can be resumed where it is worked on.",
)
STOPPED = (
    "Stopped on request. Resume goes on from what is finished.",
    "Stopped on request. It can be resumed where it was worked on.",
)
"""Of a run of this machine, and of one that is worked on elsewhere."""


def status_of(
    state: State,
    lost: bool = False,
    gone: bool = False,
    names: Mapping[str, str] = NO_NAMES,
    remote: bool = False,
) -> Status:
    """The run's status; `lost` when it says it is at work but its worker process is gone.

    `gone`: its folder was deleted or moved away. `names` are those of other runs by their ids. `remote`: the
    run is worked on elsewhere and only told of here.
    """
    if gone:
        return Status("Deleted", "neutral", "○", "This run's folder is no longer there.")
    if lost:
        return Status("Worker gone", "bad", "✕", LOST[remote])
    kind = state["status"]
    if kind == "queued":
        after = [names.get(run, run) for run in state.get("after") or ()]
        out = "." if remote else "; stop it to take it out."
        if not after:
            return Status("Queued", "live", "◷", f"It waits for its turn{out}")
        waits = f"{plural(len(after), 'run')} ({', '.join(after[:3])}{', …' if len(after) > 3 else ''})"
        return Status("Queued", "live", "◷", f"Begins when {waits} ended{out}")
    if kind == "created":
        doing = "Nothing was told of the run so far." if remote else "The worker process is starting."
        return Status("Starting", "live", "●", doing)
    if kind == "running":
        step = running_step(state)
        doing = (
            f"Step {step['n']} of 7: {STEP_TITLES[step['n']][0].lower()}." if step else "Between two steps."
        )
        return Status("Running", "live", "●", doing)
    if kind == "paused":
        return Status("Paused", "warning", "❚❚", PAUSED[remote])
    if kind == "stopped":
        return Status("Stopped", "warning", "■", STOPPED[remote])
    if kind == "failed":
        return Status(
            "Failed", "bad", "✕", sentence(state.get("error") or "The run failed without saying why")
        )
    return _finished(state)


def sentence(text: str) -> str:
    """`text` with a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _finished(state: State) -> Status:
    gates = list(state["gates"].values())
    failed = [gate for gate in gates if gate.get("passed") is False]
    unmeasured = [gate for gate in gates if passed_of(gate.get("passed")) is None]
    if failed:
        names = ", ".join(gate_title(gate["name"]).lower() for gate in failed)
        return Status(
            "Finished",
            "warning",
            "!",
            f"{plural(len(failed), 'gate')} failed: {names}.{written_words(state)}",
        )
    broken = [str(item.get("name")) for item in state.get("handoff") or () if item.get("passed") is False]
    if broken:
        return Status(
            "Finished",
            "warning",
            "!",
            f"{plural(len(broken), 'check')} of the handoff failed: {', '.join(broken)}."
            f"{written_words(state)}",
        )
    if unmeasured:
        return Status(
            "Finished", "good", "✓", f"No gate failed; {plural(len(unmeasured), 'gate')} not measured."
        )
    unjudged = sum(name not in state["gates"] for name in GATE_NAMES)
    if gates and unjudged:
        words = f"{plural(len(gates), 'gate')} passed; {plural(unjudged, 'gate')} not judged."
        return Status("Finished", "good", "✓", words)
    return Status("Finished", "good", "✓", "All five gates pass." if gates else "The run is over.")


def written_words(state: State) -> str:
    """A sentence on what was written, a space before it; nothing where no file was named."""
    found = models_written(state)
    if len(found) == 2:
        return " Both models are written."
    return f" The {found[0]} model is written." if found else ""


def gate_title(name: str) -> str:
    """The name of a gate in words."""
    return {
        "ratio": "Compression",
        "accuracy": "Accuracy kept",
        "perplexity": "Perplexity change",
        "sparsity": "Sparsity",
        "gradient_flow": "Gradient flow",
    }.get(name, name.replace("_", " ").capitalize())


def passed_of(told: Any) -> bool | None:
    """Whether a gate or check passed; None, not measured, for any other word of it."""
    return told if isinstance(told, bool) else None


def running_step(state: State) -> dict[str, Any] | None:
    """The step that is at work, if any."""
    return next((step for step in state["steps"] if step["state"] == "running"), None)


@dataclass(frozen=True)
class Headline:
    """The ratio is never shown without bits a weight and planes beside it."""

    ratio: str
    bits: str
    planes: str
    measured: bool
    note: str


def headline(state: State) -> Headline:
    """Ratio, bits a weight and planes: measured ones, else the plan's, else nothing."""
    figures = state["figures"]
    if known(figures.get("ratio_file")) and known(figures.get("bits_per_weight")):
        planes = figures.get("planes_mean")
        return Headline(
            ratio(figures["ratio_file"]),
            f"{figures['bits_per_weight']:.2f} bits a weight",
            planes_words(planes),
            True,
            one_plane_note(planes),
        )
    plan = state.get("plan")
    if plan and known(plan.get("predicted_ratio")) and plan.get("tensors"):
        bits, planes = _planned_means(plan)
        return Headline(
            ratio(plan["predicted_ratio"]),
            f"{bits:.2f} bits a weight" if known(bits) else NOTHING,
            planes_words(planes),
            False,
            "planned",
        )
    return Headline(NOTHING, NOTHING, NOTHING, False, "known once the plan is made")


Means = tuple[float | None, float | None]


def _planned_means(plan: State) -> Means:
    """Bits a weight and planes that a plan comes to; remembered, for pages ask several times a second."""
    kept = _PLANNED.get(id(plan))
    if kept is None or kept[0] is not plan:
        if len(_PLANNED) >= 64:
            _PLANNED.clear()
        _PLANNED[id(plan)] = kept = plan, (_planned_mean(plan, "bits"), _planned_mean(plan, "planes"))
    return kept[1]


def _planned_mean(plan: State, key: str) -> float | None:
    """Mean by weights; None where a tensor lacks a part of it, as one that was pushed may."""
    told = [(weights_of(tensor), tensor.get(key)) for tensor in plan["tensors"]]
    rows = [(weights, value) for weights, value in told if known(weights) and known(value)]
    if len(rows) < len(told):
        return None
    total = sum(weights for weights, _ in rows)
    return sum(weights * value for weights, value in rows) / total if total > 0 else None


_PLANNED: dict[int, tuple[State, Means]] = {}
"""By the plan's identity; the plan itself is kept, so that no other can come to have it."""


def planes_words(planes: float | None) -> str:
    """`1 plane`, `2 planes`, `1.85 planes`."""
    if not known(planes):
        return NOTHING
    if abs(planes - round(planes)) < 0.005:
        return plural(round(planes), "plane")
    return f"{planes:.2f} planes"


def one_plane_note(planes: float | None) -> str:
    """The 1.58-bit model is the one with a single plane; more planes are named as such."""
    if not known(planes):
        return ""
    return "ternary, 1.58-bit" if abs(planes - 1) < 0.005 else "sums of ternary planes"


def seconds_left(
    step: dict[str, Any] | None, now: float, base: tuple[float, float] | None = None
) -> float | None:
    """Seconds until the running step is done at the pace so far; None while that cannot be said.

    `base` is the time and the amount done at the step's first report, so that work taken over from an earlier
    start of the run is not counted as speed; a pause since has moved it on. No pause counts as work.
    """
    if not step or not known(step.get("total")) or not known(step.get("done")):
        return None
    spent, before = (now - base[0], base[1]) if base else (step_worked(step, now), 0.0)
    if spent is None:
        return None
    done = step["done"] - before
    if done <= 0 and base and known(step.get("started")):
        spent, done = step_worked(step, now) or 0.0, step["done"]
    if done <= 0 or spent <= 0:
        return None
    return max(spent * (step["total"] - step["done"]) / done, 0.0)


Samples = Mapping[int, Sequence[tuple[float, float]]]


def step_left(
    step: dict[str, Any] | None,
    now: float,
    base: tuple[float, float] | None = None,
    samples: Sequence[tuple[float, float]] = (),
) -> TimeLeft | None:
    """What is left of the running step: by its samples, else by its first report."""
    left = time_left(step, now, samples)
    if left is None and (seconds := seconds_left(step, now, base)) is not None:
        left = TimeLeft(seconds)
    return left


def eta_words(
    state: State,
    now: float,
    lost: bool = False,
    bases: dict[int, tuple[float, float]] | None = None,
    samples: Samples | None = None,
) -> str:
    """How long the running step will take and how sure that is, or why nobody can say."""
    if state["status"] == "paused":
        return "paused"
    step = running_step(state)
    if lost or step is None or state["status"] != "running":
        return NOTHING
    left = step_left(step, now, (bases or {}).get(step["n"]), (samples or {}).get(step["n"], ()))
    words = time_left_words(left)
    return words.replace(" left", " left in this step", 1) if words else "no estimate yet"


def run_left_words(
    state: State,
    now: float,
    lost: bool = False,
    bases: dict[int, tuple[float, float]] | None = None,
    samples: Samples | None = None,
    earlier: Sequence[Sequence[float | None]] = (),
) -> str:
    """How long the whole run will still take by earlier runs like it; "" where it is not at work."""
    step = running_step(state)
    if lost or state["status"] != "running" or step is None:
        return ""
    this = step_left(step, now, (bases or {}).get(step["n"]), (samples or {}).get(step["n"], ()))
    coming = any(one["state"] == "waiting" for one in state["steps"])
    if not coming and this is not None:
        return f"The whole run: {time_left_words(this)}."
    left = run_left(state["steps"], now, this, earlier)
    if left is None:
        return "The whole run: no estimate yet, as no finished run of this model with such settings is here."
    words = time_left_words(left)
    runs = "an earlier run" if len(earlier) == 1 else f"{len(earlier)} earlier runs"
    return f"The whole run: {words}, by {runs} like it."


NEXT = {
    "paused": "Resume goes on with the next tensor or training step.",
    "stopped": "Resume takes it up from what is finished; Start begins a new run.",
    "failed": "Resume takes it up from what is finished. The worker's last words are in worker.log.",
    "finished": "Quality has the five gates, Outputs what was written and how to load it.",
}


NEXT_ELSEWHERE = {
    **NEXT,
    "paused": "It goes on with the next tensor or training step.",
    "stopped": "Start begins a new run on this machine.",
    "failed": "It can be resumed where it was worked on, and its worker's last words are there.",
}


def next_words(state: State, lost: bool = False, remote: bool = False) -> str:
    """What happens next, in one sentence; `remote` as in `status_of`."""
    status = state["status"]
    coming = NEXT_ELSEWHERE if remote else NEXT
    if lost:
        return "It goes on here when its events come again." if remote else coming["failed"]
    if status == "queued":
        return "It begins by itself, also when every page is closed."
    if status == "paused" or status in coming:
        return coming[status]
    wanted = [
        step["n"]
        for step in state["steps"]
        if step["state"] == "waiting"
        and not (step["n"] == 5 and (state.get("config") or {}).get("finetune") is False)
    ]
    if not wanted:
        return "This is the last step; then the gates are judged." if running_step(state) else ""
    first, *rest = wanted
    title, about = STEP_TITLES[first]
    then = ", ".join(STEP_TITLES[n][0].lower() for n in rest)
    return f"{title}: {about[0].lower()}{about[1:]}" + (f"; then {then}." if then else ".")


def elapsed(state: State, now: float, lost: bool = False) -> float | None:
    """Seconds at work until the end, or now; of a run whose worker is gone until its last word."""
    if not known(state.get("started")):
        return None
    end = state.get("finished") if state["status"] in ENDED else now
    if lost:
        end = state.get("updated")
    return worked(state, end or now)


def apart(value: float, limit: float, digits: int) -> int:
    """At least so many digits after the point, more where `value` would read as `limit` but is another."""
    if round(value - limit, FINEST) == 0:
        return digits
    return next((n for n in range(digits, FINEST) if round(value, n) != round(limit, n)), FINEST)


def actual_words(name: str, actual: Any, target: Any = None) -> str:
    """A gate's measured value with its unit, in as many digits as tell it from the limits."""
    if not known(actual):
        return NOTHING
    if isinstance(target, dict):
        target = [target.get("min"), target.get("max")]
    limits = [limit for limit in (target if isinstance(target, list | tuple) else [target]) if known(limit)]
    if name == "ratio":
        digits = max((apart(actual, limit, 2) for limit in limits), default=2)
        return f"{actual:.{digits}f}×"
    if name not in GATE_NAMES:
        return significant(actual)
    digits = max((apart(100 * actual, 100 * limit, 1) for limit in limits), default=1)
    return change(actual, digits) if name == "perplexity" else percent(actual, digits)


def _limit_words(share: Any) -> str:
    """A limit in per cent, with the digits that it has."""
    if not known(share):
        return NOTHING
    return percent(share, _digits_of(100 * share, 0))


def _digits_of(value: float, least: int) -> int:
    """How many digits after the point a value has: as many as `least`, and no more than `FINEST`."""
    return next(n for n in range(least, FINEST + 1) if round(value, n) == round(value, FINEST))


def gate_target_words(name: str, target: Any) -> str:
    """A gate's target as a condition: `≥ 6.00×`, `25 % to 45 %`, `≥ 98.5 %`."""
    if isinstance(target, dict):
        target = [target.get("min"), target.get("max")]
    if isinstance(target, list | tuple) and len(target) == 2:
        low, high = target
        return f"{_limit_words(low)} to {_limit_words(high)}"
    if not known(target):
        return NOTHING
    if name == "ratio":
        return f"≥ {target:.{_digits_of(target, 2)}f}×"
    if name == "perplexity":
        return f"≤ +{_limit_words(target)}"
    if name == "gradient_flow":
        return f"= {_limit_words(target)} of tensors"
    return f"≥ {_limit_words(target)}" if name == "accuracy" else significant(target)
