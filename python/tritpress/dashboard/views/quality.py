"""The Quality tab as data: five gates, and the gradient norm of every pressed tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.overview import DEFAULT_TARGETS
from tritpress.dashboard.views.progress import KINDS
from tritpress.dashboard.views.status import GATE_NAMES, State, gate_target_words, gate_title


@dataclass(frozen=True)
class GateCard:
    """A gate: `verdict` is passed, failed, unmeasured or waiting; `mark` and `word` say it without colour."""

    name: str
    title: str
    verdict: str
    mark: str
    word: str
    actual: str
    target: str
    margin: str
    advice: str


def gate_cards(state: State) -> list[GateCard]:
    """The five gates, those that wait for step 7 too; gates that are not known here come last."""
    names = [*GATE_NAMES, *(name for name in state["gates"] if name not in GATE_NAMES)]
    return [_card(name, state["gates"].get(name)) for name in names]


def _card(name: str, gate: dict[str, Any] | None) -> GateCard:
    target = (gate or {}).get("target")
    target = DEFAULT_TARGETS.get(name) if target is None else target
    words = gate_target_words(name, target)
    if gate is None:
        return GateCard(
            name, gate_title(name), "waiting", "○", "waiting", fig.NOTHING, words, "", "Judged in step 7."
        )
    verdict, mark, word = {
        True: ("passed", "✓", "passed"),
        False: ("failed", "✕", "failed"),
        None: ("unmeasured", "?", "not measured"),
    }[gate.get("passed")]
    return GateCard(
        name,
        gate_title(name),
        verdict,
        mark,
        word,
        actual_words(name, gate.get("actual")),
        words,
        _margin(name, target, gate.get("actual")),
        gate.get("advice") or "",
    )


def actual_words(name: str, actual: float | None) -> str:
    """A gate's measured value with its unit."""
    if name == "ratio":
        return fig.ratio(actual)
    if name == "perplexity":
        return fig.change(actual)
    if name in ("accuracy", "sparsity", "gradient_flow"):
        return fig.percent(actual)
    return fig.significant(actual)


def _margin(name: str, target: Any, actual: float | None) -> str:
    if not fig.known(actual):
        return ""
    if isinstance(target, list | tuple) and len(target) == 2:
        room = min(actual - target[0], target[1] - actual)
        return f"{abs(100 * room):.1f} points {'inside' if room >= 0 else 'outside'} the band"
    if not fig.known(target):
        return ""
    if name == "ratio":
        return f"{abs(actual - target):.2f}× {'above' if actual >= target else 'below'} the target"
    if name == "gradient_flow":
        return "" if actual >= target else f"{100 * (target - actual):.1f} points short"
    better = target - actual if name == "perplexity" else actual - target
    return f"{abs(100 * better):.1f} points {'of room' if better >= 0 else 'beyond the limit'}"


@dataclass(frozen=True)
class GradientPoint:
    """`mark` is ok or dead (zero or not finite); dead ones are drawn at the foot of the chart."""

    name: str
    kind: str
    layer: int
    norm: float
    mark: str


@dataclass(frozen=True)
class Gradients:
    points: tuple[GradientPoint, ...]
    kinds: tuple[str, ...]
    low: float
    high: float
    dead: int
    words: str


def gradients(state: State) -> Gradients:
    """Gradient norm of each pressed tensor of the dequantized model, by layer."""
    where = {target["name"]: target for target in state.get("targets") or []}
    norms = state["gradients"]
    alive = [norm for norm in norms.values() if fig.known(norm) and norm > 0]
    low = 10 ** math.floor(math.log10(min(alive))) if alive else 1e-3
    high = 10 ** math.ceil(math.log10(max(alive))) if alive else 1.0
    high = high if high > low else low * 10
    points, dead = [], 0
    for name, norm in norms.items():
        target = where.get(name, {})
        kind = target.get("kind") if target.get("kind") in KINDS else "other"
        layer = target.get("layer")
        healthy = fig.known(norm) and norm > 0
        dead += not healthy
        points.append(
            GradientPoint(
                name,
                kind or "other",
                -1 if layer is None else int(layer),
                float(norm) if healthy else low,
                "ok" if healthy else "dead",
            )
        )
    kinds = tuple(kind for kind in KINDS if any(point.kind == kind for point in points))
    return Gradients(tuple(points), kinds, low, high, dead, _gradient_words(state, len(points), dead, alive))


def _gradient_words(state: State, total: int, dead: int, alive: list[float]) -> str:
    if not total:
        step = state["steps"][6]
        if step["state"] == "skipped":
            return f"Not measured: {step['reason']}"
        if state["status"] == "finished":
            gate = state["gates"].get("gradient_flow") or {}
            return f"Not measured. {gate.get('advice') or ''}".strip()
        return "Measured in step 7, by a backward pass through the dequantized model."
    words = f"{fig.plural(total, 'tensor')}"
    if alive:
        words += f" · norms from {fig.significant(min(alive), 2)} to {fig.significant(max(alive), 2)}"
    return words + (f" · {dead} dead or not finite" if dead else " · none dead")
