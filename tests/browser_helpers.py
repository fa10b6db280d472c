"""A real browser on a server of its own: fixtures (conftest hands them on) and the words of the tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import list_runs

CHROMIUM = "/usr/bin/chromium"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright import sync_api

    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs go; no worker outlives the tests."""
    folder = tmp_path_factory.mktemp("runs")
    yield folder
    for summary in list_runs(folder):
        record = RunDirectory(summary["path"]).read_run()
        if summary["alive"] and record["pid"] != os.getpid():
            os.killpg(record["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def server(runs_dir: Path) -> Iterator[str]:
    """The page, served by a process of its own."""
    port = free_port()
    code = f"from tritpress.dashboard.app import serve; serve({str(runs_dir)!r}, {port}, require_token=False)"
    log = open(runs_dir.parent / f"server-{port}.log", "wb")  # noqa: SIM115
    process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/dashboard"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """A page that fails the test when it asks another host for anything or throws an error."""
    made = patient(browser.new_page(viewport={"width": 1440, "height": 900}))
    host = server.removesuffix("/dashboard")
    problems: list[str] = []

    def asked(request: Any) -> None:
        if not request.url.startswith((host, "blob:", "data:")):
            problems.append(f"asked for {request.url}")

    made.on("request", asked)
    made.on("pageerror", lambda error: problems.append(f"error on the page: {error}"))
    made.on("dialog", lambda dialog: problems.append(f"a script ran: {dialog.message}"))
    made.set_default_timeout(60_000)
    yield made
    made.close()
    assert not problems, problems


def stands(page: Any) -> None:
    """Wait until the page lies open: until then what is shown first covers it and takes the clicks."""
    page.wait_for_function("() => !document.getElementById('opening')")


def patient(page: Any) -> Any:
    """That page, whose `goto` and `reload` return only when it lies open."""
    load, again = page.goto, page.reload

    def goto(url: str, **more: Any) -> Any:
        answer = load(url, **more)
        stands(page)
        return answer

    def reload(**more: Any) -> Any:
        answer = again(**more)
        stands(page)
        return answer

    page.goto, page.reload = goto, reload
    return page


def open_page(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_role("tab", name="Overview").wait_for()
    page.wait_for_selector("[data-check], [data-status]")


@contextmanager
def written_beside(runs_dir: Path, stem: str, **options: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """A run that another process writes, 120 events a second: its id (a new one in a second try), and what
    lets it go on after its first tensor."""
    run_id = f"{stem}-{time.monotonic_ns()}"
    go_on = runs_dir.parent / f"{run_id}.go"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from pathlib import Path; from dashboard_log import write_run;"
        f"write_run(Path({str(runs_dir)!r}), {run_id!r}, rate=120, go_on=Path({str(go_on)!r}), **{options!r})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 30
        while not (runs_dir / run_id / "snapshot.json").exists():
            assert writer.poll() is None and time.monotonic() < deadline, "the run did not begin"
            time.sleep(0.1)
        yield run_id, go_on.touch
        writer.wait(60)
    finally:
        writer.kill()
        writer.wait()


def show(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()
    page.locator(f'[data-tab="{tab.lower()}"]').first.wait_for(state="attached")


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def status(page: Any) -> str:
    return str(page.locator("[data-status]").get_attribute("data-status"))


def wait_until(page: Any, check: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(100)


def wait_for_status(page: Any, *wanted: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while page.locator("[data-status]").count() == 0 or status(page) not in wanted:
        assert time.monotonic() < deadline, f"still {status(page)}, waited for {wanted}"
        page.wait_for_timeout(100)


CELLS = """() => {
  for (const doc of Bokeh.documents) {
    const named = (name) => Array.from(doc._all_models.values()).find((model) => model.name === name)
    const grid = named("grid"), rows = named("rows of the page")
    if (!grid || !rows) continue
    const {name, state, y, text, row, column} = grid.data
    const low = Math.min(rows.start, rows.end), high = Math.max(rows.start, rows.end)
    return Array.from(grid.data.value)
      .map((v, i) => ({value: Number.isFinite(v) ? v : null, name: name[i], state: state[i], text: text[i],
                       row: row[i], column: column[i], y: y[i]}))
      .filter((cell) => low < cell.y && cell.y < high)
  }
  return []
}"""


def cells(page: Any) -> list[dict[str, Any]]:
    """The cells of the heatmap's page as the browser holds them."""
    return list(page.evaluate(CELLS))


def filled(page: Any) -> int:
    return sum(cell["value"] is not None for cell in cells(page))


def number(text: str) -> float:
    """The first number in `text`, its sign and thousands understood."""
    found = re.search(r"[+−-]?[\d,]*\.?\d+", text)
    assert found, text
    return float(found.group().replace(",", "").replace("−", "-"))


def set_number(page: Any, label: str, value: int) -> None:
    field = page.get_by_role("textbox", name=label, exact=True)
    field.click()
    field.press("Control+a")  # the field shows thousands apart until it has the focus
    page.keyboard.type(str(value))
    field.press("Tab")
    wait_until(page, lambda: field.input_value().replace(",", "") == str(value), field.input_value())
