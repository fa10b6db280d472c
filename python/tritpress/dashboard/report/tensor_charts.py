"""Single tensors as drawings: weights, scales, blocks of weights, and what other thresholds would give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.picture import COLOURS, HEIGHT, NARROW, WIDTH, Picture, colour, slug
from tritpress.dashboard.report.svg import Drawing, Frame, number
from tritpress.dashboard.theme import CURRENT, OKABE_ITO
from tritpress.dashboard.views import figures as fig
from tritpress.runs.details import load_many
from tritpress.runs.diff import ordered, tensor_diffs
from tritpress.runs.tuning import basis_of, read_curves, sweep
from tritpress.ternarize.details import TensorDetails

WIDE = 20.0
"""Largest over least perplexity from which an axis is logarithmic."""

WORST = 6
"""Tensors whose weights the report shows before and after."""


def histogram(name: str, details: TensorDetails) -> Picture:
    """Weights of a tensor before and after, over the mean |w| of their group."""
    edges = [float(edge) for edge in details.histogram_edges]
    columns = []
    for counts in (details.histogram_before, details.histogram_after):
        total = float(counts.sum()) or 1.0
        columns.append([float(c) / total for c in counts])
    # Both are drawn on the scale of what was there before: what became one value stands out beyond it.
    top = 1.6 * max(columns[0]) or 1.0
    made = Drawing(name, NARROW, HEIGHT - 30)
    frame = Frame(made, (edges[0], edges[-1]), (0.0, 100 * top), x_label="Weight / mean |w| of its group",
                  y_label="% of the weights")  # fmt: skip
    for shares, tint, dash in zip(columns, (OKABE_ITO[0], OKABE_ITO[5]), ("", "")):
        points: list[tuple[float, float]] = []
        for at, share in enumerate(shares):
            y = frame.y(100 * min(share, top))
            points += [(frame.x(edges[at]), y), (frame.x(edges[at + 1]), y)]
        made.path(points, tint, dash)
    legend = [("before", OKABE_ITO[0], ""), ("after (cut off at the top)", OKABE_ITO[5], "")]
    threshold = details.threshold_used
    if fig.known(threshold) and 0 < threshold < edges[-1]:
        for x in (frame.x(-threshold), frame.x(threshold)):
            made.line(x, frame.top, x, frame.bottom, CURRENT, more=' stroke-dasharray="6 4"')
        legend.append((f"threshold ±{fig.significant(threshold)}", CURRENT, "6 4"))
    frame.legend(legend, dashes=True)
    return Picture(f"histogram-{slug(name)}", made)


def worst_tensors(facts: Facts, most: int = WORST) -> Iterator[tuple[str, TensorDetails]]:
    """The tensors with the largest error, as far as the run recorded them."""
    worst = [diff.name for diff in ordered(tensor_diffs(facts.state)) if diff.error is not None][:most]
    return load_many(facts.path, worst)


def worst_pictures(facts: Facts, most: int = WORST) -> tuple[list[Picture], list[Picture]]:
    """Of these tensors, each read once: weights before and after; scales and blocks."""
    weights, rest = [], []
    for name, details in worst_tensors(facts, most):
        weights.append(histogram(name, details))
        rest += [scales(name, details), blocks(name, details)]
    return weights, rest


def scales(name: str, details: TensorDetails) -> Picture:
    """Distribution of a tensor's scales, all planes together; their bins are even in the logarithm."""
    edges = [math.log10(edge) if edge > 0 else math.nan for edge in map(float, details.scale_edges)]
    total = float(details.scale_histogram.sum()) or 1.0
    shares = [100 * float(count) / total for count in details.scale_histogram]
    made = Drawing(f"Scales of {name}", NARROW, HEIGHT - 30)
    ends = [edge for edge in edges if edge == edge] or [0.0]
    across, up = (ends[0], ends[-1]), (0.0, 1.1 * max(shares) or 1.0)
    frame = Frame(made, across, up, x_label="log10 of the scale", y_label="% of the scales", whole_x=False)
    points: list[tuple[float, float]] = []
    for at, share in enumerate(shares):
        points += [(frame.x(edges[at]), frame.y(share)), (frame.x(edges[at + 1]), frame.y(share))]
    made.path(points, OKABE_ITO[0])
    return Picture(f"scales-{slug(name)}", made)


def blocks(name: str, details: TensorDetails) -> Picture:
    """The blocks of a tensor: mean weight before and after by one map, and their root mean square error."""
    side, top, gap = 192.0, 66.0, 48.0
    made = Drawing(f"Blocks of {name}", max(WIDTH, 3 * side + 2 * gap + 30), top + side + 44)
    made.text(0, 16, made.title, "ink title")
    most = float(max(np.abs(details.block_before).max(), np.abs(details.block_after).max())) or 1.0
    worst = float(details.block_error.max()) or 1.0
    panels = (
        ("Before: mean weight", details.block_before, -most, most),
        ("After: mean weight", details.block_after, -most, most),
        ("Root mean square error", details.block_error, 0.0, worst),
    )
    for at, (title, values, low, high) in enumerate(panels):
        left = 20 + at * (side + gap)
        made.text(left, 44, title, "ink")
        _image(made, values, low, high, (left, top, side))
        ends = f"{fig.significant(low)} (dark) to {fig.significant(high)} (light)"
        made.text(left, top + side + 18, ends, "soft")
    made.text(20, top + side + 38, "Rows (outputs) from the top, columns (inputs) from the left", "soft")
    return Picture(f"blocks-{slug(name)}", made)


def _image(made: Drawing, values: Any, low: float, high: float, place: tuple[float, float, float]) -> None:
    left, top, side = place
    rows, cols = values.shape
    wide, high_of_cell = side / cols, side / rows
    fills: dict[str, list[str]] = {}
    steps = np.clip(np.rint((values - low) / (high - low) * COLOURS), 0, COLOURS).astype(int)
    tints = [colour(step / COLOURS) for step in range(COLOURS + 1)]
    across = [f"M{number(left + wide * x)} " for x in range(cols)]
    cell = f"h{number(wide)}v{number(high_of_cell)}h{number(-wide)}z"
    for y, line in enumerate(steps.tolist()):
        rest = f"{number(top + high_of_cell * y)}{cell}"
        for x, step in enumerate(line):
            fills.setdefault(tints[step], []).append(across[x] + rest)
    # Cells of one colour are one path: that is a third of the size.
    made.parts += [
        f'<path fill="{tint}" shape-rendering="crispEdges" d="{"".join(cells)}"/>'
        for tint, cells in fills.items()
    ]


def tuning(facts: Facts) -> list[Picture]:
    """What each threshold for all tensors would give by the curves that the run kept."""
    basis = basis_of(facts.state)
    curves = read_curves(facts.path, facts.state)
    swept = sweep(curves, list(curves), basis)
    if swept is None:
        return []
    charts: list[tuple[str, str, str, Any]] = [
        ("tuning-zeros", "Zeros by threshold, all tensors", "% of the codes", 100 * swept.zeros),
        ("tuning-error", "Error by threshold, all tensors", "Squared error / squared norm", swept.error),
    ]
    if swept.perplexity is not None:
        title = "Predicted perplexity by threshold, all tensors"
        charts.append(("tuning-perplexity", title, "Perplexity", swept.perplexity))
    found = []
    for key, title, label, values in charts:
        known = [(float(x), float(y)) for x, y in zip(swept.thresholds, values) if math.isfinite(y)]
        if not known:
            continue
        made = Drawing(title, NARROW, HEIGHT - 30)
        low, high = min(y for _, y in known), max(y for _, y in known)
        log_y = key == "tuning-perplexity" and high > WIDE * low
        ends = (0.9 * low, 1.1 * high) if key == "tuning-perplexity" else (0.0, 1.05 * high or 1.0)
        frame = Frame(made, (known[0][0], known[-1][0]), ends, x_label="Threshold / mean |w| of the group",
                      y_label=label, log_y=log_y)  # fmt: skip
        made.path([(frame.x(x), frame.y(y)) for x, y in known], OKABE_ITO[0])
        found.append(Picture(key, made))
    return found
