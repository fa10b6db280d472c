"""The charts of a run as drawings: grid, zeros, training, custom metrics, gradients, error, histograms."""

from __future__ import annotations

from collections.abc import Iterable

from tritpress.dashboard.report.added import added_charts
from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.layer_charts import errors, gradient_norms
from tritpress.dashboard.report.picture import COLOURS, HEIGHT, NARROW, WIDTH, Picture, colour, slug
from tritpress.dashboard.report.svg import Drawing, Frame, escape, number
from tritpress.dashboard.report.tensor_charts import WORST, tuning, worst_pictures
from tritpress.dashboard.theme import CURRENT, OKABE_ITO
from tritpress.dashboard.views import curves as curve_views
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.metrics import downsample
from tritpress.dashboard.views.progress import (
    LAYERS_A_PAGE,
    SPARSITY_BAND,
    Board,
    map_targets,
    sparsity_target,
)
from tritpress.dashboard.views.shades import SHADES, Shade

ROW = 20
CURVE_POINTS = 700
"""Points of a drawn line: as many as a line of that width can show."""

DASHES = ("", "6 3", "2 3", "8 3 2 3")


def board_of(facts: Facts) -> Board:
    """The cells of the run's grid."""
    board = Board(map_targets(facts.state["targets"]))
    board.update(facts.state, facts.lost)
    return board


def pages(board: Board) -> list[tuple[int, int]]:
    """(first, after the last) row of each page of 32 layers."""
    rows = len(board.where.rows)
    return [(at, min(at + LAYERS_A_PAGE, rows)) for at in range(0, rows, LAYERS_A_PAGE)]


def grids(board: Board, shade: Shade) -> list[Picture]:
    """The grid coloured by that figure, a picture for each page."""
    return [
        Picture(f"grid-{shade.key}{_suffix(board, first)}", _grid(board, shade, first, end))
        for first, end in pages(board)
    ]


def _grid(board: Board, shade: Shade, first: int, end: int) -> Drawing:
    low, high = shade.bounds(board.cells)
    if shade.steps:
        low, high = low - 0.5, high + 0.5
    columns, left, top = board.where.columns, 56, 66
    wide = min(max((WIDTH - left - 90) // max(len(columns), 1), 44), 120)
    right = left + wide * len(columns)
    title = f"{shade.title} by layer and parameter ({shade.unit}){_rows_words(board, first, end)}"
    made = Drawing(title, max(right + 90, 6.9 * len(title)), top + ROW * (end - first) + 14)
    made.text(0, 16, title, "ink title")
    made.text((left + right) / 2, 38, "Parameter", "ink", "middle")
    middle = top + ROW * (end - first) / 2
    made.text(12, middle, "Layer", "ink", "middle", more=f' transform="rotate(-90 12 {number(middle)})"')
    for x, column in enumerate(columns):
        made.text(left + wide * (x + 0.5), top - 8, column, "soft", "middle")
    for y in range(first, end):
        made.text(left - 8, top + ROW * (y - first) + 14, board.where.rows[y], "soft", "end")
    fills: dict[str, list[str]] = {}
    words: dict[str, list[str]] = {}
    for cell in board.cells:
        if not first <= cell.y < end:
            continue
        x, y = left + wide * cell.x, top + ROW * (cell.y - first)
        value, text = shade.value(cell), shade.text(cell)
        if value is None:
            broken = cell.state in ("current", "failed")
            edge = f' stroke="{CURRENT}" stroke-width="2"' if broken else ""
            made.rect(x + 1, y + 1, wide - 2, ROW - 2, kind="none", more=edge)
            made.text(x + wide / 2, y + 14, text, "soft cell", "middle")
            continue
        share = 0.0 if high <= low else (value - low) / (high - low)
        # Cells of one colour are one path, words of one colour one group: that is a third of the size.
        place = f"M{number(x + 1)} {y + 1}h{number(wide - 2)}v{ROW - 2}h{number(2 - wide)}z"
        fills.setdefault(colour(round(share * COLOURS) / COLOURS), []).append(place)
        ink = "#10181d" if share > 0.5 else "#ffffff"
        words.setdefault(ink, []).append(
            f'<text x="{number(x + wide / 2)}" y="{y + 14}">{escape(text)}</text>'
        )
    made.parts += [f'<path fill="{tint}" d="{"".join(places)}"/>' for tint, places in fills.items()]
    made.parts += [
        f'<g class="cell" text-anchor="middle" fill="{ink}">{"".join(texts)}</g>'
        for ink, texts in words.items()
    ]
    _colour_bar(made, shade, low, high, right + 18, top, min(ROW * (end - first), 200))
    return made


def _colour_bar(
    made: Drawing, shade: Shade, low: float, high: float, x: float, top: float, height: float
) -> None:
    made.text(x - 4, top - 8, shade.mark, "soft")
    ticks = [tick for tick in shade.ticks if low <= tick <= high]
    parts = [*range(int(low + 0.5), int(high + 0.5))] if shade.steps else range(40)
    for at in range(len(parts)):
        share = (at + 0.5) / len(parts)
        made.rect(x, top + height * (1 - (at + 1) / len(parts)), 12, height / len(parts) + 0.4, colour(share))
    gap = -99.0
    for tick in ticks:
        y = top + height * (1 - (tick - low) / (high - low)) + 4
        if abs(y - gap) >= 13:
            made.text(x + 18, y, f"{tick * shade.factor:g}", "soft")
            gap = y


def zeros(board: Board, facts: Facts) -> list[Picture]:
    """Zeros of each layer against band and target, a picture for each page."""
    target = sparsity_target(facts.config, facts.state["plan"])
    most = max([0.6, *(bar.high for bar in board.bars if bar.high is not None)])
    found = []
    for first, end in pages(board):
        dashed = f"dashed: {target.name}" if target.value is not None else target.name
        title = f"Zeros by layer (band 25–45 %, {dashed}){_rows_words(board, first, end)}"
        left, top = 56, 66
        made = Drawing(title, WIDTH, top + ROW * (end - first) + 14)
        right, bottom = WIDTH - 20, top + ROW * (end - first)

        def x(share: float, left: float = left, right: float = right) -> float:
            return left + share / most * (right - left)

        made.text(0, 16, title, "ink title")
        made.text((left + right) / 2, 38, "Share of codes that are zero", "ink", "middle")
        middle = (top + bottom) / 2
        made.text(12, middle, "Layer", "ink", "middle", more=f' transform="rotate(-90 12 {number(middle)})"')
        low, high = map(x, SPARSITY_BAND)
        made.rect(low, top, high - low, bottom - top, "#009E73", more=' fill-opacity="0.14"')
        for tenth in range(int(most * 10 + 1e-9) + 1):
            made.line(x(tenth / 10), top - 4, x(tenth / 10), bottom, kind="grid")
            made.text(x(tenth / 10), top - 8, f"{10 * tenth} %", "soft", "middle")
        for bar in board.bars[first:end]:
            y = top + ROW * (board.where.rows.index(bar.row) - first)
            made.text(left - 8, y + 14, bar.row, "soft", "end")
            if bar.value is None or bar.low is None or bar.high is None:
                made.text(left + 6, y + 14, fig.NOTHING, "soft cell")
                continue
            made.rect(left, y + 3, x(bar.value) - left, ROW - 6, OKABE_ITO[0] if bar.inside else CURRENT)
            made.line(
                x(bar.low), y + ROW / 2, x(bar.high), y + ROW / 2, kind="range", more=' stroke-width="2"'
            )
            made.text(left + 6, y + 14, bar.text, "cell", fill="#ffffff")
        if target.value is not None:
            at = x(target.value)
            made.line(at, top, at, bottom, CURRENT, more=' stroke-width="2" stroke-dasharray="6 4"')
        found.append(Picture(f"zeros{_suffix(board, first)}", made))
    return found


def training(facts: Facts) -> list[Picture]:
    """Curves of fine-tuning, of custom metrics and of plug-ins."""
    charts = [
        *curve_views.training_charts(facts.state),
        *curve_views.custom_charts(facts.state),
        *added_charts(facts.state),
    ]
    found: list[Picture] = []
    for chart in charts:
        lines = [(line.title, *_thin(line.x, line.y)) for line in chart.lines]
        xs = [x for _, column, _ in lines for x in column]
        ys = [y for _, _, column in lines for y in column if y == y]
        if not xs or not ys:
            continue
        made = Drawing(chart.title, NARROW, HEIGHT - 30)
        # There is a half of a minute, but of no step.
        whole = chart.x_label != curve_views.X_LABELS["time"] and all(float(x).is_integer() for x in xs)
        ends = min(xs), max(xs)
        frame = Frame(made, ends, _room(ys), x_label=chart.x_label, y_label=chart.y_label, whole_x=whole)
        for (_, across, up), tint, dash in zip(lines, OKABE_ITO, DASHES):
            points = [(frame.x(a), frame.y(b)) for a, b in zip(across, up)]
            made.path(points, tint, dash)
            if len(points) < 40:
                for a, b in points:
                    if b == b:
                        made.mark(a, b, "circle", tint, 2.5)
        frame.legend([(title, tint, dash) for (title, _, _), tint, dash in zip(lines, OKABE_ITO, DASHES)],
                     dashes=True)  # fmt: skip
        own = chart.key.startswith(("metric:", "plugin:"))
        found.append(Picture(slug(chart.key if own else f"training-{chart.key}"), made))
    return found


def pictures(facts: Facts, tensors: int = WORST) -> list[Picture]:
    """Every chart of the run that has data, in the page's order; of single tensors so many, worst first."""
    board = board_of(facts)
    found: list[Picture | None] = []
    if board.cells:
        for shade in SHADES.values():
            found += grids(board, shade)
        found += zeros(board, facts)
        found.append(errors(board))
        weights, rest = worst_pictures(facts, tensors)
        found += [*weights, *rest, *tuning(facts)]
    found += training(facts)
    found += gradient_norms(facts)
    return [picture for picture in found if picture is not None]


def _suffix(board: Board, first: int) -> str:
    return "" if len(board.where.rows) <= LAYERS_A_PAGE else f"-{first // LAYERS_A_PAGE + 1:02d}"


def _rows_words(board: Board, first: int, end: int) -> str:
    rows = board.where.rows
    return "" if len(rows) <= LAYERS_A_PAGE else f", layers {rows[first]}–{rows[end - 1]}"


def _thin(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    kept = downsample(y, CURVE_POINTS)
    return [x[i] for i in kept], [y[i] for i in kept]


def _room(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    room = 0.05 * (high - low)
    return (0.0 if 0 <= low < 0.25 * high else low - room), high + room
