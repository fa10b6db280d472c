"""What goes into the zip of a run: its charts as SVG, its tables as CSV, its reports, and what is what."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tritpress import __version__
from tritpress.dashboard.report.charts import pictures
from tritpress.dashboard.report.facts import Facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.report.picture import Picture
from tritpress.dashboard.report.svg import clean
from tritpress.dashboard.report.tables import tables
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.outputs import ZIPPED_TENSORS, no_json


@dataclass(frozen=True)
class Bundle:
    """`name` of the zip without its ending; `files` (path, text); `drawings` (path without ending, SVG)."""

    name: str
    files: tuple[tuple[str, str], ...]
    drawings: tuple[tuple[str, str], ...]


def bundle(facts: Facts) -> Bundle:
    """Everything, each file named by run and chart or table; of single tensors the `ZIPPED_TENSORS` worst."""
    run = facts.file_name
    files = [(f"tables/{run}-{table.key}.csv", table.csv()) for table in tables(facts)]
    files.append((f"{run}-report.html", report_html(facts)))
    text = report_json(facts)
    if text is not None:
        files.append((f"{run}-report.json", text))
    seen: dict[str, int] = {}
    drawings = []
    found = pictures(facts, ZIPPED_TENSORS)
    for picture in found:
        seen[picture.key] = count = seen.get(picture.key, 0) + 1
        key = picture.key if count == 1 else f"{picture.key}-{count}"
        drawings.append((f"charts/{run}-{key}", picture.drawing.render(alone=True)))
    files.insert(0, ("README.txt", _readme(facts, found, text is not None)))
    return Bundle(f"{run}-charts", tuple(files), tuple(drawings))


def _readme(facts: Facts, found: Sequence[Picture], json: bool) -> str:
    """What the zip holds and what it does not."""
    run, day = facts.file_name, time.strftime("%Y-%m-%d")
    shown, count = sum(picture.key.startswith("blocks-") for picture in found), len(facts.state["layers"])
    if not count:
        tensors = "No tensor was pressed, so there are no charts of single tensors."
    elif not shown:
        tensors = "The run recorded no details of its tensors, so there are no charts of single tensors."
    elif shown == count:
        tensors = f"Weights, scales and blocks are drawn of every tensor ({count:,})."
    else:
        tensors = (
            f"Weights, scales and blocks are drawn of the {fig.plural(shown, 'tensor')} with the largest "
            f"error, of {count:,} that were pressed.\nThe Diff tab of the page shows and saves those of any "
            f"other; tables/{run}-layers.csv has the figures of all."
        )
    lines = [
        f"{clean(facts.name)}: charts and tables of run {facts.id}, saved on {day} by tritpress "
        f"{__version__}.",
        "",
        f"charts/  {fig.plural(len(found), 'chart')} as drawings (SVG), from the page as pictures (PNG) too",
        "tables/  the tables as CSV, with unrounded numbers",
        f"{run}-report.html  the whole report in one file, to be read offline",
    ]
    why = no_json(facts.state, facts.lost) or "its file is missing or damaged."
    lines.append(f"{run}-report.json  " + ("the report as the run wrote it" if json else f"not here: {why}"))
    return "\n".join([*lines, "", tensors, ""])


def report_json(facts: Facts) -> str | None:
    """`report.json` as the run wrote it; None before the run has finished."""
    try:
        return (facts.path / "report.json").read_text(encoding="utf-8") if facts.report else None
    except OSError:
        return None
