"""Rules of alerts as written: `gate`, `nan`, `stalled:15`, `sparsity:0.3-0.4`, `metric:NAME>0.5`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

DEFAULT_RULES = ("gate", "nan", "stalled:15", "sparsity")
"""What watches a run unless other rules are given; the word `default` stands for these."""

SPARSITY_BAND = (0.25, 0.45)
"""The gate's band of zeros."""

GRAMMAR = "gate, gate:NAME, nan, stalled:MINUTES, sparsity, sparsity:LOW-HIGH, metric:NAME>NUMBER or default"

_METRIC = re.compile(r"(?P<name>.+?)\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>[^<>=]+)")


@dataclass(frozen=True)
class Rule:
    """One rule: `text` as it was written; which of the rest it has depends on `kind`."""

    text: str
    kind: str  # gate, nan, stalled, sparsity or metric
    name: str | None = None  # of the gate or the metric; None is every one
    sign: str = ">"
    limit: float = 0.0  # of the metric, or the minutes
    band: tuple[float, float] = SPARSITY_BAND

    def crossed(self, value: float) -> bool:
        """Whether a metric's value is beyond the limit."""
        return {
            ">": value > self.limit,
            "<": value < self.limit,
            ">=": value >= self.limit,
            "<=": value <= self.limit,
        }[self.sign]


def parse_rule(text: str) -> Rule:
    """The rule that `text` says. Raises ValueError with one clause for what is none."""
    written = text.strip()
    kind, colon, rest = (part.strip() for part in written.partition(":"))
    if kind == "gate" and (rest or not colon):
        return Rule(written, "gate", name=rest or None)
    if kind == "nan" and not colon:
        return Rule(written, "nan")
    if kind == "stalled":
        minutes = _number(rest)
        if minutes is None or minutes <= 0:
            raise ValueError(f"{written!r} needs minutes above 0, as in stalled:15")
        return Rule(written, "stalled", limit=minutes)
    if kind == "sparsity":
        return Rule(written, "sparsity", band=_band(rest, written) if colon else SPARSITY_BAND)
    if kind == "metric":
        found = _METRIC.fullmatch(rest)
        limit = _number(found["limit"]) if found else None
        if found is None or limit is None:
            raise ValueError(f"{written!r} needs a name, a sign and a number, as in 'metric:NAME>0.5'")
        return Rule(written, "metric", name=found["name"], sign=found["sign"], limit=limit)
    raise ValueError(f"{written!r} is no rule; rules are {GRAMMAR}")


def parse_rules(texts: list[str] | tuple[str, ...]) -> list[Rule]:
    """All rules, `default` spelled out, each once. Raises ValueError as `parse_rule` does."""
    spelled = [rule for text in texts for rule in (DEFAULT_RULES if text.strip() == "default" else (text,))]
    if [text.strip() for text in spelled] == ["none"]:
        return []
    return list({rule.text: rule for rule in map(parse_rule, spelled)}.values())


def _band(text: str, written: str) -> tuple[float, float]:
    low, _, high = (part.strip() for part in text.partition("-"))
    ends = (_number(low), _number(high))
    if ends[0] is None or ends[1] is None or not 0 <= ends[0] < ends[1] <= 1:
        raise ValueError(f"{written!r} needs two shares from 0 to 1, as in sparsity:0.3-0.4")
    return ends[0], ends[1]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
