"""What goes into the zip of a run: its charts as SVG, its tables as CSV, its reports."""

from __future__ import annotations

from dataclasses import dataclass

from tritpress.dashboard.report.charts import pictures
from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.report.tables import tables


@dataclass(frozen=True)
class Bundle:
    """`name` of the zip without its ending; `files` (path, text); `drawings` (path without ending, SVG)."""

    name: str
    files: tuple[tuple[str, str], ...]
    drawings: tuple[tuple[str, str], ...]


def bundle(facts: Facts) -> Bundle:
    """Everything, each file named by run and chart or table."""
    run = facts.file_name
    files = [(f"tables/{run}-{table.key}.csv", table.csv()) for table in tables(facts)]
    files.append((f"{run}-report.html", report_html(facts)))
    text = report_json(facts)
    if text is not None:
        files.append((f"{run}-report.json", text))
    seen: dict[str, int] = {}
    drawings = []
    for picture in pictures(facts):
        seen[picture.key] = count = seen.get(picture.key, 0) + 1
        key = picture.key if count == 1 else f"{picture.key}-{count}"
        drawings.append((f"charts/{run}-{key}", picture.drawing.render(alone=True)))
    return Bundle(f"{run}-charts", tuple(files), tuple(drawings))


def report_json(facts: Facts) -> str | None:
    """`report.json` as the run wrote it; None before the run has finished."""
    try:
        return (facts.path / "report.json").read_text(encoding="utf-8") if facts.report else None
    except OSError:
        return None
