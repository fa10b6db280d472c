"""What a page says of runs that nobody looks at: alerts of other runs, and the name of the browser's tab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import open_page, show, wait_until
from dashboard_log import begin_run
from tritpress.events import EventWriter
from tritpress.runs.directory import RunDirectory

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HIDE = """(hidden) => {
  const get = () => hidden ? "hidden" : "visible"
  Object.defineProperty(document, "visibilityState", {configurable: true, get})
  document.dispatchEvent(new Event("visibilitychange"))
}"""


@pytest.fixture
def two(runs_dir: Path) -> Iterator[dict[str, EventWriter]]:
    """Two runs at work, with ids of their own each time: a server remembers a run for a while."""
    writers, end = {}, f"-{time.monotonic_ns()}"
    for name in ("one", "two"):
        writers[name + end] = begin_run(runs_dir, name + end, name=f"the <i>{name}</i>", pressed=9)
    yield writers
    for run_id, writer in writers.items():
        writer.close()
        RunDirectory(runs_dir / run_id).update_run(status="stopped")


def alert(writer: EventWriter, message: str, level: str = "warning") -> None:
    writer.emit("alert", rule="metric:x>1", name="x", level=level, message=message, value=2, limit=1, step=4)
    writer.flush()


def toast(page: Any, text: str) -> Any:
    return page.get_by_role("alert").filter(has_text=text)


def test_alerts_of_runs_that_are_not_open(page: Any, server: str, two: dict[str, EventWriter]) -> None:
    (one, first), (_, second) = two.items()
    open_page(page, f"{server}?tab=runs")
    assert page.title() == "tritpress"
    for message in ("nobody has opened this", "and at once another"):
        alert(first, message)
    for message in ("nobody has opened this", "and at once another"):
        toast(page, f"Alert in the <i>one</i>: {message}").wait_for()
    open_page(page, f"{server}?run={one}&tab=quality")
    alert(second, "another run is open", "critical")
    toast(page, "Alert in the <i>two</i>: another run is open").wait_for()
    assert toast(page, "nobody has opened this").count() == 0, "what is told is told once"
    alert(first, "the run that is open")
    toast(page, "Alert in the <i>one</i>: the run that is open").wait_for()
    page.wait_for_timeout(1200)
    assert toast(page, "the run that is open").count() == 1


def test_the_browsers_tab_is_named_by_the_run_also_while_hidden(
    page: Any, server: str, two: dict[str, EventWriter], runs_dir: Path
) -> None:
    (one, first), (_, second) = two.items()
    open_page(page, f"{server}?run={one}")
    first.emit("step.progress", step=4, done=8, total=42, detail="")
    first.flush()
    wait_until(page, lambda: page.title() == "19 % · the <i>one</i> · step 4 of 7", "the browser's tab")
    show(page, "Runs")
    page.evaluate(HIDE, True)
    first.emit("step.progress", step=4, done=21, total=42, detail="")
    first.flush()
    alert(second, "unseen")
    wait_until(page, lambda: page.title() == "(1) 50 % · the <i>one</i> · step 4 of 7", "the browser's tab")
    first.emit("run.failed", error="no space left", exit_code=1, write_seconds=0.0, seconds=1.0)
    wait_until(page, lambda: page.title() == "(1) ✕ the <i>one</i> failed", "the browser's tab")
    assert toast(page, "unseen").count() == 0
    page.evaluate(HIDE, False)
    toast(page, "Alert in the <i>two</i>: unseen").wait_for()
    wait_until(page, lambda: page.title() == "✕ the <i>one</i> failed", "the browser's tab")
    page.get_by_role("combobox", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="New run", exact=True).click()
    wait_until(page, lambda: page.title() == "tritpress", "the browser's tab")
