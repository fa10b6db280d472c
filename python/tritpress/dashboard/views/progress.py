"""The Progress tab as data: every tensor's place in a grid of layers and parameters, 32 layers a page.

A `Board` holds the whole model's cells and says after each look which of them changed: a page of the browser
has all cells, and turning to another 32 layers moves its window alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tritpress.config import SPARSITY_CEILING
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.ending import over
from tritpress.dashboard.views.status import State
from tritpress.events.snapshot import weights_of

LAYERS_A_PAGE = 32

KINDS = ("q", "k", "v", "qkv", "o", "gate", "up", "fc1", "down", "fc2", "expert", "other")
"""Columns of the grid in the order in which a block computes them."""

SPARSITY_BAND = (0.25, 0.45)
"""The gate's band."""

OUTSIDE = "other"
"""Row of tensors that belong to no layer."""

FIGURES = (
    "planes", "bits", "ratio", "sparsity", "zeros_all_planes", "mse", "cosine", "relative_error",
    "sign_flips", "threshold_used",
)  # fmt: skip
"""Means by weights where several tensors are folded into a cell; seconds are their sum."""

WORDS = {
    "done": "pressed",
    "current": "at work",
    "waiting": "waiting",
    "failed": "broke off here",
    "unreached": "not reached",
}

MARKS = {"done": "", "current": "▶", "waiting": "·", "failed": "✕", "unreached": "–"}
"""What stands in a cell without a figure: a state is never told by colour alone."""


@dataclass(frozen=True)
class Cell:
    """One parameter of one layer; several tensors of a kind (experts) are folded into one cell: their mean by
    weights, once all of them are pressed.
    """

    row: str
    column: str
    y: int  # number of the row
    x: int  # number of the column
    names: tuple[str, ...]
    state: str = "waiting"  # done, current, waiting, failed, unreached (the run was over before)
    done: int = 0  # tensors pressed
    weights: int = 0
    planes: float | None = None
    bits: float | None = None
    ratio: float | None = None
    sparsity: float | None = None
    zeros_all_planes: float | None = None
    mse: float | None = None
    cosine: float | None = None
    relative_error: float | None = None
    sign_flips: float | None = None
    threshold_used: float | None = None
    seconds: float | None = None
    group_sizes: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        """Squared error over squared norm. Older runs did not record it: 1 - cosine^2 is the same for a fit
        by least squares.
        """
        if fig.known(self.relative_error):
            return self.relative_error
        return 1 - self.cosine**2 if fig.known(self.cosine) else None

    @property
    def title(self) -> str:
        """The tensor's name, or how many are folded here."""
        return self.names[0] if len(self.names) == 1 else f"{fig.plural(len(self.names), 'tensor')} folded"

    @property
    def words(self) -> str:
        """The state, and how far a folded cell is."""
        word = WORDS[self.state]
        return f"{word}, {self.done} of {len(self.names)} pressed" if len(self.names) > 1 else word


@dataclass(frozen=True)
class Bar:
    """Sparsity of a layer: mean over its pressed tensors' codes, and the least and largest of them."""

    row: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    inside: bool | None  # within the gate's band


@dataclass
class Map:
    """Which tensors lie at which layer and parameter; made once per run, when its targets are known."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    tensors: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    place: dict[str, int] = field(default_factory=dict)  # tensor -> number of its row


def map_targets(targets: Iterable[dict[str, Any]]) -> Map:
    """Sort the targets into rows (layers) and columns (parameter kinds)."""
    cells: dict[tuple[str, str], list[str]] = {}
    weights: dict[str, int] = {}
    layers: set[int] = set()
    outside, kinds = False, set()
    for target in targets:
        layer, kind = target.get("layer"), target.get("kind") or "other"
        layer = int(layer) if fig.known(layer) else None
        kind = kind if kind in KINDS else "other"
        row = OUTSIDE if layer is None else str(layer)
        outside = outside or layer is None
        if layer is not None:
            layers.add(layer)
        kinds.add(kind)
        cells.setdefault((row, kind), []).append(target["name"])
        weights[target["name"]] = weights_of(target) or 1
    rows = tuple(str(layer) for layer in sorted(layers)) + ((OUTSIDE,) if outside else ())
    columns = tuple(kind for kind in KINDS if kind in kinds)
    at = {row: number for number, row in enumerate(rows)}
    place = {name: at[row] for (row, _), names in cells.items() for name in names}
    return Map(rows, columns, {where: tuple(names) for where, names in cells.items()}, weights, place)


def page_count(rows: int) -> int:
    """Pages of 32 layers; one when there is nothing yet."""
    return max(1, -(-rows // LAYERS_A_PAGE))


def page_of(where: Map, name: str | None) -> int | None:
    """The page on which that tensor lies."""
    row = where.place.get(name or "")
    return None if row is None else row // LAYERS_A_PAGE


def row_of_layer(where: Map, layer: int) -> int | None:
    """The row of that layer, or of the nearest one below it; None without layers."""
    numbers = [int(row) for row in where.rows if row != OUTSIDE]
    below = [number for number in numbers if number <= layer]
    return where.rows.index(str(max(below))) if below else (0 if numbers else None)


@dataclass(frozen=True)
class Window:
    """The rows that a page shows: from `first` to `last`, numbers of rows."""

    page: int
    pages: int
    first: int
    last: int
    rows: int  # of the whole model

    @property
    def height(self) -> int:
        """Rows that every page of this model has room for."""
        return max(1, min(LAYERS_A_PAGE, self.rows))


def window(where: Map, page: int) -> Window:
    """The page nearest to the one asked for."""
    pages = page_count(len(where.rows))
    page = min(max(page, 0), pages - 1)
    first = page * LAYERS_A_PAGE
    return Window(
        page, pages, first, max(first, min(first + LAYERS_A_PAGE, len(where.rows)) - 1), len(where.rows)
    )


class Board:
    """All cells of a model in the order of rows and columns, and each row's zeros."""

    def __init__(self, where: Map) -> None:
        self.where = where
        at = {row: number for number, row in enumerate(where.rows)}
        across = {column: number for number, column in enumerate(where.columns)}
        size = where.weights.__getitem__
        self.cells = sorted(
            (
                Cell(row, column, at[row], across[column], names, weights=sum(map(size, names)))
                for (row, column), names in where.tensors.items()
            ),
            key=lambda cell: (cell.y, cell.x),
        )
        self.bars = [Bar(row, None, None, None, "", None) for row in where.rows]
        self.index = {(cell.y, cell.x): number for number, cell in enumerate(self.cells)}
        self._cell_of = {name: number for number, cell in enumerate(self.cells) for name in cell.names}
        self.states = Counter(cell.state for cell in self.cells)
        """How many cells there are of each state."""
        self.folds = any(len(cell.names) > 1 for cell in self.cells)
        """Whether some cell stands for several tensors."""
        self._seen: dict[str, Any] = {}
        self._plan: Any = None
        self._methods: dict[str, str] = {}
        self._marked: tuple[str | None, str] = (None, "")
        self._pending = "waiting"  # what a tensor is that is not pressed

    def update(self, state: State, lost: bool = False) -> tuple[list[int], list[int]]:
        """Take in a newer state; returns the numbers of the cells and of the rows that changed."""
        layers, seen = state["layers"], self._seen
        if (plan := state.get("plan")) is not self._plan:
            self._plan, tensors = plan, (plan or {}).get("tensors") or ()
            self._methods = {t["name"]: str(t["method"]) for t in tensors if t.get("method")}
        marked = at_work(state, lost)
        looked = {self._cell_of[name] for name, _ in (marked, self._marked) if name in self._cell_of}
        # Most looks find a handful of new tensors among hundreds: those alone are gone into.
        if layers is not seen:
            looked |= {
                self._cell_of[name]
                for name, layer in layers.items()
                if seen.get(name) is not layer and name in self._cell_of
            }
        pending = "unreached" if over(state, lost) else "waiting"
        if len(layers) < len(seen) or pending != self._pending:  # another log; the run ended, or goes on
            looked = set(range(len(self.cells)))
        self._seen, self._pending = layers, pending
        changed: list[int] = []
        for number in sorted(looked):
            cell = self.cells[number]
            found = tuple(layers.get(name) for name in cell.names)
            made = _cell(cell, found, self.where, marked, self._methods, pending)
            if made != cell:
                self.states[cell.state] -= 1
                self.states[made.state] += 1
                self.cells[number] = made
                changed.append(number)
        self._marked = marked
        rows = sorted({self.cells[number].y for number in changed})
        rows = [row for row in rows if self._set_bar(row, layers)]
        return changed, rows

    def cell_of(self, name: str) -> Cell | None:
        """The cell in which that tensor lies."""
        number = self._cell_of.get(name)
        return None if number is None else self.cells[number]

    def at(self, y: int, x: int) -> Cell | None:
        """The cell at that row and column."""
        number = self.index.get((y, x))
        return None if number is None else self.cells[number]

    def _set_bar(self, row: int, layers: dict[str, Any]) -> bool:
        label = self.where.rows[row]
        names = [n for column in self.where.columns for n in self.where.tensors.get((label, column), ())]
        pressed = [(layers[n], _size(self.where, n, layers[n])) for n in names if n in layers]
        made = layer_bar(label, pressed)
        if made == self.bars[row]:
            return False
        self.bars[row] = made
        return True


def at_work(state: State, lost: bool = False) -> tuple[str | None, str]:
    """The tensor that is not finished and under way ("current") or at which the run broke off ("failed")."""
    broke = state.get("broke_at")
    if broke and broke not in state["layers"]:
        return broke, "failed"
    name = (state.get("current") or {}).get("name")
    if name is None or name in state["layers"]:
        return None, ""
    return name, "failed" if lost else "current"


def _cell(
    cell: Cell,
    found: tuple[Any, ...],
    where: Map,
    marked: tuple[str | None, str],
    methods: dict[str, str],
    pending: str,
) -> Cell:
    pressed = [(layer, _size(where, name, layer)) for name, layer in zip(cell.names, found) if layer]
    base = Cell(cell.row, cell.column, cell.y, cell.x, cell.names, weights=cell.weights)
    if len(pressed) < len(cell.names):
        state = marked[1] if marked[0] in cell.names else pending
        return replace(base, state=state, done=len(pressed))
    means: dict[str, Any] = {key: _mean(pressed, key) for key in FIGURES}
    seconds = [layer["seconds"] for layer, _ in pressed if fig.known(layer.get("seconds"))]
    return replace(
        base,
        state="done",
        done=len(pressed),
        weights=sum(weights for _, weights in pressed),
        seconds=sum(seconds) if seconds else None,
        group_sizes=tuple(
            sorted({layer["group_size"] for layer, _ in pressed if fig.known(layer.get("group_size"))})
        ),
        methods=tuple(sorted({methods[name] for name in cell.names if name in methods})),
        **means,
    )


def _size(where: Map, name: str, layer: dict[str, Any]) -> int:
    """Weights of a pressed tensor; older runs announced those of one expert."""
    return weights_of(layer) or where.weights.get(name, 1)


def _mean(found: list[tuple[dict[str, Any], int]], key: str) -> float | None:
    known = [(layer[key], weight) for layer, weight in found if fig.known(layer.get(key))]
    if len(known) == 1:
        return float(known[0][0])
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def layer_bar(row: str, pressed: list[tuple[dict[str, Any], int]]) -> Bar:
    """The zeros of a layer's pressed tensors, each given with its number of weights, by their codes."""
    shares = [
        (layer["sparsity"], weights * (layer.get("planes") or 1))
        for layer, weights in pressed
        if fig.known(layer.get("sparsity"))
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


def sparsity_target(config: dict[str, Any], plan: dict[str, Any] | None = None) -> SparsityTarget:
    """The line of the sparsity bars: what the user asked for, else the ceiling that the plan's tensors keep
    (where there is no plan yet, the one that they will)."""
    asked = config.get("sparsity")
    if fig.known(asked):
        return SparsityTarget(float(asked), f"target {fig.percent(asked, 0)}")
    if asked == "free":
        return SparsityTarget(None, "no ceiling")
    if config.get("threshold") is not None:
        return SparsityTarget(None, f"threshold {fig.significant(config['threshold'])}")
    kept = [t.get("max_sparsity", SPARSITY_CEILING) for t in (plan or {}).get("tensors") or []]
    if kept and not any(map(fig.known, kept)):
        return SparsityTarget(None, "no ceiling")
    return SparsityTarget(SPARSITY_CEILING, f"ceiling {fig.percent(SPARSITY_CEILING, 0)}")


def pressed_words(state: State) -> str:
    """`24 of 42 tensors pressed`."""
    total = len(state.get("targets") or [])
    if not total:
        return "the tensors are found in step 1"
    return f"{len(state['layers']):,} of {fig.plural(total, 'tensor')} pressed"
