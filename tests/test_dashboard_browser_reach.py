"""The page for everyone: axe-core finds nothing serious, the keyboard reaches everything, every chart has a table,
light and dark follow the system and the switch, no width cuts anything off, and no other host is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import button, open_page, show, wait_until
from dashboard_log import write_run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

TABS = ("Runs", "Overview", "Progress", "Metrics", "Quality", "Outputs", "Compare", "Diff", "Tuning")
TENSOR = "model.layers.3.mlp.down_proj.weight"
VIEWS = {
    "Runs": "?tab=runs",
    "nothing open": "?tab=metrics",
    "Overview": "?run=whole",
    "Progress": f"?run=whole&tab=progress&tensor={TENSOR}",
    "Metrics": "?run=whole&tab=metrics&twin=1",
    "Quality": "?run=broken&tab=quality",
    "Outputs": "?run=whole&tab=outputs",
    "Compare": "?run=whole&run=broken&tab=compare",
    "Diff": f"?run=whole&tab=diff&tensor={TENSOR}",
    "Tuning": "?run=whole&tab=tuning&threshold=0.9",
}
"""A rich view of each tab and what stands there without a run."""


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
    made.set_default_timeout(20_000)
    yield made
    made.close()


def ready(page: Any) -> None:
    page.get_by_role("tab", name="Overview").wait_for()
    page.locator("[data-tab]").first.wait_for(state="attached")
    page.wait_for_timeout(500)


def is_dark(page: Any) -> bool:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3]]
    return sum(levels) < 3 * 128


def test_axe_finds_nothing_serious(dressed: Any, server: str, two_runs: None, request: Any) -> None:
    """Every tab, light and dark, in a rich state; nothing is asked of another host meanwhile."""
    base = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
    dark = request.node.callspec.params["dressed"] == "dark"
    found: dict[str, list[str]] = {}
    for name, query in VIEWS.items():
        dressed.goto(server + query)
        ready(dressed)
        assert is_dark(dressed) is dark, name
        if not dressed.evaluate("'axe' in window"):
            dressed.evaluate(base.AXE_SCRIPT)
        answer = dressed.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert len(answer["passes"]) > 10, f"{name}: axe looked at hardly anything"
        found[name] = [
            f"{rule['impact']}: {rule['id']} at {node['target'][-1]}: {node['html'][:120]}"
            for rule in answer["violations"]
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]
    assert not any(found.values()), found
    host = server.removesuffix("/dashboard")
    others = [url for url in dressed.asked if not url.startswith((host, "blob:", "data:"))]
    assert dressed.asked and not others, others


def test_light_and_dark_by_system_and_switch(browser: Any, server: str, two_runs: None) -> None:
    context = browser.new_context(color_scheme="dark", viewport={"width": 1440, "height": 900})
    try:
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


STICKS_OUT = """() => {
  const all = (root) => Array.from(root.querySelectorAll("*")).flatMap(e => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])])
  const parent = (e) => e.assignedSlot || e.parentElement || (e.getRootNode().host ?? null)
  const rolls = (e) => {
    for (let at = e; at; at = parent(at)) if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)
        && at.scrollWidth > at.clientWidth && !at.classList.contains("main-content")) return true
    return false
  }
  const main = all(document).find(e => e.classList.contains("main-content"))
  if (main.scrollWidth > main.clientWidth) return [`the page is ${main.scrollWidth} wide`]
  return all(main).filter(e => {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e)
    if (!box.width || !box.height || style.visibility === "hidden" || style.clipPath !== "none") return false
    return box.right > innerWidth + 1 && e.childElementCount === 0 && e.textContent.trim() && !rolls(e)
  }).map(e => `${e.tagName} ${e.className}: ${e.textContent.trim().slice(0, 60)}`)
}"""


@pytest.mark.parametrize("width", [360, 800, 2560])
def test_nothing_sticks_out(page: Any, server: str, two_runs: None, width: int) -> None:
    """At any width all is inside the page, or inside a part of it that scrolls sideways."""
    page.set_viewport_size({"width": width, "height": 900})
    for name, query in VIEWS.items():
        page.goto(server + query)
        ready(page)
        assert page.evaluate(STICKS_OUT) == [], (name, width)


FOCUS = """() => {
  let at = document.activeElement
  while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement
  if (!at || at === document.body) return ""
  const box = at.getBoundingClientRect()
  const labels = at.labels ? Array.from(at.labels).map(l => l.textContent).join(" ") : ""
  const name = at.getAttribute("aria-label") || labels || at.textContent || at.placeholder || ""
  return JSON.stringify([at.tagName.toLowerCase(), name.trim().slice(0, 60), box.width * box.height > 0])
}"""


def walk(page: Any, stops: int) -> list[str]:
    """What the tabulator key comes to, in order, until it comes round."""
    seen: list[str] = []
    for _ in range(stops):
        page.keyboard.press("Tab")
        at = str(page.evaluate(FOCUS))
        if not at and seen:
            break
        seen.append(at)
    return seen


@pytest.mark.parametrize(
    ("tab", "wanted"),
    [
        ("runs", ["Search", "Choose a whole run", "a whole run", "Edit a whole run", "Delete a whole run"]),
        ("progress", ["Ratio", "This page as a table", "These charts as tables", "Close"]),
        ("metrics", ["Step", "Log axis", "As tables"]),
        ("quality", ["As a table"]),
        ("compare", ["The curves as tables"]),
        ("diff", ["Find a tensor", "The weights as a table", "The error as a table"]),
        ("tuning", ["The curves as a table", "Start a new run with this"]),
    ],
)
def test_the_keyboard_reaches_everything(
    page: Any, server: str, two_runs: None, tab: str, wanted: list[str]
) -> None:
    """From the top: drawer and theme, the form, the tabs, then what is in the tab with every chart's table."""
    page.goto(server + VIEWS[tab.capitalize()])
    ready(page)
    found = walk(page, 160)
    told = "\n".join(found)
    for name in ("Close drawer", "Toggle theme", "Model folder", "Start", tab.capitalize(), *wanted):
        assert name in told, f"{name!r} is not reached: {told}"
    hidden = [stop for stop in found if stop.endswith("false]") and "input" not in stop]
    assert not hidden, f"the keyboard stops at what nobody sees: {hidden}"


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
