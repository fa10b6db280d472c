"""Charts as tables, for readers who do not see them: folded away under the chart until they are opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tritpress.dashboard.components.export import csv_tools
from tritpress.dashboard.components.html import Markup, join
from tritpress.dashboard.views import figures as fig

BINS = 16
"""Rows of a histogram's table."""


def folded(summary: str, tables: Iterable[str]) -> Markup:
    """Tables under a line that opens them; nothing without any."""
    parts = list(tables)
    if not parts:
        return Markup("")
    return Markup(
        '<details class="small twin"><summary class="soft">{}</summary><div class="scroll">{}</div></details>'
    ).format(summary, join(parts))


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], file: str, mark: str = ""
) -> Markup:
    """A table whose first column names its rows, and a button that saves it as `file`.csv.

    `mark` is an attribute to find it by, as `data-...`.
    """
    body = join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            row[0], join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
        )
        for row in rows
    )
    heads = join(Markup('<th scope="col">{}</th>').format(word) for word in head)
    return Markup(
        "<div>{}<table {}><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(csv_tools(file), Markup(mark), caption, heads, body)


def histogram(edges: Sequence[float], before: Sequence[float], after: Sequence[float], file: str) -> Markup:
    """Weights before and after as shares, neighbouring bins put together; `edges` has one more entry."""
    step = max(1, len(before) // BINS)
    rows = [
        (
            f"{_edge(edges[at])} to {_edge(edges[min(at + step, len(edges) - 1)])}",
            fig.percent(sum(before[at : at + step]), 2),
            fig.percent(sum(after[at : at + step]), 2),
        )
        for at in range(0, len(before), step)
    ]
    return table("Share of the weights", ("Weight / mean", "Before", "After"), rows, file, "data-histogram")


def _edge(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")
