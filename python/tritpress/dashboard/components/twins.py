"""Charts as tables, for readers who do not see them: below the chart, folded away or behind a switch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tritpress.dashboard.components.export import csv_button, csv_tools
from tritpress.dashboard.components.html import Markup, join
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.curves import Chart, twin_caption, twin_rows

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


def curve(chart: Chart) -> Markup:
    """The lines of a chart, their ends and some of what lies between; nothing where there are none."""
    if chart.empty:
        return Markup("")
    head, rows = twin_rows(chart)
    return Markup(
        '<div class="scroll" style="margin-top:14px"><table data-twin="{}"><caption style="text-align:left">'
        "{} {}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(
        chart.key,
        twin_caption(chart.title, chart.y_label),
        csv_button(f"curve-{chart.key}"),
        join(Markup("<th>{}</th>").format(word) for word in head),
        join(
            Markup("<tr>{}</tr>").format(join(Markup("<td>{}</td>").format(cell) for cell in row))
            for row in rows
        ),
    )


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
