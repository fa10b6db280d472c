"""The page for everyone: axe-core finds nothing serious, the keyboard reaches everything, every chart has a
table, light and dark follow the system and the switch, no width cuts anything off, no other host is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from browser_helpers import button, open_page, patient, show, wait_until
from dashboard_log import begin_run, write_failed, write_run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

TENSOR = "model.layers.3.mlp.down_proj.weight"
VISITS = (
    ("?tab=runs", ("Runs", "Metrics")),
    ("?run=broken&run=whole&tab=compare", ("Compare", "Overview", "Quality", "Outputs")),
    (f"?run=whole&tab=progress&tensor={TENSOR}", ("Progress", "Metrics", "Tuning")),
    (f"?run=whole&tab=diff&tensor={TENSOR}", ("Diff",)),
)
"""Pages to load and the tabs to look at in each: every tab with much in it, and one with nothing open."""


TABS = ("Overview", "Runs", "Progress", "Metrics", "Quality", "Outputs", "Compare", "Diff", "Tuning")


@pytest.fixture(scope="module")
def two_runs(runs_dir: Path) -> None:
    write_run(runs_dir, "whole", name="a whole run", layers=6, details=True)
    write_run(runs_dir, "broken", name="a gate failed", failing_gate="perplexity", details=True)


@pytest.fixture(params=["light", "dark"])
def dressed(browser: Any, server: str, request: Any) -> Iterator[Any]:
    """A page on a light or a dark system, and all that it asks for."""
    made = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=request.param)
    made.asked: list[str] = []
    made.on("request", lambda sent: made.asked.append(sent.url))
    made.set_default_timeout(90_000)
    yield made
    made.close()


def ready(page: Any) -> None:
    page.get_by_role("tab", name="Overview").wait_for()
    page.locator("[data-tab]").first.wait_for(state="attached")
    page.wait_for_timeout(500)


def visits(page: Any, server: str) -> Iterator[str]:
    """Goes through `VISITS`; the name of each view once it stands."""
    for query, tabs in VISITS:
        page.goto(server + query)
        ready(page)
        for number, tab in enumerate(tabs):
            if number:
                show(page, tab)
                page.wait_for_timeout(500)
            if tab == "Metrics" and "run=" in query:
                page.get_by_role("switch", name="As tables").click()
                page.locator("[data-twin]").first.wait_for()
            yield f"{tab} at {query}"


def is_dark(page: Any) -> bool:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3]]
    return sum(levels) < 3 * 128


def serious(page: Any, name: str) -> list[str]:
    """What axe-core finds serious or critical on the page as it stands."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    answer = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(answer["passes"]) > 10, f"{name}: axe looked at hardly anything"
    return [
        f"{rule['impact']}: {rule['id']} at {node['target'][-1]}: {node['html'][:120]}"
        for rule in answer["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def test_axe_finds_nothing_serious(dressed: Any, server: str, two_runs: None, request: Any) -> None:
    """Every tab, light and dark, in a rich state; nothing is asked of another host meanwhile."""
    dark = request.node.callspec.params["dressed"] == "dark"
    found: dict[str, list[str]] = {}
    for name in visits(dressed, server):
        assert is_dark(dressed) is dark, name
        found[name] = serious(dressed, name)
    assert not any(found.values()), found
    host = server.removesuffix("/dashboard")
    others = [url for url in dressed.asked if not url.startswith((host, "blob:", "data:"))]
    assert dressed.asked and not others, others


@pytest.mark.slow
@pytest.mark.parametrize("state", ["empty", "live", "failed", "dialogs"])
def test_axe_finds_nothing_serious_in_other_states(
    browser: Any, server: str, two_runs: None, runs_dir: Path, state: str
) -> None:
    write_failed(runs_dir, "failed", name="a failed run", error="no space left on the device")
    page = patient(browser.new_page(viewport={"width": 1440, "height": 900}))
    page.set_default_timeout(90_000)
    found: dict[str, list[str]] = {}
    try:
        with closing(begin_run(runs_dir, "live", name="a run at work", pressed=20)):
            page.goto(server + ("" if state in ("empty", "dialogs") else f"?run={state}&tab=overview"))
            ready(page)
            if state == "dialogs":
                for what in ("Edit", "Delete"):
                    page.get_by_role("button", name=f"{what} a failed run").click()
                    page.get_by_role("dialog").wait_for()
                    page.wait_for_timeout(500)
                    found[what] = serious(page, what)
                    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
                    page.get_by_role("dialog").wait_for(state="hidden")
                return
            for tab in TABS:
                show(page, tab)
                page.wait_for_timeout(500)
                found[tab] = serious(page, tab)
    finally:
        page.close()
        assert not any(found.values()), found


def test_light_and_dark_by_system_and_switch(browser: Any, server: str, two_runs: None) -> None:
    context = browser.new_context(color_scheme="dark", viewport={"width": 1440, "height": 900})
    try:
        context.set_default_timeout(90_000)
        page = context.new_page()
        page.goto(f"{server}?run=whole&tab=metrics")
        ready(page)
        assert is_dark(page), "a dark system gets a dark page"
        title = "() => Array.from(Bokeh.documents).flatMap(d => Array.from(d._all_models.values()))" \
            ".find(m => m.name === 'metrics-loss').title.text_color"  # fmt: skip
        light_ink = page.evaluate(title)
        page.get_by_role("button", name="Toggle theme").click()
        wait_until(page, lambda: not is_dark(page), "the switch makes the page light")
        wait_until(page, lambda: page.evaluate(title) != light_ink, "charts change with the page")
        other = context.new_page()
        other.goto(f"{server}?tab=runs")
        ready(other)
        assert not is_dark(other), "the choice outlives the page"
        other.get_by_role("button", name="Toggle theme").click()
        wait_until(other, lambda: is_dark(other), "and back")
        other.emulate_media(color_scheme="light")
        wait_until(other, lambda: not is_dark(other), "what is as the system is follows the system again")
    finally:
        context.close()


def test_by_keyboard_alone(page: Any, server: str, two_runs: None) -> None:
    """A run is opened, a tab chosen, a tensor opened and a chart's table unfolded without a mouse."""
    open_page(page, f"{server}?tab=runs")
    page.get_by_role("link", name="a whole run").focus()
    page.keyboard.press("Enter")
    page.locator('[data-tab="overview"]').wait_for(state="attached")
    page.get_by_role("tab", name="Overview").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator('[data-tab="progress"]').wait_for(state="attached")
    page.get_by_text("This page as a table").focus()
    page.keyboard.press("Enter")
    cell = page.locator("[data-grid] button").nth(3)
    cell.wait_for()
    cell.focus()
    page.keyboard.press("Enter")
    page.locator("[data-tensor]").wait_for()
    summary = page.get_by_text("These charts as tables")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("[data-histogram] tbody tr").count() == 16
    assert page.locator("[data-scales] tbody tr").count() >= 1
    button(page, "Close").focus()
    page.keyboard.press("Enter")
    wait_until(page, lambda: "tensor=" not in page.url, page.url)


def test_a_run_that_is_not_there_is_said_where_it_is_looked_for(page: Any, server: str) -> None:
    open_page(page, f"{server}?run=nosuch")
    page.get_by_text("There is no run 'nosuch'", exact=True).wait_for()
    show(page, "Metrics")
    assert page.get_by_text("There is no run 'nosuch' here.").is_visible()


def test_several_runs_by_repeated_names(page: Any, server: str, two_runs: None) -> None:
    open_page(page, f"{server}?run=whole&run=broken&tab=compare")
    page.locator("[data-figure]").first.wait_for()
    heads = page.locator("[data-state]").evaluate_all("all => all.map(e => e.dataset.state)")
    assert heads == ["whole", "broken"]
    table = page.locator("details.twin").filter(has_text="The curves as tables")
    table.locator("summary").click()
    cells = table.locator("table").first.locator("tbody td").all_inner_texts()
    assert len(cells) >= 20 and all(text == "–" or float(text) > 0 for text in cells), cells
