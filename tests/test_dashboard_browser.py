"""The page in a real browser, on a real run: started, paused and resumed from the page, figures compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import (
    button,
    cells,
    filled,
    number,
    open_page,
    patient,
    set_number,
    show,
    status,
    wait_for_status,
    wait_until,
    written_beside,
)
from dashboard_log import write_run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]

GATES = ("ratio", "accuracy", "perplexity", "sparsity", "gradient_flow")


def test_a_run_from_the_page(page: Any, server: str, runs_dir: Path) -> None:
    """Start, watch the heatmap fill, pause, resume, see the gates arrive; every figure is the report's."""
    open_page(page, server)
    assert page.locator("[data-check]").get_attribute("data-check") == "ok"
    assert "LlamaForCausalLM" in page.locator("[data-check]").inner_text()
    assert button(page, "Pause").is_disabled() and button(page, "Stop").is_disabled()
    assert button(page, "Reset").is_disabled()
    page.get_by_text("More settings").click()
    set_number(page, "Tokens of training", 1024)
    set_number(page, "Calibration tokens", 1024)
    set_number(page, "Evaluation tokens", 1024)
    # Two planes everywhere: the search for the best mix of planes takes longer than all the rest.
    page.get_by_role("button", name="Planes", exact=True).click()
    page.get_by_role("combobox", name="Planes").click()
    page.get_by_role("menuitem", name="2", exact=True).click()
    button(page, "Start").click()
    wait_for_status(page, "running", "created", seconds=60)
    run_id = re.search(r"run=([^&]+)", page.url)
    assert run_id, page.url
    run_path = runs_dir / run_id.group(1)
    show(page, "Progress")
    assert button(page, "New run…").is_enabled() and button(page, "Start").count() == 0

    counts = []
    deadline = time.monotonic() + 300
    while not counts or counts[-1] < 8:
        counts.append(filled(page))
        assert time.monotonic() < deadline, f"the heatmap did not fill: {sorted(set(counts))}"
        assert status(page) == "running", status(page)
        page.wait_for_timeout(100)
    assert len(set(counts)) >= 3, f"the heatmap should fill cell by cell: {sorted(set(counts))}"

    button(page, "Pause").click()
    wait_for_status(page, "paused", seconds=30)
    resume = button(page, "Resume")
    resume.wait_for()
    page.wait_for_timeout(1000)
    held = filled(page)
    page.wait_for_timeout(1500)
    assert filled(page) == held, "a paused run presses nothing"
    assert json.loads((run_path / "run.json").read_text())["status"] == "paused"
    resume.click()
    wait_for_status(page, "running", seconds=30)

    show(page, "Quality")
    late = patient(page.context.browser.new_page())
    wait_for_status(page, "finished", seconds=600)
    report = json.loads((run_path / "report.json").read_text())
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert set(gates) == set(GATES)
    for name, gate in gates.items():
        verdict = {True: "passed", False: "failed", None: "unmeasured"}[gate["passed"]]
        card = page.locator(f'[data-gate="{name}"][data-verdict="{verdict}"]')
        card.wait_for()
        shown = number(card.locator(".value").inner_text())
        scale = 1 if name == "ratio" else 100
        assert shown == pytest.approx(scale * gate["actual"], abs=0.051 if scale == 100 else 0.0051), name

    compare_with_report(page, report)
    late.goto(f"{server}?run={run_path.name}&tab=metrics")
    late.locator('[data-cell="perplexity.packed"]').wait_for()
    compare_metrics(late, report)
    late.close()

    wait_until(page, button(page, "Start").is_enabled, "Start means something again")
    button(page, "Reset").click()
    page.get_by_text("No run is open.").wait_for()
    wait_until(page, lambda: "run=" not in page.url, page.url)


def compare_with_report(page: Any, report: dict[str, Any]) -> None:
    show(page, "Overview")
    tile = {key: page.locator(f'[data-figure="{key}"]') for key in (*GATES[:4], "size")}
    wait_until(
        page,
        lambda: (
            tile["accuracy"].get_by_text("✓ passed").or_(tile["accuracy"].get_by_text("✕ failed")).count()
            == 1
        ),
        "the figures of the finished run",
    )
    ratio = number(tile["ratio"].locator(".value").inner_text())
    assert ratio == pytest.approx(report["ratio_file"], abs=0.0051)
    beside = tile["ratio"].locator(".beside").inner_text()
    assert f"{report['bits_per_weight']:.2f} bits a weight" in beside and "plane" in beside
    assert number(tile["size"].locator(".value").inner_text()) == pytest.approx(
        report["after"]["packed"]["bytes"] / 1e6, rel=0.005
    )
    assert number(tile["sparsity"].locator(".value").inner_text()) == pytest.approx(
        100 * report["sparsity"], abs=0.051
    )
    assert number(tile["perplexity"].locator(".value").inner_text()) == pytest.approx(
        100 * report["perplexity_change"], abs=0.051
    )
    assert number(tile["accuracy"].locator(".value").inner_text()) == pytest.approx(
        100 * report["accuracy_kept"], abs=0.051
    )
    headline = page.locator("[data-headline]").inner_text()
    assert "bits a weight" in headline and "plane" in headline
    done = page.locator('[data-step] .mark:has-text("✓")').count()
    assert done == sum(step["skipped"] is None for step in report["steps"])

    show(page, "Progress")
    wait_until(page, lambda: filled(page) == len(report["layers"]), "the whole grid")
    shown = {cell["name"]: cell for cell in cells(page)}
    assert set(shown) == {layer["name"] for layer in report["layers"]}
    for layer in report["layers"]:
        assert shown[layer["name"]]["value"] == pytest.approx(32 / layer["bits"], rel=1e-3)
    page.get_by_role("button", name="Sparsity", exact=True).click()
    wait_until(page, lambda: all(cell["value"] < 1 for cell in cells(page)), "the grid of sparsity")
    shown = {cell["name"]: cell for cell in cells(page)}
    for layer in report["layers"]:
        assert shown[layer["name"]]["value"] == pytest.approx(layer["sparsity"], abs=1e-6)

    show(page, "Metrics")
    compare_metrics(page, report)

    show(page, "Outputs")
    packed = page.locator('[data-model="packed"]').inner_text()
    for output in report["outputs"]:
        text = page.locator(f'[data-model="{Path(output["path"]).parent.name}"]').inner_text()
        assert Path(output["path"]).name in text and output["sha256"][:12] in text
    assert "bits a weight" in packed
    checklist = page.locator(".checks li")
    assert checklist.count() == len(report["handoff"])


def compare_metrics(page: Any, report: dict[str, Any]) -> None:
    for when, measured in (("before", report["before"]), *report["after"].items()):
        for key, scale in (("perplexity", 1), ("top1", 100)):
            text = page.locator(f'[data-cell="{key}.{when}"]').inner_text()
            assert number(text) == pytest.approx(scale * measured[key], rel=1e-3), (key, when)


DRAWN = """() => Bokeh.documents.some((doc) => [...doc._all_models.values()].some(
  (model) => model.data?.asked > 1 && model.data.drawn === model.data.asked
))"""
"""Whether the page was asked more than once if it has drawn what it was sent, and has answered each time."""


def test_a_page_of_another_run_follows_its_log(page: Any, server: str, runs_dir: Path) -> None:
    """The log of a run that someone else started: the page opened early and the page opened late agree."""
    with written_beside(runs_dir, "replay-40", layers=40, name="Forty layers") as (run_id, go_on):
        page.goto(f"{server}?run={run_id}&tab=progress")
        wait_for_status(page, "running", seconds=30)
        go_on()
        seen = []
        deadline = time.monotonic() + 60
        while status(page) != "finished":
            seen.append(filled(page))
            assert time.monotonic() < deadline
            page.wait_for_timeout(200)
        assert max(seen) > 0
        page.get_by_role("combobox", name="Run").get_by_text("✓ Forty layers").wait_for()
        wait_until(page, lambda: filled(page) == 8 * 7, "the page follows the tensor that is pressed")
        page.get_by_label("Go to page 1").click()
        wait_until(page, lambda: filled(page) == 32 * 7, "page 1")
        page.get_by_label("Go to page 2").click()
        wait_until(page, lambda: filled(page) == 8 * 7, "page 2")
        wait_until(page, lambda: "page=2" in page.url, page.url)
        assert "Layers 32–39 of 40" in page.get_by_text("Layers 32").inner_text()
        wait_until(page, lambda: page.evaluate(DRAWN), "the browser answers once all is drawn")


def test_every_view_is_a_link_and_names_are_text(page: Any, server: str, runs_dir: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    write_run(runs_dir, "hostile", name=hostile, failing_gate="perplexity")
    for tab in ("Metrics", "Outputs"):
        page.goto(f"{server}?run=hostile&tab={tab.lower()}")
        page.wait_for_selector("[data-status]")
        page.locator(f'[data-tab="{tab.lower()}"]').first.wait_for(state="attached")
        assert page.get_by_role("tab", name=tab).get_attribute("aria-selected") == "true"
        assert hostile in page.locator(".bar .name").first.inner_text()
    page.goto(f"{server}?run=hostile&tab=quality")
    failed = page.locator('[data-gate="perplexity"]')
    failed.wait_for()
    assert failed.get_attribute("data-verdict") == "failed" and "o_proj" in failed.inner_text()
    page.goto(server)
    runs = page.locator("table.runs").first  # a second one has what was deleted
    runs.wait_for()
    assert hostile in runs.inner_text()
    assert page.locator("img[src='x']").count() == 0


def test_a_worker_that_is_gone_shows_as_such(page: Any, server: str, runs_dir: Path) -> None:
    run = write_run(runs_dir, "lost", until="evaluation", name="Lost one")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    run.update_run(status="running", pid=ended.pid, process_start="1", heartbeat=time.time())
    page.goto(f"{server}?run=lost")
    wait_for_status(page, "lost", seconds=10)
    page.get_by_text("Worker gone").first.wait_for()
    wait_until(page, button(page, "Resume").is_enabled, "a lost run can be taken up again")
    assert button(page, "Stop").is_disabled()


def test_a_bad_model_path_is_said_at_once(page: Any, server: str, tmp_path: Path) -> None:
    open_page(page, server)
    field = page.get_by_label("Model folder")
    field.fill(str(tmp_path / "nowhere"))
    page.locator('[data-check="bad"]').wait_for()
    assert "nowhere" in page.locator("[data-check]").inner_text()
    wait_until(page, button(page, "Start").is_disabled, "Start means nothing without a model")


def test_unknown_run(page: Any, server: str) -> None:
    page.goto(f"{server}?run=..%2F..%2Fetc")
    page.get_by_text("There is no run").first.wait_for()
    assert page.locator("[data-status]").count() == 0
