"""The Tuning tab as data: which tensors, which setting, and what it would change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.diff import error_words
from tritpress.dashboard.views.status import ELSEWHERE, State
from tritpress.runs.tuning import Basis, Forecast, Setting, Sweep, TensorCurve

ALL = "all"

MODEL_WORDS = (
    "A tensor's loss is taken to scale with its squared error: the loss that the plan foretold for it, times "
    "the error at the setting over the error as planned, both from fitting a sample of its weights anew; and "
    "it is more where a threshold leaves the calibrated sweep no choice of codes. The losses add up, and "
    "perplexity is the original's times exp(loss). A guide, not a measurement: on the built-in model most "
    "rises came within a quarter of the measured ones, some up to half too low with three planes or with "
    "little calibration text."
)


@dataclass(frozen=True)
class Scope:
    """Which tensors: of a kind (or all) and of a layer (or all)."""

    kind: str = ALL
    layer: str = ALL

    def names(self, state: State) -> list[str]:
        """The run's tensors in it, pressed or not."""
        return [
            str(target["name"])
            for target in state["targets"]
            if self.kind in (ALL, target.get("kind")) and self.layer in (ALL, str(target.get("layer")))
        ]

    @property
    def words(self) -> str:
        """`all tensors`, `all down`, `layer 3`, `down of layer 3`."""
        if self.layer == ALL:
            return "all tensors" if self.kind == ALL else f"all {self.kind}"
        return f"layer {self.layer}" if self.kind == ALL else f"{self.kind} of layer {self.layer}"


def scopes(state: State) -> tuple[dict[str, str], dict[str, str]]:
    """Options of the two choices: label -> key, for kinds and layers in the model's order."""
    kinds = dict.fromkeys(str(target.get("kind") or "other") for target in state["targets"])
    found = (target.get("layer") for target in state["targets"])
    layers = dict.fromkeys(str(layer) for layer in found if layer is not None)
    return (
        {"All": ALL, **{kind: kind for kind in kinds}},
        {"All": ALL, **{f"Layer {layer}": layer for layer in layers}},
    )


@dataclass(frozen=True)
class Line:
    """One figure now, with the setting, and the difference in words."""

    key: str
    title: str
    now: str
    then: str
    change: str


def lines(found: Forecast, scope: Scope, set_: bool) -> tuple[Line, ...]:
    """The table of figures. Without a setting the second column repeats the first."""
    rows = [
        _share("zeros", f"Zero codes, {scope.words}", found.chosen_zeros_now, found.chosen_zeros),
        _error("error", f"Relative error, {scope.words}", found.chosen_error_now, found.chosen_error),
    ]
    if scope != Scope():
        rows += [
            _share("model_zeros", "Zero codes, whole model", found.zeros_now, found.zeros),
            _error("model_error", "Relative error, whole model", found.error_now, found.error),
        ]
    now, then = found.perplexity_now, found.perplexity
    change = fig.NOTHING
    if now is not None and then is not None:
        change = fig.change(then / now - 1, 2) if set_ else "0 %"
    beyond = now is not None and then is None
    rows.append(
        Line(
            "perplexity",
            "Predicted perplexity",
            fig.significant(now, 4),
            "beyond any use" if beyond else fig.significant(then, 4),
            change,
        )
    )
    return tuple(rows)


def _share(key: str, title: str, now: float, then: float) -> Line:
    points = f"{100 * (then - now):+.1f} points".replace("-", "−")
    return Line(key, title, fig.percent(now), fig.percent(then), points)


def _error(key: str, title: str, now: float, then: float) -> Line:
    change = fig.change(then / now - 1) if now else fig.NOTHING
    return Line(key, title, error_words(now), error_words(then), change)


@dataclass(frozen=True)
class Mark:
    """Where the present or the chosen setting stands on the three charts."""

    threshold: float
    zeros: float
    error: float
    perplexity: float


@dataclass(frozen=True)
class Charts:
    """The curves and both marks; `perplexity` is None where it cannot be foretold."""

    thresholds: tuple[float, ...]
    zeros: tuple[float, ...]
    error: tuple[float, ...]
    perplexity: tuple[float, ...] | None
    now: Mark
    chosen: Mark | None


def charts(
    swept: Sweep,
    found: Forecast,
    curves: Mapping[str, TensorCurve],
    names: list[str],
    setting: Setting | None,
) -> Charts:
    """What the three charts show."""
    there = [curves[name] for name in names if name in curves]
    weights = sum(curve.weights for curve in there)

    def mean(values: list[float]) -> float:
        return sum(value * curve.weights for value, curve in zip(values, there)) / weights

    now = Mark(
        mean([curve.present for curve in there]),
        found.chosen_zeros_now,
        found.chosen_error_now,
        _plain(found.perplexity_now),
    )
    chosen = None
    if setting is not None:
        chosen = Mark(
            mean([curve.threshold_of(setting) for curve in there]),
            found.chosen_zeros,
            found.chosen_error,
            _plain(found.perplexity),
        )
    perplexity = None
    if swept.perplexity is not None:
        perplexity = tuple(swept.perplexity)
    return Charts(
        tuple(map(float, swept.thresholds)),
        tuple(map(float, swept.zeros)),
        tuple(map(float, swept.error)),
        perplexity,
        now,
        chosen,
    )


def _plain(value: float | None) -> float:
    return value if value is not None else math.nan


def basis_words(basis: Basis) -> str:
    """What the predicted perplexity rests on, or why there is none."""
    if basis.reason is not None:
        return f"No predicted perplexity: {basis.reason}."
    return f"{MODEL_WORDS} {basis.note}"


def unforeseen_words(state: State, scope: Scope) -> str:
    """Why a setting of these tensors can be given, but not foretold."""
    if any(name in state["layers"] for name in scope.names(state)):
        return f"Of {scope.words} no curves were kept: what a setting would change cannot be foretold."
    return (
        f"No tensor of {scope.words} is pressed yet, and the curves come with each one: what a setting would "
        "change cannot be foretold. It can be given all the same."
    )


@dataclass(frozen=True)
class Choice:
    """What can be done with a setting, and if not, why."""

    new_run: bool
    why_no_run: str
    live: bool
    left: tuple[str, ...]
    why_no_set: str


SETS_ITS_OWN = "The fit bitnet sets its own zeros: only a new run can have them set."

REFITTED = (
    "The new run fits the whole model by absmean, as bitnet, which this run was fitted by, takes no setting: "
    "tensors that are not chosen change too."
)

PLAN_ELSEWHERE = "This run's plan is kept where it is worked on: only there a new run can be made from it."


def choice(
    state: State,
    lost: bool,
    names: list[str],
    setting: Setting | None,
    why_not: str,
    remote: bool = False,
) -> Choice:
    """`left` are the tensors that a run at work has not pressed yet; the worker itself knows best."""
    at_work = state["status"] in ("created", "running", "paused") and not lost
    current = (state.get("current") or {}).get("name")
    left = tuple(name for name in names if name not in state["layers"] and name != current) if at_work else ()
    why = why_not or (PLAN_ELSEWHERE if remote else "")
    if not why and setting is None:
        now = ": this is what the run has now" if any(name in state["layers"] for name in names) else ""
        why = f"Move the slider first{now}."
    if not why and not (state.get("model") or {}).get("path"):
        why = "The run has not read its model yet."
    if not why and not state.get("plan"):
        why = "The run has not made its plan yet."
    why_no_set = why_not or (ELSEWHERE + "." if remote else SETS_ITS_OWN if by_bitnet(state) else "")
    if not why_no_set and not left:
        why_no_set = "Every one of these tensors is pressed or at work: only a new run can press them anew."
    return Choice(not why, why, at_work, left, why_no_set)


def by_bitnet(state: State) -> bool:
    """Whether the run is fitted as BitNet does it; a new run by its plan is not."""
    return (state.get("config") or {}).get("fit") == "bitnet"


def plan_path(runs_dir: Path, run_id: str, scope: Scope, setting: Setting) -> Path:
    """Where the plan of a new run is written: the same choice has the same file."""
    where = [scope.kind] if scope.kind != ALL or scope.layer == ALL else []
    where += [f"layer-{scope.layer}"] if scope.layer != ALL else []
    words = "-".join([run_id, *where, setting.words])
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in words)
    return runs_dir / "plans" / f"{safe}.json"


def run_name(state: State, run_id: str, scope: Scope, setting: Setting) -> str:
    """The new run's name."""
    return f"{state.get('name') or run_id} · {scope.words}, {setting.words}"[:200]


def command_of_plan(model: str, path: Path) -> str:
    """The equal command line: the plan, and the other settings from the file beside it."""
    import shlex

    words = ["tritpress", "compress", model, "-o", "OUT", "--plan", str(path), "--config"]
    return " ".join(shlex.quote(word) for word in [*words, str(path.with_suffix(".toml"))])
