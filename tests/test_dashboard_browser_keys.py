"""A walk over the page by the Tab key alone: it comes to every control, each shows that it has the focus, and
it comes out at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import patient
from dashboard_log import begin_run, write_failed, write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

TABS = ("Runs", "Overview", "Progress", "Metrics", "Quality", "Outputs", "Compare", "Diff", "Tuning")
TENSOR = "model.layers.1.mlp.down_proj.weight"

WALK = """() => {
  const walk = window.walk = {}
  const above = (e) => e.parentElement || e.getRootNode().host || null
  const deepest = () => {
    let e = document.activeElement
    while (e && e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement
    return e
  }
  const said = (e) => e.getAttribute("aria-label") || (e.labels && e.labels[0] && e.labels[0].innerText) ||
    e.innerText || e.id || ""
  const name = (e) => `${e.localName} ${e.type || ""} ${said(e).trim().slice(0, 40)}`
  const reached = new Map()  // to its name when it was reached
  // Its own outline or shadow, or the frame that a library draws around the field it lies in.
  const ring = (e) => {
    for (let up = e, n = 0; up && n < 4; up = above(up), n++) {
      if (up.classList.contains("Mui-focusVisible") || up.classList.contains("Mui-focused")) return true
      const style = getComputedStyle(up)
      if (n < 2 && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) return true
    }
    return false
  }
  walk.here = () => {
    const e = deepest()
    if (!e || e === document.body || e === document.documentElement) return null
    const again = reached.has(e)
    if (!again) reached.set(e, name(e))
    return {name: name(e), ring: ring(e), again}
  }
  const seen = (e) => {
    const box = e.getBoundingClientRect()
    if (box.width < 1 || box.height < 1 || !e.checkVisibility({visibilityProperty: true})) return false
    for (let up = e; up; up = above(up)) {
      if (up.inert || up.getAttribute("aria-hidden") === "true") return false
      if (up.localName === "details" && !up.open && !e.closest("summary")) return false
    }
    return true
  }
  // Of radio buttons of one name, Tab goes to one.
  const one = (e) => e.type !== "radio" || e.checked
  walk.missed = () => {
    const found = []
    // What was written anew since the walk passed it: a run at work changes the page.
    const gone = new Set([...reached].filter(([e]) => !e.isConnected).map(([, was]) => was))
    const look = (root) => {
      for (const e of root.querySelectorAll("*")) {
        if (e.shadowRoot) look(e.shadowRoot)
        const control = e.matches("a[href], button, input, select, textarea, summary, [role=tab], [tabindex]")
        if (!control || e.disabled || e.tabIndex < 0 || !one(e) || !seen(e)) continue
        if (!reached.has(e) && !gone.has(name(e))) found.push(name(e))
      }
    }
    look(document)
    return found
  }
  walk.controls = () => reached.size
}"""


@pytest.fixture(scope="module")
def run(runs_dir: Path) -> Iterator[None]:
    write_run(runs_dir, "whole", name="a whole run", failing_gate="perplexity", details=True)
    write_run(runs_dir, "other", name="another run", details=True)
    write_failed(runs_dir, "failed", name="a failed run", error="no space left on the device")
    with closing(begin_run(runs_dir, "live", name="a run at work", pressed=20)):
        yield


def steps(page: Any, limit: int = 400) -> list[dict[str, Any]]:
    """Press Tab until it comes out at the end of the page; what had the focus each time."""
    found = []
    for _ in range(limit):
        page.keyboard.press("Tab")
        here = page.evaluate("walk.here()")
        if here is None or here["again"]:
            return found
        found.append(here)
    raise AssertionError(f"after {limit} steps still at {found[-1]}")


@pytest.mark.parametrize("opened", ["whole,other", "live", "failed"])
def test_tab_reaches_every_control_and_comes_out_at_the_end(
    browser: Any, server: str, run: None, opened: str
) -> None:
    page = patient(browser.new_page(viewport={"width": 1440, "height": 900}))
    page.set_default_timeout(60_000)
    problems: dict[str, list[str]] = {}
    try:
        page.goto(f"{server}?run={opened}&tab=runs&tensor={TENSOR}")
        page.locator('[data-tab="runs"]').first.wait_for(state="attached")
        page.wait_for_timeout(800)
        page.evaluate(WALK)
        whole = steps(page)
        assert len(whole) > 25, whole
        for number, tab in enumerate(TABS):
            if number:
                page.get_by_role("tab", name=tab).focus()
                page.keyboard.press("Enter")
                page.locator(f'[data-tab="{tab.lower()}"]').first.wait_for(state="attached")
                page.wait_for_timeout(800)
                page.evaluate("walk.here()")
                whole = steps(page)
            problems[tab] = [f"shows no focus: {step['name']}" for step in whole if not step["ring"]]
            problems[tab] += [f"not reached: {name}" for name in page.evaluate("walk.missed()")]
    finally:
        page.close()
    problems = {tab: found for tab, found in problems.items() if found}
    assert not problems, problems
