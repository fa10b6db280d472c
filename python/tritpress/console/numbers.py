"""Figures as people read them. None, what was not measured, is a dash everywhere."""

from __future__ import annotations

import math
import time

DASH = "–"


def size(count: float | None) -> str:
    """Bytes in powers of 1000: 3.21 MB."""
    if count is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def count(value: float | None) -> str:
    """How many: 5.3 M."""
    if value is None:
        return DASH
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            divisor = 1e3 if unit == "k" else limit
            return f"{value / divisor:.3g} {unit}"
    return f"{value:,.0f}"


def percent(share: float | None, digits: int = 1, sign: bool = False) -> str:
    """A share as a percentage: 44.0 %."""
    return DASH if share is None else f"{100 * share:{'+' if sign else ''}.{digits}f} %"


def times(ratio: float | None) -> str:
    """A ratio: 6.57x."""
    return DASH if ratio is None else f"{ratio:.2f}x"


def figure(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, thousands with commas."""
    if value is None:
        return DASH
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def duration(seconds: float | None) -> str:
    """0.3 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(t: float | None) -> str:
    """A time of day, with the date: 2026-11-24 15:30."""
    return DASH if t is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(t))


def planes(mean: float | None) -> str:
    """How many planes a weight has; only one plane is the 1.58-bit model."""
    if mean is None:
        return DASH
    if abs(mean - 1) < 1e-9:
        return "1 plane (1.58-bit ternary)"
    number = f"{mean:.0f}" if abs(mean - round(mean)) < 1e-9 else f"{mean:.2f}"
    return f"{number} planes a weight"
