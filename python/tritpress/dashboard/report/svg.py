"""Drawings as SVG text: shapes, axes, legends. One drawing serves the report and a file of its own."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

__all__ = ["Drawing", "Frame", "clean", "decades", "escape", "number", "steps"]

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML cannot hold."""

LIGHT = (
    "text{font-family:'Helvetica Neue',Arial,'Liberation Sans','DejaVu Sans',sans-serif;font-size:12px}"
    ".ink{fill:#1b2328}.soft{fill:#55626a}.title{font-size:14px;font-weight:600}"
    ".cell,.cell text{font-size:11px}"
    ".grid{stroke:#e2e7ea}.axis{stroke:#8a979f}.range{stroke:#1b2328}.none{fill:#eef1f3}"
)
"""Style of a drawing that stands alone: readable on white whatever the page looks like."""


def clean(text: object) -> str:
    """`text` without what XML cannot hold."""
    return FORBIDDEN.sub("\ufffd", str(text))


def escape(text: object) -> str:
    """`text` as it may stand in HTML and SVG, between tags and in attributes."""
    return html.escape(clean(text), quote=True)


def number(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


class Drawing:
    """Shapes in the order in which they were added. Words and colours of the theme go by class."""

    def __init__(self, title: str, width: float, height: float) -> None:
        self.title, self.width, self.height = title, width, height
        self.parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str = "", kind: str = "", more: str = ""
    ) -> None:
        self.parts.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
            f"{_paint(fill, kind)}{more}/>"
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str = "", kind: str = "", more: str = ""
    ) -> None:
        paint = f' stroke="{stroke}"' if stroke else ""
        kind = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
            f"{paint}{kind}{more}/>"
        )

    def text(
        self,
        x: float,
        y: float,
        text: object,
        kind: str = "ink",
        anchor: str = "",
        fill: str = "",
        more: str = "",
    ) -> None:
        place = f' text-anchor="{anchor}"' if anchor else ""
        self.parts.append(
            f'<text x="{number(x)}" y="{number(y)}"{_paint(fill, kind)}{place}{more}>{escape(text)}</text>'
        )

    def path(self, points: Iterable[tuple[float, float]], stroke: str, dash: str = "") -> None:
        """A line through the points; NaN breaks it, and a point between two breaks is a dot."""
        pieces: list[list[tuple[float, float]]] = [[]]
        for x, y in points:
            if x == x and y == y:
                pieces[-1].append((x, y))
            elif pieces[-1]:
                pieces.append([])
        lines = "".join(
            "M" + "L".join(f"{number(x)} {number(y)}" for x, y in piece) for piece in pieces if len(piece) > 1
        )
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        if lines:
            self.parts.append(
                f'<path d="{lines}" fill="none" stroke="{stroke}" stroke-width="1.6"'
                f' stroke-linejoin="round"{dashed}/>'
            )
        for piece in pieces:
            if len(piece) == 1:
                self.parts.append(f'<path d="{_shape("circle", *piece[0], 2.2)}" fill="{stroke}"/>')

    def mark(self, x: float, y: float, shape: str, colour: str, size: float = 4.0, label: str = "") -> None:
        """A point as `shape`; `label` is told when the pointer rests on it."""
        told = f"<title>{escape(label)}</title>" if label else ""
        self.parts.append(f'<path d="{_shape(shape, x, y, size)}" {_stroke(shape, colour)}>{told}</path>')

    def render(self, alone: bool = False) -> str:
        """The drawing as an element of a page or, `alone`, as a file on a white ground."""
        head = (
            f'<svg viewBox="0 0 {number(self.width)} {number(self.height)}" role="img"'
            f' aria-label="{escape(self.title)}"'
        )
        body = "".join(self.parts)
        if not alone:
            return f'{head} style="max-width:{number(self.width)}px">{body}</svg>'
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'{head} xmlns="http://www.w3.org/2000/svg" width="{number(self.width)}"'
            f' height="{number(self.height)}"><title>{escape(self.title)}</title><style>{LIGHT}</style>'
            f'<rect width="100%" height="100%" fill="#ffffff"/>{body}</svg>\n'
        )


class Frame:
    """A plot's inside with its axes. `x` and `y` are (low, high); a log axis wants both above 0."""

    def __init__(
        self,
        drawing: Drawing,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        x_label: str,
        y_label: str,
        top: float = 52,
        log_y: bool = False,
        whole_x: bool = True,
    ) -> None:
        self.drawing, self.log_y = drawing, log_y
        self.x_ends, self.y_ends = _open(x), y if log_y else _open(y)
        ticks = decades(*y) if log_y else steps(*self.y_ends)
        longest = max((len(label) for _, label in ticks), default=0)
        self.left, self.top = max(74.0, 40 + 8.0 * longest), top
        self.right, self.bottom = drawing.width - 16, drawing.height - 46
        drawing.text(0, 16, drawing.title, "ink title")
        drawing.text((self.left + self.right) / 2, drawing.height - 8, x_label, "ink", "middle")
        middle = (self.top + self.bottom) / 2
        drawing.text(
            14, middle, y_label, "ink", "middle", more=f' transform="rotate(-90 14 {number(middle)})"'
        )
        for tick, label in ticks:
            at = self.y(tick)
            drawing.line(self.left, at, self.right, at, kind="grid")
            drawing.text(self.left - 8, at + 4, label, "soft", "end")
        for tick, label in steps(*self.x_ends, whole=whole_x):
            at = self.x(tick)
            drawing.line(at, self.bottom, at, self.bottom + 5, kind="axis")
            drawing.text(at, self.bottom + 18, label, "soft", "middle")
        drawing.line(self.left, self.bottom, self.right, self.bottom, kind="axis")
        drawing.line(self.left, self.top, self.left, self.bottom, kind="axis")

    def x(self, value: float) -> float:
        low, high = self.x_ends
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_ends
        if self.log_y:
            if not value > 0:
                return math.nan
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def legend(self, entries: Sequence[tuple[str, str, str]], dashes: bool = False, line: int = 0) -> None:
        """(words, colour, shape or dash) each, in a line between title and plot; `line` 1 is the second."""
        x, y = self.left, 33 + 18 * line
        for words, colour, form in entries:
            if dashes:
                dash = f' stroke-dasharray="{form}"' if form else ""
                self.drawing.line(x, y, x + 22, y, colour, more=f' stroke-width="2"{dash}')
                x += 28
            else:
                self.drawing.mark(x + 5, y, form, colour)
                x += 15
            self.drawing.text(x, y + 4, words)
            x += 7 * len(words) + 16


def steps(low: float, high: float, whole: bool = False, count: int = 6) -> list[tuple[float, str]]:
    """About `count` round numbers from `low` to `high`, each with its label."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    if whole:
        step = max(round(step), 1) if step < 10 else step
    first = math.ceil(low / step - 1e-9)
    places = max(-math.floor(math.log10(step)) + (step / power == 2.5), 0)
    found = []
    while first * step <= high + step * 1e-9:
        value = first * step
        found.append((value, _label(value, places)))
        first += 1
    return found


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """The powers of ten from `low` to `high`; between them 2 and 5 where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    skip = max(1, (last - first) // 8)
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    found = []
    for power in range(first, last + 1, skip):
        for factor in factors:
            value = factor * 10.0**power
            if low * 0.999 <= value <= high * 1.001:
                found.append((value, f"{value:g}" if -4 < power < 5 else f"{factor}e{power}"))
    return found


def _label(value: float, places: int) -> str:
    if value and (abs(value) < 1e-4 or abs(value) >= 1e7):
        return f"{value:.3g}"
    return f"{value:,.{places}f}".replace("-", "−")


def _open(ends: tuple[float, float]) -> tuple[float, float]:
    """Ends that lie apart."""
    low, high = ends
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _paint(fill: str, kind: str) -> str:
    return (f' fill="{fill}"' if fill else "") + (f' class="{kind}"' if kind else "")


def _stroke(shape: str, colour: str) -> str:
    if shape in ("plus", "x", "dash"):
        return f'stroke="{colour}" stroke-width="1.8" fill="none"'
    return f'fill="{colour}"'


def _shape(shape: str, x: float, y: float, r: float) -> str:
    def poly(*corners: tuple[float, float]) -> str:
        return "M" + "L".join(f"{number(x + r * a)} {number(y + r * b)}" for a, b in corners) + "Z"

    if shape == "square":
        return poly((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
    if shape == "triangle":
        return poly((0, -1.1), (1.1, 0.9), (-1.1, 0.9))
    if shape == "inverted_triangle":
        return poly((0, 1.1), (1.1, -0.9), (-1.1, -0.9))
    if shape == "diamond":
        return poly((0, -1.25), (1.0, 0), (0, 1.25), (-1.0, 0))
    if shape == "hex":
        return poly((-1.1, 0), (-0.55, -0.95), (0.55, -0.95), (1.1, 0), (0.55, 0.95), (-0.55, 0.95))
    n = number
    if shape == "dash":
        return f"M{n(x - r)} {n(y)}H{n(x + r)}"
    if shape == "plus":
        return f"M{n(x - r)} {n(y)}H{n(x + r)}M{n(x)} {n(y - r)}V{n(y + r)}"
    if shape == "x":
        return f"M{n(x - r)} {n(y - r)}L{n(x + r)} {n(y + r)}M{n(x - r)} {n(y + r)}L{n(x + r)} {n(y - r)}"
    return f"M{n(x - r)} {n(y)}a{n(r)} {n(r)} 0 1 0 {n(2 * r)} 0a{n(r)} {n(r)} 0 1 0 {n(-2 * r)} 0Z"
