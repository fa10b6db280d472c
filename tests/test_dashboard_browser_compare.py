"""Compare, diff and tuning in a real browser; what is applied starts a real run."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import button, number, wait_for_status, wait_until
from dashboard_log import events, make_run, write_run
from tritpress.config import CompressionConfig
from tritpress.dashboard.views.diff import PAGE, diff_page, share_words
from tritpress.dashboard.views.tuning import Scope
from tritpress.events import EventWriter
from tritpress.plan import Plan
from tritpress.reference import reference_model_path
from tritpress.runs.details import load_details
from tritpress.runs.diff import ordered, tensor_diffs
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import run_state
from tritpress.runs.launch import launch
from tritpress.runs.settings import TensorSettings
from tritpress.runs.tuning import Setting, basis_of, forecast, read_curves

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def big(runs_dir: Path) -> RunDirectory:
    return write_run(runs_dir, "big", layers=126, details=True, name="A big one")


def rows(page: Any) -> list[str]:
    shown = page.locator("[data-sorttable] tbody tr")
    return list(shown.evaluate_all("rows => rows.map(r => r.dataset.row)"))


def image_of(page: Any, title: str) -> list[float]:
    """The block picture under that title as the browser holds it."""
    return list(
        page.evaluate(
            """(title) => {
              for (const doc of Bokeh.documents) for (const model of doc._all_models.values()) {
                if (model.type !== "Figure" || !model.title || model.title.text !== title) continue
                return Array.from(model.renderers[0].data_source.data.image[0])
              }
              return []
            }""",
            title,
        )
    )


def test_tensors_sorted_paged_and_in_pictures(page: Any, server: str, big: RunDirectory) -> None:
    state = run_state(big)
    worst = [diff.name for diff in ordered(tensor_diffs(state))]
    page.goto(f"{server}?run=big&tab=diff")
    page.locator("[data-sorttable] tbody tr").first.wait_for()
    assert rows(page) == worst[:PAGE]
    first = page.locator("[data-sorttable] tbody tr").first
    assert [cell.strip() for cell in first.locator("th, td").all_inner_texts()] == list(
        diff_page(state).lines[0][1]
    )
    page.get_by_label("Go to next page").click()
    wait_until(page, lambda: rows(page) == worst[PAGE : 2 * PAGE], "the second page")
    wait_until(page, lambda: "page=2" in page.url, page.url)
    page.get_by_role("button", name="Sign flips").click()
    flips = [diff.name for diff in ordered(tensor_diffs(state), "sign_flips")]
    wait_until(page, lambda: rows(page) == flips[:PAGE], "most sign flips first")
    assert page.locator('[aria-sort="descending"]').inner_text().startswith("Sign flips")
    page.keyboard.press("Enter")  # the heading still has the focus
    fewest = [diff.name for diff in ordered(tensor_diffs(state), "sign_flips", False)]
    wait_until(page, lambda: rows(page) == fewest[:PAGE], "fewest first")
    wait_until(page, lambda: "sort=sign_flips.reverse" in page.url, page.url)
    page.get_by_label("Find a tensor").fill("layers.77. down")
    name = "model.layers.77.mlp.down_proj.weight"
    wait_until(page, lambda: rows(page) == [name], "the one that was looked for")
    page.locator("[data-sorttable] tbody button").click()
    facts = page.locator("[data-tensor]")
    facts.wait_for()
    details = load_details(big.path, name)
    assert details is not None
    for words in (f"{details.cosine:.5f}", share_words(details.sign_flips)):
        assert words in facts.inner_text()
    page.locator("[data-blocks]").wait_for()
    for title, block in (
        ("Blocks before: mean weight", details.block_before),
        ("Blocks after: mean weight", details.block_after),
        ("Blocks: root mean square error", details.block_error),
    ):
        wait_until(page, lambda t=title: len(image_of(page, t)) == 4096, title)  # type: ignore[misc]
        assert image_of(page, title) == pytest.approx(block.ravel().tolist()), title
    wait_until(page, lambda: f"tensor={name}" in page.url, page.url)
    view = page.url
    page.goto("about:blank")
    page.goto(view)
    page.locator("[data-blocks]").wait_for()
    assert rows(page) == [name]


def test_a_slider_changes_figures_as_the_curves_say(page: Any, server: str, big: RunDirectory) -> None:
    state = run_state(big)
    curves, basis = read_curves(big.path, state), basis_of(state)

    def expected(scope: Scope, setting: Setting | None) -> dict[str, float]:
        found = forecast(curves, scope.names(state), setting, basis)
        assert found is not None and found.perplexity is not None
        zeros, error = 100 * found.chosen_zeros, 100 * found.chosen_error
        return {"zeros": zeros, "error": error, "perplexity": found.perplexity}

    def shown(what: str = "then") -> dict[str, float]:
        return {
            key: number(page.locator(f'[data-{what}="{key}"]').inner_text())
            for key in ("zeros", "error", "perplexity")
        }

    def agrees(scope: Scope, setting: Setting | None) -> bool:
        return shown() == pytest.approx(expected(scope, setting), rel=6e-3)

    page.goto(f"{server}?run=big&tab=tuning&kind=down")
    page.locator('[data-then="zeros"]').wait_for(timeout=30_000)
    down = Scope(kind="down")
    assert agrees(down, None) and shown("now") == shown()
    assert button(page, "Start a new run with this").is_disabled()
    slider = page.get_by_role("slider", name=re.compile("Threshold"))
    slider.focus()
    before = float(slider.input_value())
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    moved = round(before + 0.4, 2)
    wait_until(page, lambda: agrees(down, Setting(threshold=moved)), f"the figures at {moved}: {shown()}")
    assert shown("now") == pytest.approx(expected(down, None), rel=6e-3)
    assert "scale with its squared error" in page.locator("[data-basis]").inner_text()
    wait_until(page, lambda: f"threshold={moved:g}" in page.url, page.url)
    button(page, "Sparsity").click()
    sparsity = page.get_by_role("slider", name=re.compile("Zero codes"))
    sparsity.wait_for()
    sparsity.focus()
    page.keyboard.press("Home")
    wait_until(page, lambda: agrees(down, Setting(sparsity=0.0)), "no zeros at all")
    page.goto(f"{server}?run=big&tab=tuning&layer=5&sparsity=0.25")
    page.locator('[data-then="zeros"]').wait_for(timeout=30_000)
    wait_until(page, lambda: agrees(Scope(layer="5"), Setting(sparsity=0.25)), "layer 5 at 25 %")
    button(page, "Write the plan only").click()
    page.get_by_text("Written:").wait_for()
    path = big.path.parent / "plans" / "big-layer-5-sparsity-0.25.json"
    assert str(path) in page.locator("[data-command]").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-command]").get_by_role("button", name="Copy").click()
    page.locator("[data-command]").get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("tritpress compress /models/m") and str(path) in copied
    plan = Plan.load(path)
    assert {n for n, t in plan.tensors.items() if t.sparsity == 0.25} == set(Scope(layer="5").names(state))


def test_apply_starts_a_run_that_presses_so(page: Any, server: str, runs_dir: Path) -> None:
    config = CompressionConfig(
        method="fast", planes=1, evaluate=False, finetune=False, outputs="packed", seed=11
    )  # fmt: skip
    first = launch(reference_model_path(), None, config, runs_dir, name="First")
    deadline = time.monotonic() + 120
    while first.read_run()["status"] not in ("finished", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    page.goto(f"{server}?run={first.id}&tab=tuning&kind=up&threshold=0.4")
    page.locator('[data-then="zeros"]').wait_for(timeout=30_000)
    assert page.locator('[data-then="perplexity"]').inner_text() == "–"
    assert "weights alone" in page.locator("[data-basis]").inner_text()
    foretold = number(page.locator('[data-then="zeros"]').inner_text())
    button(page, "Start a new run with this").click()
    wait_until(page, lambda: first.id not in page.url and "run=" in page.url, page.url, seconds=60)
    found = re.search(r"run=([^&]+)", page.url)
    assert found
    second = RunDirectory(runs_dir / found.group(1))
    wait_for_status(page, "finished", seconds=120)
    record = second.read_run()
    path = runs_dir / "plans" / f"{first.id}-up-threshold-0.4.json"
    assert record["config"]["plan"] == str(path) and record["config"]["seed"] == 11
    assert record["name"] == "First · all up, threshold 0.4"
    used = json.loads((second.path / "work" / "plan.json").read_text())["tensors"]
    up = {name for name, tensor in used.items() if tensor["kind"] == "up"}
    assert {name for name, tensor in used.items() if tensor["threshold"] == 0.4} == up
    layers, earlier = run_state(second)["layers"], run_state(first)["layers"]
    weights = sum(layers[name]["weights"] for name in up)
    zeros = sum(layers[name]["sparsity"] * layers[name]["weights"] for name in up) / weights
    assert 100 * zeros == pytest.approx(foretold, abs=0.3)
    assert all(layers[name]["mse"] == earlier[name]["mse"] for name in layers.keys() - up)


def test_a_run_at_work_is_told_and_its_answer_is_shown(page: Any, server: str, runs_dir: Path) -> None:
    """The log of a run in step 4, whose worker this process is: it hears what the page sends."""
    live = make_run(runs_dir, "at-work", name="At work")
    writer, pressed = EventWriter(live.path), 0
    for kind, fields in events(live, 4, details=True):
        pressed += kind == "layer.finished"
        if pressed == 20:
            break
        writer.emit(kind, **fields)
    left = sorted(set(t["name"] for t in run_state(live)["targets"]) - run_state(live)["layers"].keys())
    page.goto(f"{server}?run=at-work&tab=tuning&threshold=0.9")
    page.locator('[data-then="zeros"]').wait_for(timeout=30_000)
    page.get_by_role("button", name=re.compile(r"Set for \d+ tensors not begun")).click()
    wait_until(page, lambda: live.commands_path.exists(), "the command")
    command = json.loads(live.commands_path.read_text())
    assert command["command"] == "set" and command["args"] == {"tensors": "all", "threshold": 0.9}
    settings = TensorSettings(live, writer.state)
    ok, detail = settings.take(command["args"])
    writer.emit("command.ack", id=command["id"], command="set", ok=ok, detail=detail)
    page.get_by_text(f"Worker: {len(left)} tensors will be pressed with threshold 0.9").wait_for()
    writer.close()
    live.update_run(status="stopped")


def test_three_runs_side_by_side_and_the_live_one_moves(page: Any, server: str, runs_dir: Path) -> None:
    write_run(runs_dir, "cmp-a", name="Alpha", config={"planes": 1})
    other = {"planes": 2, "seed": 5}
    write_run(runs_dir, "cmp-b", name="<b>Beta</b>", config=other, failing_gate="perplexity")
    live = write_run(runs_dir, "cmp-c", name="Gamma", until="output")
    page.goto(f"{server}?run=cmp-a,cmp-b,cmp-c&tab=compare")
    page.locator('[data-figure="ratio_file"]').wait_for()
    differing = page.locator("details").first.locator("xpath=preceding-sibling::section")
    assert "Settings that differ" in differing.inner_text()
    keys = page.locator("[data-setting]").evaluate_all(
        "rows => rows.filter(r => !r.closest('details')).map(r => r.dataset.setting)"
    )
    assert keys == ["planes", "seed"]
    assert "<b>Beta</b>" in page.locator("thead").first.inner_text()
    cells = page.locator('[data-gate="perplexity"] td').all_inner_texts()
    assert "✓ passed" in cells[0] and "✕ failed" in cells[1] and "not judged yet" in cells[2]
    assert page.locator('[data-state="cmp-c"]').inner_text().endswith("Running")
    assert page.locator('[data-figure="seconds"] td').nth(2).inner_text() == "–"
    writer, rest = EventWriter(live.path), False
    for kind, fields in events(live, 6, name="Gamma"):
        rest = rest or kind == "output"
        if rest:
            writer.emit(kind, **fields)
    writer.close()
    live.update_run(status="finished")
    state = page.locator('[data-state="cmp-c"]')
    wait_until(page, lambda: state.inner_text().endswith("Finished"), "the live run's end shows by itself")
    seconds = page.locator('[data-figure="seconds"] td').nth(2)
    wait_until(page, lambda: seconds.inner_text() == "37.5 s", "its time")
    page.get_by_text("settings that are the same").click()
    page.locator('[data-setting="group_size"]').wait_for()
    assert page.locator("img[src='x']").count() == 0


def test_without_a_run_each_says_what_it_would_show(page: Any, server: str) -> None:
    for tab, words in {"compare": "Choose two", "diff": "No run is", "tuning": "No run is"}.items():
        page.goto(f"{server}?tab={tab}")
        page.get_by_text(words).first.wait_for()
