"""A real run of the built-in model and what befalls it, as two open pages show it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import (
    button,
    cells,
    filled,
    number,
    patient,
    show,
    status,
    wait_for_status,
    wait_until,
)
from server_helper import port_and_log, serving
from tritpress.config import CompressionConfig
from tritpress.events import EventReader, StateReader
from tritpress.reference import reference_model_path
from tritpress.runs.commands import send
from tritpress.runs.directory import RunDirectory
from tritpress.runs.launch import launch, worker_process

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

SERVE = "from tritpress.dashboard.app import serve; serve({runs!r}, {port}, require_token=False)"


class House:
    """A server that can be ended and started again at the same port."""

    def __init__(self, runs: Path, folder: Path) -> None:
        self.runs = runs
        self.port, self.log = port_and_log(folder)
        self.url = f"http://127.0.0.1:{self.port}/dashboard"
        self.stack = ExitStack()

    def open(self) -> None:
        import sys

        code = SERVE.format(runs=str(self.runs), port=self.port)
        self.stack.enter_context(serving([sys.executable, "-c", code], self.port, self.log))

    def close(self) -> None:
        self.stack.close()


@pytest.fixture
def house(runs_dir: Path, tmp_path: Path) -> Iterator[House]:
    made = House(runs_dir, tmp_path)
    made.open()
    yield made
    made.close()


@pytest.fixture
def run(runs_dir: Path) -> Iterator[RunDirectory]:
    """A run with more training than will be waited for, paused until a page resumes it."""
    config = CompressionConfig(
        planes=2, method="fast", finetune=True, tokens=2_000_000, evaluation_tokens=2048, seed=3
    )
    made = launch(reference_model_path(), None, config, runs_dir, name="What befalls it")
    send(made, "pause")
    yield made
    process = worker_process(made)
    if process is not None and process.poll() is None:
        process.kill()
        process.wait(20)


def state_of(run: RunDirectory) -> dict[str, Any]:
    reader = StateReader(run.path)
    reader.poll()
    return reader.state


def test_two_pages_on_a_run_that_is_paused_killed_and_taken_up(
    browser: Any, house: House, run: RunDirectory
) -> None:
    one, two = (patient(browser.new_page(viewport={"width": 1440, "height": 900})) for _ in range(2))
    for page in (one, two):
        page.set_default_timeout(120_000)
    try:
        one.goto(f"{house.url}?run={run.id}&tab=progress")
        two.goto(f"{house.url}?run={run.id}")
        wait_for_status(one, "paused", seconds=60)
        wait_for_status(two, "paused", seconds=60)
        button(two, "Resume").click()
        wait_for_status(one, "running", seconds=60)
        wait_for_status(two, "running", seconds=30)
        wait_until(one, lambda: filled(one) > 3, "tensors are pressed", seconds=120)

        # What one page does is seen on the other, and both tell what the log tells.
        button(one, "Pause").click()
        wait_for_status(two, "paused", seconds=60)
        wait_for_status(one, "paused", seconds=5)
        held = len(state_of(run)["layers"])
        wait_until(one, lambda: filled(one) == held, "the grid has what the log has")
        button(two, "Resume").click()
        wait_for_status(one, "running", seconds=30)

        # The server ends and comes again: the run has gone on, and the pages find it.
        seq = state_of(run)["seq"]
        wait_until(one, lambda: state_of(run)["seq"] > seq + 3, "the run goes on", seconds=120)
        house.close()
        one.get_by_role("alert").get_by_text("The server does not answer").wait_for()
        seq = state_of(run)["seq"]
        wait_until(one, lambda: state_of(run)["seq"] > seq, "a run needs no server", seconds=60)
        house.open()
        two.goto(f"{house.url}?run={run.id}")
        wait_for_status(two, "running", "finished", seconds=30)
        wait_until(
            one, lambda: one.locator("[data-status]").count() == 1, "the open page is back", seconds=60
        )

        # The worker is killed.
        process = worker_process(run)
        assert process is not None and process.poll() is None, "killed too late: the run is over"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        killed = time.monotonic()
        wait_for_status(two, "lost", seconds=10)
        wait_for_status(one, "lost", seconds=10)
        assert time.monotonic() - killed <= 10
        two.get_by_text("Worker gone").first.wait_for()

        # A new worker takes it up where it was; then it is stopped.
        done = len(state_of(run)["layers"])
        wait_until(two, button(two, "Resume").is_enabled, "a lost run can be taken up")
        button(two, "Resume").click()
        wait_for_status(two, "running", seconds=60)
        assert len(state_of(run)["layers"]) >= done
        button(two, "Stop").click()
        wait_for_status(two, "stopped", seconds=60)
        assert run.read_run()["status"] == "stopped"
        compare_with_log(two, run)
        button(two, "Reset").click()
        two.get_by_text("No run is open.").first.wait_for()
    finally:
        one.close()
        two.close()


def compare_with_log(page: Any, run: RunDirectory) -> None:
    """Every tab's figures against the events themselves."""
    events = list(EventReader(run.events_path).poll())
    layers = {event["name"]: event for event in events if event["type"] == "layer.finished"}
    show(page, "Progress")
    wait_until(page, lambda: filled(page) == len(layers), "the grid has every tensor of the log")
    shown = {cell["name"]: cell["value"] for cell in cells(page) if cell["value"] is not None}
    assert set(shown) == set(layers)
    for name, event in layers.items():
        assert shown[name] == pytest.approx(event["ratio"], rel=1e-6), name

    show(page, "Metrics")
    evaluations = {event["when"]: event for event in events if event["type"] == "evaluation"}
    for when, event in evaluations.items():
        cell = page.locator(f'[data-cell="perplexity.{when}"]')
        cell.wait_for()
        assert number(cell.inner_text()) == pytest.approx(event["perplexity"], rel=1e-3)

    show(page, "Overview")
    for event in events:
        if event["type"] == "step.finished":
            line = page.locator(f'[data-step="{event["step"]}"]')
            assert ("skipped" if event["skipped"] else "done") in (line.get_attribute("class") or "")
    assert status(page) == "stopped"
