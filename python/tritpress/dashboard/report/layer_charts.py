"""Figures of every tensor by layer as drawings: gradient norms with those of the original, errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.picture import HEIGHT, WIDTH, Picture
from tritpress.dashboard.report.svg import Drawing, Frame
from tritpress.dashboard.theme import CURRENT, MARKERS, NEUTRAL, OKABE_ITO
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.progress import KINDS, Board
from tritpress.dashboard.views.quality import DEAD, EXPLODING, GradientPage, GradientPoint, gradients

LINE = 18
"""Height of a line of the legend."""

SIGNS = {
    "exploding": ("triangle", f"exploding (over {EXPLODING:g}×)"),
    "dead": ("x", f"dead (under {100 * DEAD:g} %)"),
    "broken": ("plus", "not finite"),
}
"""What stands over a point whose gradient is not healthy, and what the legend says of it."""


@dataclass(frozen=True)
class Point:
    """A tensor's figure; `sign` is one of `SIGNS`, `original` the same figure before pressing."""

    layer: int
    kind: str
    value: float
    label: str
    sign: str = ""
    original: float | None = None


def gradient_norms(facts: Facts) -> list[Picture]:
    """Gradient norm of every pressed tensor by layer, log axis: a picture for each page of layers, all on the
    same axis. What has no norm to draw stands at the foot, marked.
    """
    first = gradients(facts.state)
    if not first.points:
        return []
    pages = [first, *(gradients(facts.state, page) for page in range(1, first.pages))]
    return [Picture(_key(page), _gradients(page)) for page in pages]


def _key(page: GradientPage) -> str:
    return "gradient-norms" if page.pages == 1 else f"gradient-norms-{page.page + 1:02d}"


def _gradients(page: GradientPage) -> Drawing:
    title = "Gradient norm by layer"
    if page.pages > 1:
        title += f", layers {page.first}–{page.last}"
    points = [
        Point(p.layer, p.kind, p.norm, _gradient_label(p), "" if p.mark == "ok" else p.mark, p.original)
        for p in page.points
    ]
    span = (page.first, page.last)
    ends = (page.low * 0.6, page.high * 2.5)  # room for what stands over a point
    return _by_layer(title, "Gradient norm", points, page.kinds, span, ends)


def _gradient_label(point: GradientPoint) -> str:
    known = f"{point.shown}, in the original {point.before}" if point.original else point.shown
    return f"{point.name}: {known}" + ("" if point.mark in ("ok", "broken") else f", {point.mark}")


def errors(board: Board) -> Picture | None:
    """Squared error over squared norm of every parameter by layer, log axis."""
    points = [
        Point(
            int(cell.row) if cell.row.isdigit() else -1,
            cell.column,
            cell.error,
            f"{cell.title}: {fig.percent(cell.error, 2)}",
        )
        for cell in board.cells
        if fig.known(cell.error) and cell.error > 0
    ]
    if not points:
        return None
    kinds = [kind for kind in KINDS if any(point.kind == kind for point in points)]
    layers, values = [point.layer for point in points], [point.value for point in points]
    span, ends = (min(layers), max(layers)), (min(values) * 0.7, max(values) * 1.4)
    y_label = "Squared error / squared norm"
    return Picture("error", _by_layer("Error by layer", y_label, points, kinds, span, ends))


def _by_layer(
    title: str,
    y_label: str,
    points: Sequence[Point],
    kinds: Sequence[str],
    span: tuple[int, int],
    ends: tuple[float, float],
) -> Drawing:
    """A colour and a shape for each of `kinds`; the layers of `span` across, `ends` of a log axis up."""
    second: list[tuple[str, str, str]] = []
    if any(point.original for point in points):
        second.append(("in the original", NEUTRAL, "dash"))
    signs = {point.sign for point in points}
    second += [(words, CURRENT, shape) for sign, (shape, words) in SIGNS.items() if sign in signs]
    room = LINE if second else 0
    made = Drawing(title, WIDTH, HEIGHT + 40 + room)
    across = (span[0] - 0.6, span[1] + 0.6)
    frame = Frame(made, across, ends, x_label="Layer", y_label=y_label, top=52 + room, log_y=True)
    size = 4.5 if span[1] - span[0] < 16 else 3.5 if span[1] - span[0] < 48 else 3.0
    columns = {
        # Parameters of one layer stand side by side instead of on top of one another.
        kind: (index, (index - (len(kinds) - 1) / 2) * 0.6 / max(len(kinds), 1))
        for index, kind in enumerate(kinds)
    }
    for point in points:
        if point.original:
            made.mark(
                frame.x(point.layer + columns[point.kind][1]), frame.y(point.original), "dash", NEUTRAL, size
            )
    for kind, (index, shift) in columns.items():
        shape, colour = MARKERS[index % len(MARKERS)], OKABE_ITO[index % len(OKABE_ITO)]
        for point in (point for point in points if point.kind == kind):
            x, y = frame.x(point.layer + shift), frame.y(point.value)
            made.mark(x, y, shape, colour, size, point.label)
            if point.sign:
                made.mark(x, y - 10, SIGNS[point.sign][0], CURRENT, 4.5, point.label)
    frame.legend(
        [
            (kind, OKABE_ITO[index % len(OKABE_ITO)], MARKERS[index % len(MARKERS)])
            for kind, (index, _) in columns.items()
        ]
    )
    frame.legend(second, line=1)
    return made
