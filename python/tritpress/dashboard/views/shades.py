"""What the grid of layers and parameters is coloured by: a figure, its unit, its scale, how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.progress import MARKS, Cell


@dataclass(frozen=True)
class Shade:
    """A figure of a cell as a colour. `low` and `high` bound the scale unless values lie outside."""

    key: str
    title: str
    unit: str  # said in the chart's title
    mark: str  # stands behind the numbers of the colour bar
    low: float
    high: float
    ticks: tuple[float, ...]
    short: Callable[[float], str]  # as written in a cell
    steps: bool = False  # whole numbers, each with a colour of its own
    factor: float = 1.0  # of a tick's label

    def value(self, cell: Cell) -> float | None:
        """The figure, None while it is not known."""
        value = getattr(cell, self.key)
        return value if fig.known(value) else None

    def text(self, cell: Cell) -> str:
        """What is written in the cell: the figure, or a sign for the state."""
        value = self.value(cell)
        if value is not None:
            return self.short(value)
        if cell.state == "done":
            return fig.NOTHING
        if len(cell.names) > 1 and cell.done and cell.state in ("waiting", "unreached"):
            return f"{cell.done}/{len(cell.names)}"
        return MARKS[cell.state]

    def bounds(self, cells: Iterable[Cell]) -> tuple[float, float]:
        """The ends of the scale, the same on every page."""
        values = [value for cell in cells if (value := self.value(cell)) is not None]
        return min([self.low, *values]), max([self.high, *values])


def _trimmed(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


SHADES: dict[str, Shade] = {
    shade.key: shade
    for shade in (
        # One to three planes in groups of 64 give ratios of 14.2, 7.1 and 4.7: the scale holds them all.
        Shade(
            "ratio",
            "Ratio",
            "times smaller than float32",
            "×",
            4.0,
            15.0,
            (4, 6, 8, 10, 12, 14),
            lambda v: f"{v:.1f}",
        ),
        Shade(
            "sparsity",
            "Sparsity",
            "per cent of codes that are zero",
            " %",
            0.20,
            0.50,
            (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
            lambda v: f"{100 * v:.0f}",
            factor=100,
        ),
        Shade(
            "error",
            "Error",
            "squared error over squared norm, in per cent",
            " %",
            0.0,
            0.20,
            (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1),
            lambda v: fig.significant(100 * v, 2) if v >= 1e-5 else "0",
            factor=100,
        ),
        Shade("planes", "Planes", "ternary planes a weight", " pl.", 1, 3, (1, 2, 3), _trimmed, steps=True),
        Shade(
            "bits",
            "Bits",
            "bits a weight, scales included",
            " bits",
            2.0,
            7.0,
            (2, 3, 4, 5, 6, 7),
            lambda v: f"{v:.2f}".rstrip("0").rstrip("."),
        ),
    )
}
"""The colours to choose from, by their name in the URL."""


def all_figures(cell: Cell) -> dict[str, str]:
    """Every figure of a cell as text, by the words for it."""
    return {
        "Ratio": fig.ratio(cell.ratio),
        "Bits a weight": fig.significant(cell.bits),
        "Planes": fig.significant(cell.planes),
        "Zeros": fig.percent(cell.sparsity),
        "Zero in every plane": fig.percent(cell.zeros_all_planes),
        "Error": fig.percent(cell.error, 2),
        "Mean squared error": fig.significant(cell.mse),
        "Cosine": fig.significant(cell.cosine, 4),
        "Weights": fig.large_count(cell.weights),
        "Threshold": fig.significant(cell.threshold_used),
        "Group size": ", ".join(map(fig.count, cell.group_sizes)) or fig.NOTHING,
        "Method": ", ".join(cell.methods) or fig.NOTHING,
        "Sign flips": fig.percent(cell.sign_flips, 2),
        "Time": fig.duration(cell.seconds),
    }


def cell_words(cell: Cell) -> str:
    """All that is known of a cell in one line, for those who move through the grid by keyboard."""
    where = f"Layer {cell.row}" if cell.row.isdigit() else "Outside the layers"
    if cell.state != "done":
        return f"{where} · {cell.column} · {cell.words}"
    known = [f"{name.lower()} {text}" for name, text in all_figures(cell).items() if text != fig.NOTHING]
    return f"{where} · {cell.column} · {' · '.join(known)}"
