"""The Progress tab in a real browser, on the replayed log of 126 layers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browser_helpers import button, cells, filled, number, wait_for_status, wait_until, written_beside
from dashboard_log import events, make_run, write_run
from tritpress.dashboard.views import figures as fig
from tritpress.events import EventWriter
from tritpress.runs.details import load_details
from tritpress.runs.directory import RunDirectory

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

NAME = "model.layers.77.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def big(runs_dir: Path) -> Iterator[RunDirectory]:
    """A finished run of 126 layers with its tensors' details."""
    yield write_run(runs_dir, "big", layers=126, steps=1, name="Big one", details=True)


def opened(page: Any, server: str, query: str) -> None:
    page.goto(f"{server}?run=big&tab=progress{query}")
    page.locator("[data-where]").wait_for()
    wait_until(page, lambda: filled(page) > 0, "the grid")


def rows(page: Any) -> list[str]:
    return list(dict.fromkeys(cell["row"] for cell in cells(page)))


def in_url(page: Any) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(page.url).query).items()}


def waits(page: Any, first: int, last: int) -> None:
    """The page of those layers is shown, and all of its parts say so."""
    wait_until(
        page, lambda: rows(page) == [str(n) for n in range(first, last + 1)], f"layers {first} to {last}"
    )
    wait_until(
        page, lambda: f"Layers {first}–{last}" in page.locator("[data-where]").inner_text(), "the words"
    )
    wait_until(page, lambda: in_url(page).get("page") == str(first // 32 + 1), page.url)
    assert page.evaluate(FRAME) == [first - 0.5, last + 0.5], "the minimap's frame"


FRAME = """() => {
  for (const doc of Bokeh.documents) for (const model of doc._all_models.values())
    if (model.name === "whole-model") {
      const frame = model.renderers.concat(model.center).find((part) => part.type === "BoxAnnotation")
      return [frame.top, frame.bottom]
    }
}"""

PLACE = """([chart, x, y]) => {
  // Where a point of a chart lies on the screen.
  for (const view of Object.values(Bokeh.index)) {
    const found = []
    const walk = (at) => {
      if (at.model && at.model.name === chart) found.push(at)
      for (const child of at.children ? at.children() : []) walk(child)
    }
    walk(view)
    if (!found.length) continue
    const plot = found[0], canvas = plot.canvas_view.el
    canvas.scrollIntoView({block: "center"})  // the mouse reaches only what is on the screen
    const box = canvas.getBoundingClientRect()
    return [box.left + plot.frame.x_scale.compute(x), box.top + plot.frame.y_scale.compute(y)]
  }
}"""


def click(page: Any, chart: str, x: float, y: float) -> None:
    place = page.evaluate(PLACE, [chart, x, y])
    assert place, chart
    page.wait_for_timeout(400)  # two clicks in less are a double click, which charts take for something else
    page.mouse.click(*place)


def click_open(page: Any, x: float, y: float, name: str) -> None:
    """Click a cell of the grid until the view of that tensor stands: a chart that is still finding its place
    when the mouse comes down is clicked beside the cell."""
    from playwright import sync_api as playwright

    shown = page.locator("[data-tensor]").get_by_text(name)
    for _ in range(4):
        click(page, "layers-and-parameters", x, y)
        with contextlib.suppress(playwright.TimeoutError):
            shown.wait_for(timeout=15_000)
            return
    shown.wait_for(timeout=1_000)


def test_pages_by_buttons(page: Any, server: str, big: RunDirectory) -> None:
    opened(page, server, "&page=1")
    assert page.get_by_label("Follow the work").is_disabled(), "a finished run has nothing to follow"
    page.get_by_label("Go to next page").click()
    waits(page, 32, 63)
    page.get_by_label("Go to last page").click()
    waits(page, 96, 125)
    page.get_by_label("Go to previous page").click()
    waits(page, 64, 95)
    page.get_by_label("Go to first page").click()
    waits(page, 0, 31)
    page.go_back()
    waits(page, 64, 95)  # back in the browser is back in the grid
    page.go_back()
    waits(page, 96, 125)
    page.go_forward()
    page.go_forward()
    waits(page, 0, 31)


def test_pages_and_cells_by_keyboard(page: Any, server: str, big: RunDirectory) -> None:
    opened(page, server, "")
    keys = page.locator("[data-keys]")
    keys.focus()
    cursor = page.locator("[data-cursor]")
    page.keyboard.press("ArrowRight")
    wait_until(page, lambda: "Layer 0 · q" in cursor.inner_text(), "the first key shows the cursor")
    page.keyboard.press("PageDown")
    waits(page, 32, 63)
    page.keyboard.press("End")
    waits(page, 96, 125)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    wait_until(page, lambda: "Layer 124 · k" in cursor.inner_text(), cursor.inner_text())
    layer = layers_of(big)["model.layers.124.self_attn.k_proj.weight"]
    assert fig.ratio(layer["ratio"]) in cursor.inner_text()
    page.keyboard.press("Enter")
    page.locator("[data-tensor]").get_by_text("model.layers.124.self_attn.k_proj.weight").wait_for()
    page.keyboard.press("Escape")
    wait_until(page, lambda: "tensor" not in in_url(page), page.url)
    wait_until(page, lambda: not page.locator("[data-tensor]").is_visible(), "closed")
    page.keyboard.press("Home")
    waits(page, 0, 31)


def test_go_to_layer(page: Any, server: str, big: RunDirectory) -> None:
    opened(page, server, "")
    field = page.get_by_role("textbox", name="Go to layer")
    field.click()
    field.press("Control+a")
    page.keyboard.type("101")
    field.press("Enter")
    waits(page, 96, 125)
    wait_until(page, lambda: in_url(page).get("layer") == "101", page.url)
    assert "Layer 101" in page.locator("[data-cursor]").inner_text()


def test_the_minimap_jumps(page: Any, server: str, big: RunDirectory) -> None:
    opened(page, server, "&page=1")
    click(page, "whole-model", 3, 110)
    waits(page, 96, 125)
    click(page, "whole-model", 0, 40)
    waits(page, 32, 63)


def layers_of(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Figures of the event log by tensor."""
    found = map(json.loads, run.events_path.read_text().splitlines())
    return {event["name"]: event for event in found if event["type"] == "layer.finished"}


def colour(page: Any, title: str) -> Any:
    """That button above the grid; the sidebar has one of the name Planes too."""
    return page.get_by_role("main").get_by_role("button", name=title, exact=True)


def test_colours(page: Any, server: str, big: RunDirectory) -> None:
    """Each colour shows the event log's figures, and the URL opens the same colour."""
    opened(page, server, "&page=2")
    layers = layers_of(big)
    keys = {
        "Sparsity": "sparsity",
        "Error": "relative_error",
        "Planes": "planes",
        "Bits": "bits",
        "Ratio": "ratio",
    }
    for title, key in keys.items():
        colour(page, title).click()
        first = cells(page)[0]
        wait_until(
            page,
            lambda: abs(cells(page)[0]["value"] - layers[first["name"]][key]) < 1e-9,  # noqa: B023
            f"the grid of {title}",
        )
        for cell in cells(page):
            assert cell["value"] == pytest.approx(layers[cell["name"]][key], abs=1e-9), (title, cell["name"])
    colour(page, "Error").click()
    wait_until(page, lambda: in_url(page).get("colour") == "error", page.url)
    page.reload()
    page.locator("[data-where]").wait_for()
    wait_until(page, lambda: filled(page) == 224 and rows(page)[0] == "32", "the same page again")
    assert colour(page, "Error").get_attribute("aria-pressed") == "true"
    one = cells(page)[9]
    assert one["value"] == pytest.approx(layers[one["name"]]["relative_error"], abs=1e-9)


def facts(page: Any) -> dict[str, str]:
    names = page.locator("[data-layer] dt").all_inner_texts()
    return dict(zip(names, page.locator("[data-layer] dd").all_inner_texts()))


def test_a_click_opens_the_tensor_with_the_logs_figures(page: Any, server: str, big: RunDirectory) -> None:
    opened(page, server, "&page=3")
    click_open(page, 6, 77, NAME)
    wait_until(page, lambda: in_url(page).get("tensor") == NAME, page.url)
    compare(page, big)
    page.goto(page.url)
    page.locator("[data-tensor]").get_by_text(NAME).wait_for()
    compare(page, big)
    assert rows(page)[0] == "64"
    button(page, "Close").click()
    wait_until(page, lambda: not page.locator("[data-tensor]").is_visible(), "closed")
    assert "tensor" not in in_url(page)


def compare(page: Any, run: RunDirectory) -> None:
    """The view's figures, sentences, histograms and lines against the log and the recorded details."""
    layer, details = layers_of(run)[NAME], load_details(run.path, NAME)
    assert details is not None
    page.locator("[data-why]").wait_for()
    shown = facts(page)
    assert shown["Planes"] == str(layer["planes"])
    assert number(shown["Ratio"]) == pytest.approx(layer["ratio"], abs=0.0051)
    assert number(shown["Zeros"]) == pytest.approx(100 * layer["sparsity"], abs=0.051)
    assert number(shown["Squared error / squared norm"]) == pytest.approx(
        100 * layer["relative_error"], abs=0.0051
    )
    assert number(shown["Sign flips"]) == pytest.approx(100 * layer["sign_flips"], abs=0.0051)
    why = page.locator("[data-why]").inner_text()
    assert fig.plural(layer["planes"], "plane") in why and "nats a token" in why
    assert fig.significant(layer["threshold_used"]) in why
    held = page.evaluate(HISTOGRAMS)
    for which, counts in (("before", details.histogram_before), ("after", details.histogram_after)):
        assert held[which] == pytest.approx([float(n) / counts.sum() for n in counts])
    assert sorted(held["lines"]) == pytest.approx([-layer["threshold_used"], layer["threshold_used"]])
    page.locator("summary").get_by_text("These charts as tables").click()
    medians = [row.locator("td").nth(1).inner_text() for row in page.locator("[data-scales] tbody tr").all()]
    assert medians == [fig.significant(float(plane[1])) for plane in details.scales]


HISTOGRAMS = """() => {
  const found = {lines: []}
  for (const doc of Bokeh.documents) for (const model of doc._all_models.values()) {
    if (model.name === "weights before") found.before = Array.from(model.data.top)
    if (model.name === "weights after") found.after = Array.from(model.data.top)
    if (model.name === "weights-before")
      for (const part of model.renderers.concat(model.center))
        if (part.type === "Span" && part.visible) found.lines.push(part.location)
  }
  return found
}"""


def test_the_table_twin_opens_tensors(page: Any, server: str, big: RunDirectory) -> None:
    opened(page, server, "&page=4")
    page.locator("summary").get_by_text("This page as a table").click()
    table = page.locator("[data-grid]")
    table.wait_for()
    assert table.locator("tbody tr").count() == 30
    layers = layers_of(big)
    name = "model.layers.99.self_attn.v_proj.weight"
    cell = table.locator(f'button[data-open="{name}"]')
    assert number(cell.inner_text()) == pytest.approx(layers[name]["ratio"], abs=0.051)
    cell.focus()
    page.keyboard.press("Enter")
    page.locator("[data-tensor]").get_by_text(name).wait_for()


def test_follow(page: Any, server: str, runs_dir: Path) -> None:
    """The page moves with the tensor at work until the reader turns it, and again when asked."""
    run = make_run(runs_dir, "live", name="Live one")
    writer = EventWriter(run.path)
    script = list(events(run, layers=126, steps=1))
    started = [at for at, (kind, _) in enumerate(script) if kind == "layer.started"]

    def play(begin: int, until: int) -> None:
        for kind, fields in script[begin:until]:
            writer.emit(kind, **fields)

    play(0, started[5] + 1)
    page.goto(f"{server}?run=live&tab=progress")
    wait_for_status(page, "running", seconds=30)
    wait_until(page, lambda: filled(page) == 5, "five are pressed")
    at_work = [cell for cell in cells(page) if cell["state"] == "at work"]
    assert [(cell["row"], cell["column"], cell["text"]) for cell in at_work] == [("0", "up", "▶")]
    named = script[started[5]][1]["name"]
    wait_until(page, lambda: named in page.locator("[data-current]").inner_text(), "the tensor at work")
    assert {cell["text"] for cell in cells(page) if cell["state"] == "waiting"} == {"·"}
    play(started[5] + 1, started[7 * 40] + 1)
    wait_until(page, lambda: rows(page)[0] == "32", "it follows to layer 40")
    assert "page" not in in_url(page)
    page.get_by_label("Go to page 1").click()
    waits(page, 0, 31)
    play(started[7 * 40] + 1, started[7 * 70] + 1)
    wait_until(page, lambda: "layers.70." in page.locator("[data-current]").inner_text(), "the work goes on")
    assert rows(page)[0] == "0", "the reader's page stays"
    page.get_by_label("Follow the work").click()
    wait_until(page, lambda: rows(page)[0] == "64", "it follows again")
    wait_until(page, lambda: "page" not in in_url(page), page.url)
    play(started[7 * 70] + 1, started[7 * 71])
    writer.emit(
        "run.failed", error="no space left on the device", exit_code=1, write_seconds=0.0, seconds=1.0
    )
    writer.close()
    run.update_run(status="failed")
    wait_for_status(page, "failed", seconds=30)


def test_an_event_reaches_the_grid_as_it_was_written(page: Any, server: str, runs_dir: Path) -> None:
    """A log written at 120 events a second: the grid ends as the log does."""
    with written_beside(runs_dir, "fast", layers=33, steps=1) as (run_id, go_on):
        page.goto(f"{server}?run={run_id}&tab=progress")
        go_on()
        wait_for_status(page, "finished", seconds=60)
        wait_until(page, lambda: filled(page) in (7, 224), "the whole grid")
        layers = layers_of(RunDirectory(runs_dir / run_id))
        for first in (0, 32):
            if rows(page)[0] != str(first):
                page.get_by_label(f"Go to page {first // 32 + 1}").click()
            wait_until(page, lambda: rows(page)[0] == str(first), f"the page of layer {first}")  # noqa: B023
            for cell in cells(page):
                assert cell["value"] == pytest.approx(layers[cell["name"]]["ratio"])


def test_a_style_sheet_that_stays_is_not_written_again(page: Any, server: str, big: RunDirectory) -> None:
    """Bokeh writes those of a chart at every drawing, and the browser would work out all styles anew."""
    page.goto(f"{server}?run={big.id}&tab=progress")
    wait_until(page, lambda: filled(page) > 0, "the grid")
    kept = page.evaluate("""() => {
      const sheet = new (Bokeh.require("core/dom").InlineStyleSheet)("a { color: red }")
      const text = sheet.el.firstChild
      sheet.replace("a { color: red }")
      const stays = sheet.el.firstChild === text
      sheet.replace("a { color: blue }")
      return [stays, sheet.css]
    }""")
    assert kept == [True, "a { color: blue }"]
