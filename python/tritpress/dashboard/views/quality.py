"""The Quality tab as data: five gates, the gradient norm of every pressed tensor, the alerts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.ending import broke_off, ended_words, over
from tritpress.dashboard.views.overview import DEFAULT_TARGETS
from tritpress.dashboard.views.progress import KINDS
from tritpress.dashboard.views.status import (
    GATE_NAMES,
    State,
    actual_words,
    apart,
    gate_target_words,
    gate_title,
    passed_of,
)
from tritpress.events.rules import parse_rule

TONES = {
    "passed": "good",
    "failed": "bad",
    "unmeasured": "warning",
    "waiting": "neutral",
    "unjudged": "neutral",
}
"""Of each verdict on a gate, on the page and in the report."""


@dataclass(frozen=True)
class GateCard:
    """A gate: `verdict` is passed, failed, unmeasured, waiting or unjudged (the run was over before);
    `mark` and `word` say it without colour.
    """

    name: str
    title: str
    verdict: str
    mark: str
    word: str
    actual: str
    target: str
    margin: str
    advice: str
    commands: tuple[str, ...] = ()


def gate_cards(state: State, lost: bool = False) -> list[GateCard]:
    """The five gates, those that wait for step 7 too; gates that are not known here come last."""
    names = [*GATE_NAMES, *(name for name in state["gates"] if name not in GATE_NAMES)]
    verdict = ("waiting", "○", "waiting"), "Judged in step 7."
    if broke_off(state, lost):
        verdict = ("unjudged", "–", "not judged"), ended_words(state, 7)
    elif over(state):
        verdict = ("unjudged", "–", "not judged"), "The run finished without judging it."
    return [_card(name, state["gates"].get(name), *verdict) for name in names]


def _card(name: str, gate: dict[str, Any] | None, without: tuple[str, str, str], why: str) -> GateCard:
    """`without` is the verdict (with mark and word) where there is no gate, `why` the reason."""
    target = (gate or {}).get("target")
    target = DEFAULT_TARGETS.get(name) if target is None else target
    words = gate_target_words(name, target)
    if gate is None:
        return GateCard(name, gate_title(name), *without, fig.NOTHING, words, "", why)
    verdict, mark, word = {
        True: ("passed", "✓", "passed"),
        False: ("failed", "✕", "failed"),
        None: ("unmeasured", "?", "not measured"),
    }[passed_of(gate.get("passed"))]
    return GateCard(
        name,
        gate_title(name),
        verdict,
        mark,
        word,
        actual_words(name, gate.get("actual"), target),
        words,
        _margin(name, target, gate.get("actual")),
        *_advice(str(gate.get("advice") or "")),
    )


COMMAND = re.compile(r"(?:Run )?(tritpress compress .+? --overwrite)")


def _advice(text: str) -> tuple[str, tuple[str, ...]]:
    """Advice with its command lines taken out, and these, to be copied."""
    commands = tuple(found.group(1) for found in COMMAND.finditer(text))
    number = 0

    def below(found: re.Match[str]) -> str:
        nonlocal number
        number += 1
        word = "The command" if found.group().startswith("Run ") else "the command"
        return f"{word} {number} below" if len(commands) > 1 else f"{word} below"

    words = COMMAND.sub(below, text)
    return re.sub(r"([Tt]he command(?: \d)? below)\.", r"\1 does.", words), commands


def _margin(name: str, target: Any, actual: float | None) -> str:
    if not fig.known(actual):
        return ""
    if isinstance(target, list | tuple) and len(target) == 2:
        low, high = target
        if not (fig.known(low) and fig.known(high)):
            return ""
        room = min(actual - low, high - actual)
        return f"{_distance(100 * room, 1)} points {'inside' if room >= 0 else 'outside'} the band"
    if not fig.known(target):
        return ""
    if name == "ratio":
        return f"{_distance(actual - target, 2)}× {'above' if actual >= target else 'below'} the target"
    if name == "gradient_flow":
        return "" if actual >= target else f"{_distance(100 * (target - actual), 1)} points short"
    better = target - actual if name == "perplexity" else actual - target
    return f"{_distance(100 * better, 1)} points {'of room' if better >= 0 else 'beyond the limit'}"


def _distance(distance: float, digits: int) -> str:
    """A distance from a limit, with more digits where it would read as none."""
    return f"{abs(distance):.{apart(distance, 0.0, digits)}f}"


LAYERS_A_PAGE = 32

DEAD, EXPLODING = 0.01, 100.0
"""Shares of the same tensor's gradient in the original: the gate's limits."""

MARK_WORDS = {"ok": "", "dead": "✕ dead", "broken": "✕ not finite", "exploding": "▲ exploding"}


@dataclass(frozen=True)
class GradientPoint:
    """`mark` is one of `MARK_WORDS`; what has no norm to draw lies at the foot of the chart."""

    name: str
    kind: str
    layer: int
    norm: float
    mark: str
    shown: str
    original: float | None
    before: str


@dataclass(frozen=True)
class GradientPage:
    """The points of one page of layers; `low` and `high` are those of the whole model."""

    points: tuple[GradientPoint, ...]
    kinds: tuple[str, ...]
    low: float
    high: float
    first: int
    last: int
    page: int
    pages: int
    bad: int
    words: str


def gradients(state: State, page: int = 0, lost: bool = False) -> GradientPage:
    """Gradient norm of each pressed tensor of the dequantized model, `LAYERS_A_PAGE` layers at a time."""
    where = {target["name"]: target for target in state.get("targets") or []}
    norms, originals = state["gradients"], state.get("gradients_original") or {}
    alive = [norm for norm in (*norms.values(), *originals.values()) if fig.known(norm) and norm > 0]
    low = 10 ** math.floor(math.log10(min(alive))) if alive else 1e-3
    high = 10 ** math.ceil(math.log10(max(alive))) if alive else 1.0
    points = [
        _gradient_point(name, norm, originals.get(name), where.get(name, {}), low)
        for name, norm in norms.items()
    ]
    layers = sorted({point.layer for point in points})
    pages = max(-(-len(layers) // LAYERS_A_PAGE), 1)
    page = min(max(page, 0), pages - 1)
    shown = layers[page * LAYERS_A_PAGE : (page + 1) * LAYERS_A_PAGE] or [0]
    bad = [point for point in points if point.mark != "ok"]
    return GradientPage(
        tuple(point for point in points if shown[0] <= point.layer <= shown[-1]),
        tuple(kind for kind in KINDS if any(point.kind == kind for point in points)),
        low,
        high if high > low else low * 10,
        shown[0],
        shown[-1],
        page,
        pages,
        len(bad),
        _gradient_words(state, lost, points, bad),
    )


def _gradient_point(
    name: str, norm: float | None, original: float | None, target: dict[str, Any], low: float
) -> GradientPoint:
    kind, layer = target.get("kind"), target.get("layer")
    mark = "ok"
    if not fig.known(norm):
        mark = "broken"
    elif norm <= 0 or (fig.known(original) and norm < DEAD * original):
        mark = "dead"
    elif fig.known(original) and norm > EXPLODING * original:
        mark = "exploding"
    drawn = float(norm) if fig.known(norm) and norm > 0 else low
    return GradientPoint(
        name,
        kind if kind in KINDS else "other",
        int(layer) if fig.known(layer) else -1,
        drawn,
        mark,
        fig.significant(norm) if fig.known(norm) else "not finite",
        float(original) if fig.known(original) and original > 0 else None,
        fig.significant(original),
    )


def _gradient_words(state: State, lost: bool, points: list[GradientPoint], bad: list[GradientPoint]) -> str:
    if not points:
        step = state["steps"][6]
        if step["state"] == "skipped":
            return f"Not measured: {step['reason']}"
        if state["status"] == "finished" or step["state"] == "done":
            gate = state["gates"].get("gradient_flow") or {}
            return f"Not measured. {gate.get('advice') or ''}".strip()
        if broke_off(state, lost):
            return f"Not measured. {ended_words(state, 7)}"
        return "Measured in step 7, by a backward pass through the dequantized model."
    alive = [norm for norm in state["gradients"].values() if fig.known(norm) and norm > 0]
    said = [fig.plural(len(points), "tensor")]
    if alive:
        said.append(f"norms from {fig.significant(min(alive), 2)} to {fig.significant(max(alive), 2)}")
    for mark, word in (("dead", "dead"), ("broken", "not finite"), ("exploding", "exploding")):
        count = sum(point.mark == mark for point in bad)
        if count:
            said.append(f"{count} {word}")
    if not bad:
        said.append("none dead or exploding")
    return " · ".join(said)


@dataclass(frozen=True)
class AlertLine:
    """An alert; `mark` and `level` say how bad it is without colour."""

    t: float
    level: str
    tone: str
    mark: str
    rule: str
    message: str


def alert_lines(state: State) -> list[AlertLine]:
    """All alerts that the state keeps, newest first."""
    return [
        AlertLine(
            float(alert.get("t") or 0),
            str(alert.get("level") or "warning"),
            "bad" if alert.get("level") in ("critical", "error") else "warning",
            "✕" if alert.get("level") in ("critical", "error") else "!",
            str(alert.get("rule") or fig.NOTHING),
            str(alert.get("message") or ""),
        )
        for alert in reversed(state["alerts"])
    ]


def _rule_words(text: str) -> str:
    """What a rule watches for, in words; one that is none stands as it was written."""
    try:
        rule = parse_rule(str(text))
    except ValueError:
        return str(text)
    if rule.kind == "gate":
        return f"{gate_title(rule.name).lower()} fails its gate" if rule.name else "a gate fails"
    if rule.kind == "nan":
        return "the loss or a norm is not a number"
    if rule.kind == "stalled":
        return f"no progress for {fig.significant(rule.limit)} minutes"
    if rule.kind == "sparsity":
        return f"zeros outside {fig.percent(rule.band[0], 0)} to {fig.percent(rule.band[1], 0)}"
    return f"{rule.name} {rule.sign} {fig.significant(rule.limit)}"


def alert_rules(state: State) -> str:
    """What watches this run, in a sentence."""
    config = state.get("config") or {}
    if "alerts" not in config:
        return "This run was made before there were alerts."
    rules, told = config["alerts"], []
    for key, word in (("alert_webhook", "a webhook"), ("alert_command", "a command")):
        if config.get(key):
            told.append(word)
    if not rules:
        return "No rules watch this run."
    sent = f" Sent to {' and '.join(told)}." if told else ""
    return f"Watched: {'; '.join(map(_rule_words, rules))}.{sent}"
