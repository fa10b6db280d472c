"""`tritpress runs compare` and `runs diff` as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from tritpress.console.numbers import DASH, duration, figure, percent, size, times
from tritpress.console.tables import right, simple_table
from tritpress.runs.comparison import Side, figures, gates, settings, shown_as
from tritpress.runs.diff import TensorDiff

SHOW = {
    "bytes": size,
    "memory_bytes": size,
    "memory_bytes_before": size,
    "ratio_file": times,
    "ratio_layers": times,
    "ratio_disk": times,
    "sparsity": percent,
    "perplexity_change": percent,
    "top1": percent,
    "accuracy_kept": percent,
    "tasks_kept": percent,
    "agreement": percent,
    "seconds": duration,
}
VERDICTS = {True: "pass", False: "FAIL", None: "not measured"}


def print_diff(screen: Console, diffs: list[TensorDiff], total: int, sort: str) -> None:
    """One line a tensor, in the order given."""
    table = simple_table(
        ("tensor", {"overflow": "fold"}),
        *map(right, ("error", "cosine", "flips", "zeros", "planes", "bits")),
    )
    for diff in diffs:
        table.add_row(
            Text(diff.name),
            f"{100 * diff.error:.3g} %" if diff.error is not None else DASH,
            f"{diff.cosine:.4f}" if diff.cosine is not None else DASH,
            f"{100 * diff.sign_flips:.2g} %" if diff.sign_flips is not None else DASH,
            percent(diff.zeros),
            str(diff.planes),
            f"{diff.bits:.2f}",
        )
    screen.print(table)
    if len(diffs) < total:
        print(f"{len(diffs)} of {total} tensors, by {sort}; --limit shows more.")


def print_comparison(screen: Console, sides: list[Side]) -> None:
    """Settings that differ, figures (the best with a star), gates."""
    heads = [right(escape(side.name)) for side in sides]
    differing = [row for row in settings(sides) if row.differs]
    if differing:
        table = simple_table("setting", *heads, title="Settings that differ")
        for row in differing:
            table.add_row(row.key.replace("_", " "), *(Text(_value(value)) for value in row.values))
        screen.print(table)
    else:
        print("No setting differs.")
    table = simple_table("figure", *heads, title="Figures (* best)")
    table.add_row("status", *(side.status for side in sides))
    for found in figures(sides):
        show = SHOW.get(shown_as(found.key), figure)
        cells = [
            show(value) + (" *" if place in found.best else "") for place, value in enumerate(found.values)
        ]
        table.add_row(Text(found.title), *cells)  # a task's name is the run's own
    screen.print(table)
    table = simple_table("gate", *heads, title="Gates")
    for name, verdicts in gates(sides):
        table.add_row(
            name.replace("_", " "),
            *(DASH if gate is None else VERDICTS[gate.get("passed")] for gate in verdicts),
        )
    screen.print(table)


def _value(value: Any) -> str:
    if value is None or value == []:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
