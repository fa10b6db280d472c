"""The list of runs as data: rows to show, what a search finds, the names for the selector."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig

Run = dict[str, Any]
"""One entry of `tritpress.runs.history.list_runs`."""

IN_SELECTOR = 50
OLDER = ".older"
"""In place of a run's id: the entry of a selector that leads to the list of all runs."""

A_PAGE = 50

LIVE = ("running", "paused", "created", "queued")

WORDS = {
    "created": ("Starting", "live", "●"),
    "queued": ("Queued", "live", "◷"),
    "running": ("Running", "live", "●"),
    "paused": ("Paused", "warning", "❚❚"),
    "finished": ("Finished", "good", "✓"),
    "failed": ("Failed", "bad", "✕"),
    "died": ("Worker gone", "bad", "✕"),
    "stopped": ("Stopped", "warning", "■"),
}

STATES = {
    "": "Any state",
    "live": "At work or queued",
    "passed": "Finished, nothing failed",
    "gates": "Finished, a gate or check failed",
    "failed": "Failed or worker gone",
    "stopped": "Stopped",
}

ORDERS = {
    "": "Newest first",
    "name": "Name",
    "ratio": "Largest ratio first",
    "perplexity": "Least perplexity change first",
    "length": "Longest first",
}

MAX_COMPARED = 6


@dataclass(frozen=True)
class RunRow:
    """One line of the table; all texts as they are to be read."""

    id: str
    name: str
    label: str
    tone: str
    mark: str
    detail: str
    model: str
    ratio: str
    bits: str
    perplexity: str
    gates: str
    when: str
    length: str
    tags: tuple[str, ...]
    note: str
    live: bool


@dataclass(frozen=True)
class Search:
    """What the list is narrowed to."""

    words: str = ""
    state: str = ""
    tag: str = ""
    order: str = ""


@dataclass(frozen=True)
class RunList:
    """One page of what a search found."""

    rows: tuple[RunRow, ...]
    found: int
    total: int
    page: int
    pages: int
    tags: tuple[str, ...]


def found_runs(runs: Sequence[Run], search: Search) -> list[Run]:
    """The runs that `search` finds, in its order, those at work on top."""
    found = [run for run in runs if _matches(run, search)]
    found.sort(key=_order(search.order))
    found.sort(key=lambda run: run.get("status") not in LIVE)
    return found


def run_list(runs: Sequence[Run], search: Search = Search(), page: int = 0, a_page: int = A_PAGE) -> RunList:
    """The runs that `search` finds, those at work on top; `page` counts from 0 and is held within bounds."""
    found = found_runs(runs, search)
    pages = max(-(-len(found) // a_page), 1)
    page = min(max(page, 0), pages - 1)
    tags = sorted({tag for run in runs for tag in run.get("tags") or ()}, key=str.casefold)
    rows = tuple(run_row(run) for run in found[page * a_page : (page + 1) * a_page])
    return RunList(rows, len(found), len(runs), page, pages, tuple(tags))


def state_group(run: Run) -> str:
    """Which entry of `STATES` the run belongs to."""
    status = run.get("status")
    if status in LIVE:
        return "live"
    if status == "finished":
        failed = False in (run.get("gates") or {}).values() or run.get("exit_code") == 3
        return "gates" if failed else "passed"
    return "stopped" if status == "stopped" else "failed"


def _matches(run: Run, search: Search) -> bool:
    if search.state and state_group(run) != search.state:
        return False
    if search.tag and search.tag not in (run.get("tags") or ()):
        return False
    words = search.words.casefold().split()
    if not words:
        return True
    text = " ".join(
        str(part)
        for part in (run["id"], run.get("name"), model_name(run), *(run.get("tags") or ()), run.get("note"))
    ).casefold()
    return all(word in text for word in words)


def _order(order: str) -> Any:
    def number(key: str, sign: float) -> Any:
        return lambda run: sign * run[key] if fig.known(run.get(key)) else float("inf")

    return {
        "name": lambda run: str(run.get("name") or run["id"]).casefold(),
        "ratio": number("ratio_file", -1),
        "perplexity": number("perplexity_change", 1),
        "length": number("seconds", -1),
    }.get(order, lambda run: -(run.get("created") or 0))


def run_row(run: Run, when: str = "started") -> RunRow:
    """The line of one run; `when` is the time that is shown."""
    status = run.get("status") or ""
    label, tone, mark = WORDS.get(status, (str(status), "neutral", "○"))
    if status == "finished" and state_group(run) == "gates":
        tone, mark = "warning", "!"
    detail = ""
    if status in LIVE and run.get("step"):
        done, total = run.get("layers_done"), run.get("layers_total")
        pressed = f" · {done} of {total} tensors" if run["step"] == 4 and total else ""
        detail = f"Step {run['step']} of 7{pressed}"
    elif status == "queued":
        detail = f"After {fig.plural(len(run.get('after') or ()), 'run')}"
    elif status == "failed":
        detail = _short(run.get("error") or "", 60)
    at = run.get(when) or (run.get("created") if when == "started" else None)
    return RunRow(
        id=str(run["id"]),
        name=str(run.get("name") or run["id"]),
        label=label,
        tone=tone,
        mark=mark,
        detail=detail,
        model=model_name(run),
        ratio=fig.ratio(run.get("ratio_file")),
        bits=f"{run['bits_per_weight']:.2f} bits" if fig.known(run.get("bits_per_weight")) else "",
        perplexity=fig.change(run.get("perplexity_change")),
        gates=_gates(run.get("gates")),
        when=date_words(at),
        length=fig.duration(run.get("seconds")),
        tags=tuple(run.get("tags") or ()),
        note=_short(run.get("note") or "", 200),
        live=bool(run.get("alive")) and status in LIVE,
    )


def model_name(run: Run) -> str:
    """The last part of the model's path."""
    model = run.get("model")
    path = model.get("path") if isinstance(model, dict) else model
    return os.path.basename(str(path).rstrip("/")) if path else fig.NOTHING


def date_words(at: float | None) -> str:
    """A moment in local time: 24 Nov 15:30, with the year when it is another."""
    if not fig.known(at):
        return fig.NOTHING
    moment = time.localtime(at)
    return time.strftime("%d %b %H:%M" if moment.tm_year == time.localtime().tm_year else "%d %b %Y", moment)


def _short(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _gates(gates: dict[str, bool | None] | None) -> str:
    verdicts = list((gates or {}).values())
    if not verdicts:
        return fig.NOTHING
    passed = sum(verdict is True for verdict in verdicts)
    return f"{passed} of {len(verdicts)} pass"


def compare_words(chosen: int) -> str:
    """Why several runs cannot be compared now, "" when they can."""
    if chosen < 2:
        return "Tick two to six runs to see them side by side"
    if chosen > MAX_COMPARED:
        return f"{chosen} runs are ticked: at most six can be compared"
    return ""


def run_options(runs: Sequence[Run], *shown: str) -> dict[str, str]:
    """Names for a selector of runs: label to run id, live ones first, "" for a new run, those `shown` among
    them. Where there are more than a selector holds, the last entry is `OLDER`.
    """
    options = {"New run": ""}
    for row in run_list(runs, a_page=IN_SELECTOR).rows:
        label = f"{row.mark} {row.name} · {row.when}"
        options[label if label not in options else f"{label} ({row.id})"] = row.id
    for run_id in shown:
        if run_id and run_id not in options.values():
            known = next((run_row(run) for run in runs if run["id"] == run_id), None)
            options[f"{known.mark} {known.name} · {known.when} ({run_id})" if known else run_id] = run_id
    if left := len({run["id"] for run in runs} - set(options.values())):
        options[f"… {fig.plural(left, 'older run')}: in Runs"] = OLDER
    return options
