"""Nothing sticks out, at any width: every tab with nothing there, with a run at work, with one that is over.

One page for each state; within it the tabs are switched and the window is made wider and narrower.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import patient
from dashboard_log import begin_run, write_failed, write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

WIDTHS = (2560, 1440, 800, 360)
TENSOR = "model.layers.3.mlp.down_proj.weight"
LONG = "a-name-that-has-no-place-to-break-and-goes-on-" * 3

LOOK = """() => {
  const found = [], inner = document.documentElement.clientWidth
  if (document.scrollingElement.scrollWidth > inner) found.push("the page scrolls sideways")
  const above = (e) => e.parentElement || e.getRootNode().host || null
  const scrolls = (e) => {
    for (let up = above(e); up; up = above(up))
      if (["auto", "scroll"].includes(getComputedStyle(up).overflowX)) return up.scrollWidth > up.clientWidth
    return false
  }
  const text = (e) => (e.innerText || "").trim().slice(0, 40)
  const name = (e) => `${e.localName}.${[...e.classList].join(".")} ${text(e)}`
  const words = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
  const look = (root) => {
    for (const e of root.querySelectorAll("*")) {
      if (e.shadowRoot) look(e.shadowRoot)
      const box = e.getBoundingClientRect()
      if (box.width < 2 || box.height < 2 || !e.checkVisibility({visibilityProperty: true})) continue
      const style = getComputedStyle(e)
      if (style.clipPath !== "none" || style.pointerEvents === "none") continue
      if (e.closest("svg, canvas, .bk-Canvas, [data-sonner-toaster]")) continue
      if (box.left < inner && box.right > inner + 1 && !scrolls(e)) found.push(`sticks out: ${name(e)}`)
      const cut = e.scrollWidth > e.clientWidth + 1 && style.display !== "inline"
      const hides = ["hidden", "clip"].includes(style.overflowX) && style.textOverflow !== "ellipsis"
      if (words(e) && cut && hides) found.push(`is cut: ${name(e)}`)
      // Words that are wider than the card or cell they stand in.
      if (words(e) && cut && style.overflowX === "visible" && !scrolls(e)) {
        const edge = e.closest(".tile, .gate, .panel, td, th, li, .note, .empty, button")
        if (edge && box.left + e.scrollWidth > edge.getBoundingClientRect().right + 1)
          found.push(`wider than its card: ${name(e)}`)
      }
    }
  }
  look(document)
  return [...new Set(found)]
}"""


@pytest.fixture(scope="module")
def three(runs_dir: Path) -> Iterator[None]:
    """A run that is over, one at work with a very long name, one that failed over a long path."""
    write_run(runs_dir, "whole", name="a whole run", failing_gate="perplexity", details=True)
    write_failed(runs_dir, "failed", name="a failed run", error=f"cannot write /{LONG}/{LONG}.safetensors")
    writer = begin_run(runs_dir, "live", name=LONG, pressed=30)
    yield
    writer.close()


@pytest.mark.parametrize("state", ["empty", "live", "failed", "whole"])
def test_nothing_sticks_out_at_any_width(browser: Any, server: str, three: None, state: str) -> None:
    page = patient(browser.new_page(viewport={"width": WIDTHS[0], "height": 900}))
    page.set_default_timeout(60_000)
    found: dict[str, list[str]] = {}
    try:
        page.goto(server + (f"?run={state}&tab=runs" if state != "empty" else "?tab=runs"))
        page.get_by_role("tab", name="Overview").wait_for()
        tabs = page.get_by_role("tab")
        for number in range(tabs.count()):
            page.set_viewport_size({"width": WIDTHS[0], "height": 900})
            tab = tabs.nth(number)
            title = tab.inner_text().lower()
            tab.click()
            page.locator(f'[data-tab="{title}"]').first.wait_for(state="attached")
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                if sticks_out := settled(page):
                    found[f"{title} at {width}"] = sticks_out
    finally:
        page.close()
    assert not found, found


def test_nothing_sticks_out_of_dialogs_and_an_open_tensor(browser: Any, server: str, three: None) -> None:
    page = patient(browser.new_page(viewport={"width": WIDTHS[0], "height": 900}))
    page.set_default_timeout(60_000)
    found: dict[str, list[str]] = {}

    def look(name: str) -> None:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            if sticks_out := settled(page):
                found[f"{name} at {width}"] = sticks_out
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})

    try:
        page.goto(f"{server}?tab=runs")
        for what in ("Edit", "Delete"):
            page.get_by_role("button", name=f"{what} a failed run").click()
            page.get_by_role("dialog").wait_for()
            look(what)
            page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
            page.get_by_role("dialog").wait_for(state="hidden")
        for tab in ("progress", "diff", "tuning"):
            page.goto(f"{server}?run=whole&tab={tab}&tensor={TENSOR}")
            page.locator(f'[data-tab="{tab}"]').first.wait_for(state="attached")
            page.wait_for_timeout(1_000)
            look(f"{tab} with a tensor")
    finally:
        page.close()
    assert not found, found


def settled(page: Any) -> list[str]:
    """What sticks out once fonts are loaded (until then an icon is its name in letters) and the charts have
    taken the new width in, or some seconds later all the same."""
    page.wait_for_function("document.fonts.status === 'loaded'")
    for _ in range(20):
        page.wait_for_timeout(150)
        found = list(page.evaluate(LOOK))
        if not found:
            return []
    return found


def test_the_look_finds_what_it_looks_for(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 300})
    try:
        page.set_content(
            """<div id="host"></div><div style="overflow: hidden; width: 60px">WordsThatAreCutOffHere</div>
            <div style="overflow: auto; width: 300px"><p style="width: 900px">may be scrolled to</p></div>
            <script>
              const root = document.getElementById("host").attachShadow({mode: "open"})
              root.innerHTML = '<div class="tile" style="width: 50px"><b style="display: block">' +
                "TooWideForItsCard</b></div>"
            </script>"""
        )
        found = page.evaluate(LOOK)
        assert len(found) == 2 and "TooWide" in found[0] and "cut" in found[1], found
        page.set_content('<body style="overflow-x: hidden"><div style="width: 500px">Wide</div>')
        assert any("sticks out" in each for each in page.evaluate(LOOK))
        page.set_content('<div style="width: 500px">Wide</div>')
        assert "the page scrolls sideways" in page.evaluate(LOOK)
    finally:
        page.close()
