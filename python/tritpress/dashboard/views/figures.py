"""Numbers as people read them: a unit, and as many digits as the measurement carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from tritpress.events.snapshot import weights_of, weights_of_one

NOTHING = "–"
"""Stands for what was not measured."""


def known(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a number that can be shown (not None, NaN, infinite or a truth value)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def whole(text: str) -> int | None:
    """The whole number, below a million, that a link gives; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else None


def page(text: str) -> int:
    """The page that a link gives, counted from 0; the first for what is none."""
    return max((whole(text) or 1) - 1, 0)


def significant(value: float | None, digits: int = 3) -> str:
    """`value` with that many significant digits, never in exponent form between 0.001 and a million."""
    if not known(value):
        return NOTHING
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if exponent < -3 or exponent >= 6:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa} × 10{_superscript(int(power))}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def size(count: float | None) -> str:
    """Bytes in decimal units: 15.2 MB."""
    if not known(count):
        return NOTHING
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{count:,.0f} B" if unit == "B" else f"{significant(value)} {unit}"


def ratio(value: float | None) -> str:
    """How many times smaller: 6.57×."""
    return f"{value:.2f}×" if known(value) else NOTHING


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent: 43.8 %."""
    return f"{100 * share:.{digits}f} %" if known(share) else NOTHING  # type: ignore[operator]


def change(share: float | None, digits: int = 1) -> str:
    """A signed change in per cent: +3.2 %."""
    if not known(share):
        return NOTHING
    text = f"{100 * share:+.{digits}f} %"  # type: ignore[operator]
    return text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """A stretch of time: 850 ms, 12.3 s, 3 min 05 s, 1 h 02 min."""
    if not known(seconds):
        return NOTHING
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rough_duration(seconds: float | None) -> str:
    """A stretch of time that is only estimated: 40 s, 3 min, 1 h 20 min."""
    if not known(seconds):
        return NOTHING
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"{round(seconds / 5) * 5} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    minutes = round(seconds / 600) * 10
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: float | None) -> str:
    """A whole number with thousands apart: 32,768."""
    return f"{number:,.0f}" if known(number) else NOTHING


def large_count(number: float | None) -> str:
    """A large number in words' short form: 5.3 M, 8.03 B."""
    if not known(number):
        return NOTHING
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{significant(number / limit)} {unit}"
    return f"{number:,.0f}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """`3 layers`, `1 layer`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def shape(tensor: Mapping[str, Any]) -> str:
    """Rows and columns of a tensor, how many experts are stacked before them: `32 × 128 × 64`."""
    sides = [tensor.get("rows"), tensor.get("cols")]
    weights, one = weights_of(tensor), weights_of_one(tensor)
    if weights and one and weights > one and weights % one == 0:
        sides.insert(0, weights // one)
    return " × ".join(map(count, sides))


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
