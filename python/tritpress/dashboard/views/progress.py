"""The Progress tab as data: a grid of layers and parameters, 32 layers a page, and each layer's zeros."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.status import State

LAYERS_A_PAGE = 32

KINDS = ("q", "k", "v", "qkv", "o", "gate", "up", "fc1", "down", "fc2", "expert", "other")
"""Columns of the grid in the order in which a block computes them."""

METRICS = {"ratio": "Ratio", "sparsity": "Sparsity"}

SPARSITY_BAND = (0.25, 0.45)
"""The gate's band."""

SPARSITY_CEILING = 0.44
"""What a fit holds itself to when nothing else was asked for (config.SPARSITY_CEILING)."""

OUTSIDE = "–"
"""Row of tensors that belong to no layer."""


@dataclass(frozen=True)
class Cell:
    """One parameter of one layer; several tensors of a kind (experts) are folded into one cell."""

    row: str
    column: str
    state: str  # done, current, waiting, absent
    value: float | None
    text: str
    names: tuple[str, ...] = ()
    done: int = 0
    planes: float | None = None
    bits: float | None = None
    ratio: float | None = None
    sparsity: float | None = None
    mse: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Bar:
    """Sparsity of a layer: mean over its pressed tensors' codes, and the least and largest of them."""

    row: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    inside: bool | None  # within the gate's band


@dataclass(frozen=True)
class Grid:
    """One page of the model. `low` and `high` bound the colours and are the same on every page."""

    metric: str
    page: int
    pages: int
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    bars: tuple[Bar, ...]
    low: float
    high: float
    first: int = 0
    last: int = 0
    layers: int = 0
    current: str | None = None  # the tensor that was named last while tensors are pressed


@dataclass
class Map:
    """Which tensors lie at which layer and parameter; made once per run, when its targets are known."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    tensors: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)


def map_targets(targets: Iterable[dict[str, Any]]) -> Map:
    """Sort the targets into rows (layers) and columns (parameter kinds)."""
    cells: dict[tuple[str, str], list[str]] = {}
    weights: dict[str, int] = {}
    layers: set[int] = set()
    outside, kinds = False, set()
    for target in targets:
        layer, kind = target.get("layer"), target.get("kind") or "other"
        kind = kind if kind in KINDS else "other"
        row = OUTSIDE if layer is None else str(layer)
        outside = outside or layer is None
        if layer is not None:
            layers.add(int(layer))
        kinds.add(kind)
        cells.setdefault((row, kind), []).append(target["name"])
        weights[target["name"]] = int(target.get("rows") or 1) * int(target.get("cols") or 1)
    rows = tuple(str(layer) for layer in sorted(layers)) + ((OUTSIDE,) if outside else ())
    columns = tuple(kind for kind in KINDS if kind in kinds)
    return Map(rows, columns, {where: tuple(names) for where, names in cells.items()}, weights)


def page_count(rows: int) -> int:
    """Pages of 32 layers; one when there is nothing yet."""
    return max(1, -(-rows // LAYERS_A_PAGE))


def page_of(where: Map, name: str | None) -> int | None:
    """The page on which that tensor lies."""
    for (row, _), names in where.tensors.items():
        if name in names:
            return where.rows.index(row) // LAYERS_A_PAGE
    return None


def grid(state: State, where: Map, page: int, metric: str = "ratio") -> Grid:
    """One page of the grid, from what is finished so far."""
    layers, current = state["layers"], (state.get("current") or {}).get("name")
    pages = page_count(len(where.rows))
    page = min(max(page, 0), pages - 1)
    first = page * LAYERS_A_PAGE
    rows = where.rows[first : first + LAYERS_A_PAGE]
    low, high = _bounds(metric, layers)
    cells = tuple(
        _cell(row, column, where.tensors.get((row, column), ()), where, layers, current, metric)
        for row in rows
        for column in where.columns
    )
    bars = tuple(_bar(row, where, layers) for row in rows)
    return Grid(
        metric,
        page,
        pages,
        rows,
        where.columns,
        cells,
        bars,
        low,
        high,
        first,
        first + len(rows) - 1,
        len(where.rows),
        current,
    )


def _bounds(metric: str, layers: dict[str, Any]) -> tuple[float, float]:
    values = [layer[metric] for layer in layers.values() if fig.known(layer.get(metric))]
    # One to three planes in groups of 64 give ratios of 14.2, 7.1 and 4.7: the scale holds them all.
    low, high = (4.0, 15.0) if metric == "ratio" else (0.20, 0.50)
    return min([low, *values]), max([high, *values])


def _cell(
    row: str,
    column: str,
    names: tuple[str, ...],
    where: Map,
    layers: dict[str, Any],
    current: str | None,
    metric: str,
) -> Cell:
    if not names:
        return Cell(row, column, "absent", None, "")
    found = [(layers[name], where.weights.get(name, 1)) for name in names if name in layers]
    if len(found) < len(names):
        state = "current" if current in names else "waiting"
        text = "…" if state == "current" else ""
        if len(names) > 1 and found:
            text = f"{len(found)}/{len(names)}"
        return Cell(row, column, state, None, text, names, len(found))
    mean = {key: _mean(found, key) for key in ("planes", "bits", "ratio", "sparsity", "mse", "cosine")}
    value = mean[metric]
    text = f"{value:.1f}" if metric == "ratio" and fig.known(value) else ""
    if metric == "sparsity" and fig.known(value):
        text = f"{100 * value:.0f}"  # type: ignore[operator]
    return Cell(row, column, "done", value, text, names, len(found), **mean)


def _mean(found: list[tuple[dict[str, Any], int]], key: str) -> float | None:
    known = [(layer[key], weight) for layer, weight in found if fig.known(layer.get(key))]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _bar(row: str, where: Map, layers: dict[str, Any]) -> Bar:
    names = [
        name for (at, _), group in where.tensors.items() if at == row for name in group if name in layers
    ]
    shares = [
        (layers[name]["sparsity"], where.weights.get(name, 1) * (layers[name].get("planes") or 1))
        for name in names
        if fig.known(layers[name].get("sparsity"))
    ]
    if not shares:
        return Bar(row, None, None, None, "", None)
    value = sum(share * codes for share, codes in shares) / sum(codes for _, codes in shares)
    low, high = min(share for share, _ in shares), max(share for share, _ in shares)
    inside = SPARSITY_BAND[0] <= value <= SPARSITY_BAND[1]
    return Bar(row, value, low, high, fig.percent(value) + ("" if inside else " !"), inside)


@dataclass(frozen=True)
class SparsityTarget:
    """Where the zeros should be: a line with its name, and the gate's band."""

    value: float | None
    name: str
    band: tuple[float, float] = SPARSITY_BAND


def sparsity_target(config: dict[str, Any]) -> SparsityTarget:
    """The line of the sparsity bars: what the user asked for, else the ceiling that a fit keeps."""
    asked = config.get("sparsity")
    if fig.known(asked):
        return SparsityTarget(float(asked), f"target {fig.percent(asked, 0)}")
    if asked == "free":
        return SparsityTarget(None, "no ceiling")
    if config.get("threshold") is not None:
        return SparsityTarget(None, f"threshold {fig.significant(config['threshold'])}")
    return SparsityTarget(SPARSITY_CEILING, f"ceiling {fig.percent(SPARSITY_CEILING, 0)}")


def pressed_words(state: State) -> str:
    """`24 of 42 tensors pressed`."""
    total = len(state.get("targets") or [])
    if not total:
        return "the tensors are found in step 1"
    return f"{len(state['layers'])} of {fig.plural(total, 'tensor')} pressed"
