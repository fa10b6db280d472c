"""Watches a run from inside its worker: every event goes past the rules, and what they find becomes an alert.

A rule fires once for each cause (that gate, that figure, that side of the band) and is armed again when the
cause is gone. What a resumed run had been told before it stopped is not told again.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tritpress.events.rules import Rule
from tritpress.events.snapshot import weights_of

SPARSITY_SHARE = 0.125
"""Share of the tensors that must be pressed before their zeros are judged."""

TRAINING = ("loss", "ce", "kl", "grad_norm", "lr", "tokens_per_s", "validation_loss")
"""Figures of a training step that a `metric:` rule can name too."""

NO_PROGRESS = frozenset({"alert", "log", "command.ack", "run.paused"})
"""Events that do not say that the run went on."""

State = Mapping[str, Any]


@dataclass(frozen=True)
class Cause:
    """What a rule looks at in an event: whether it `holds`, and what to say when it does."""

    rule: str
    name: str  # with the rule, what makes it one cause
    holds: bool
    level: str  # warning or critical
    message: str
    value: float | None = None
    limit: Any = None


class Watch:
    """The rules of one run. `see` every event, `tick` now and then; `tell` gets the fields of each alert.

    Safe to use from several threads. Nothing that goes wrong here reaches the caller.
    """

    def __init__(
        self,
        rules: list[Rule],
        tell: Callable[[dict[str, Any]], None],
        state: State | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self.tell = tell
        self.clock = clock
        self._lock = threading.RLock()
        self._fired: set[tuple[str, str]] = set()
        self._went_on = clock()
        self._paused = False
        self._step: int | None = None
        self._tensors = 0
        self._layers: dict[str, tuple[float, float]] = {}  # name -> (zeros, codes)
        self._zeros = self._codes = 0.0
        if state is not None:
            self._take_up(state)

    def see(self, type: str, fields: Mapping[str, Any]) -> None:
        """Look at one event that was just written."""
        if type == "alert":
            return
        try:
            with self._lock:
                if type not in NO_PROGRESS:
                    self._went_on = self.clock()
                    causes = [self._stalled(rule, 0.0) for rule in self._of("stalled")]
                else:
                    causes = []
                self._note(type, fields)
                causes += self._causes(type, fields)
                told = self._fire(causes)
            for alert in told:
                self.tell(alert)
        except Exception as error:  # an alert must never stop a run
            print(f"cannot look for alerts: {error!r}", file=sys.stderr)

    def tick(self) -> None:
        """Look at the clock: is the run still getting on?"""
        try:
            with self._lock:
                waited = 0.0 if self._paused else self.clock() - self._went_on
                told = self._fire([self._stalled(rule, waited) for rule in self._of("stalled")])
            for alert in told:
                self.tell(alert)
        except Exception as error:
            print(f"cannot look for alerts: {error!r}", file=sys.stderr)

    def _of(self, kind: str) -> list[Rule]:
        return [rule for rule in self.rules if rule.kind == kind]

    def _note(self, type: str, fields: Mapping[str, Any]) -> None:
        if type in ("run.queued", "run.paused", "run.resumed", "run.started"):
            self._paused = type in ("run.queued", "run.paused")  # a queued run waits for others
            self._went_on = self.clock()
        elif type == "step.started":
            self._step = fields.get("step")
        elif type == "model":
            self._tensors = len(fields.get("targets") or [])
        elif type == "layer.finished" and (share := _number(fields.get("sparsity"))) is not None:
            codes = float(weights_of(fields) or 1) * (fields.get("planes") or 1)
            zeros, before = self._layers.get(str(fields.get("name")), (0.0, 0.0))
            self._layers[str(fields.get("name"))] = (share * codes, codes)
            self._zeros += share * codes - zeros
            self._codes += codes - before

    def _causes(self, type: str, fields: Mapping[str, Any]) -> list[Cause]:
        if type == "gate":
            return [
                self._gate(rule, fields)
                for rule in self._of("gate")
                if rule.name in (None, str(fields.get("name")))
            ]
        if type == "finetune.step":
            values = {key: fields[key] for key in TRAINING if key in fields}
            return [*self._not_a_number(values), *self._metrics(values)]
        if type == "evaluation":
            return self._not_a_number(
                {"held-out perplexity": fields["perplexity"]} if "perplexity" in fields else {}
            )
        if type == "log" and fields.get("not_finite"):
            what = str(fields["not_finite"])
            message = str(fields.get("message") or f"the {what} is not a number")
            return [Cause(rule.text, what, True, "critical", _capital(message)) for rule in self._of("nan")]
        if type == "metric":
            values = {str(fields.get("name")): fields.get("value")}
            return [*self._not_a_number(values), *self._metrics(values)]
        if type == "layer.finished" and self._layers:
            if len(self._layers) < SPARSITY_SHARE * self._tensors:
                return []
            return self._sparsity(self._zeros / self._codes, "so far")
        if type == "figures" and (share := _number(fields.get("sparsity"))) is not None:
            return self._sparsity(share, "of the whole model")
        return []

    def _gate(self, rule: Rule, fields: Mapping[str, Any]) -> Cause:
        name = str(fields.get("name"))
        actual, target = _number(fields.get("actual")), fields.get("target")
        words = f"The gate {name.replace('_', ' ')} failed"
        if actual is not None:
            words += f": {actual:.4g}, asked for {_limit_words(target)}"
        return Cause(rule.text, name, fields.get("passed") is False, "critical", words, actual, target)

    def _not_a_number(self, values: Mapping[str, Any]) -> list[Cause]:
        """A cause for each figure by its name; what is not finite is null when it comes from the log."""
        return [
            Cause(
                rule.text,
                name,
                _number(value) is None,
                "critical",
                f"The {name.replace('_', ' ')} is not a finite number",
            )
            for rule in self._of("nan")
            for name, value in values.items()
        ]

    def _metrics(self, values: Mapping[str, Any]) -> list[Cause]:
        found = []
        for rule in self._of("metric"):
            value = _number(values.get(str(rule.name)))
            if value is not None:
                side = "above" if ">" in rule.sign else "below"
                side += " or at" if "=" in rule.sign else ""
                found.append(
                    Cause(
                        rule.text,
                        str(rule.name),
                        rule.crossed(value),
                        "warning",
                        f"{rule.name} is {value:.4g}, {side} {rule.limit:g}",
                        value,
                        rule.limit,
                    )
                )
        return found

    def _sparsity(self, share: float, where: str) -> list[Cause]:
        found = []
        for rule in self._of("sparsity"):
            low, high = rule.band
            for side, out in (("low", share < low), ("high", share > high)):
                words = (
                    f"{100 * share:.1f} % of the codes {where} are zero, "
                    f"outside {100 * low:g} % to {100 * high:g} %"
                )
                found.append(Cause(rule.text, side, out, "warning", words, share, [low, high]))
        return found

    def _stalled(self, rule: Rule, waited: float) -> Cause:
        minutes = waited / 60
        words = f"No progress for {minutes:.3g} minutes"
        return Cause(
            rule.text, "progress", minutes >= rule.limit, "warning", words, round(minutes, 3), rule.limit
        )

    def _fire(self, causes: list[Cause], quietly: bool = False) -> list[dict[str, Any]]:
        """The alerts of causes that began to hold; those that ended are armed again."""
        told = []
        for cause in causes:
            key = (cause.rule, cause.name)
            if not cause.holds:
                self._fired.discard(key)
            elif key not in self._fired and not quietly:
                self._fired.add(key)
                told.append(
                    {
                        "rule": cause.rule,
                        "name": cause.name,
                        "level": cause.level,
                        "message": cause.message,
                        "value": cause.value,
                        "limit": cause.limit,
                        "step": self._step,
                    }
                )
        return told

    def _take_up(self, state: State) -> None:
        """What was told before counts as told while its cause still holds, by the last that the log says."""
        self._fired = {
            (str(alert.get("rule")), str(alert.get("name"))) for alert in state.get("alerts") or []
        }
        self._note("model", {"targets": state.get("targets")})
        for layer in (state.get("layers") or {}).values():
            self._note("layer.finished", layer)
        causes = [self._stalled(rule, 0.0) for rule in self._of("stalled")]
        for gate in (state.get("gates") or {}).values():
            causes += self._causes("gate", gate)
        if state.get("finetune_last"):
            causes += self._causes("finetune.step", state["finetune_last"])
        for name, points in (state.get("metrics") or {}).items():
            if points:
                causes += self._causes("metric", {"name": name, "value": points[-1][1]})
        if self._layers:
            causes += self._causes("layer.finished", {})
        self._fire(causes, quietly=True)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _limit_words(target: Any) -> str:
    if isinstance(target, list | tuple) and len(target) == 2:
        return f"{target[0]:g} to {target[1]:g}"
    return f"{target:g}" if _number(target) is not None else str(target)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
