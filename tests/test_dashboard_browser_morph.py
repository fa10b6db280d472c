"""Parts of the page that change while they are read: focus, scrolling, selection and what was opened stay."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import wait_for_status, wait_until
from dashboard_log import events, make_run, write_run
from tritpress.dashboard.components.export import FILES
from tritpress.dashboard.components.html import MORPH
from tritpress.events import EventWriter

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

# The morph alone

TAGS = ("div", "p", "span", "b", "section", "button", "ul", "li", "details", "summary", "svg", "input", "pre")
TABLE = "<table><thead><tr><th>{}</th></tr></thead><tbody>{}</tbody></table>"
ATTRIBUTES = (
    "class",
    "title",
    "style",
    "data-row",
    "aria-label",
    "id",
    "data-key",
    "viewBox",
    "xlink:href",
    "@x",
)
WORDS = ("one", "two &amp; three", "<!-- remark -->", "&lt;b&gt;", "– 3.5 %", " ", "")

Tree = tuple[str, dict[str, str], list[Any]]


def tree(r: random.Random, depth: int = 4) -> Tree | str:
    if depth == 0 or r.random() < 0.25:
        return r.choice(WORDS)
    given = {name: str(r.randrange(6)) for name in r.sample(ATTRIBUTES, r.randrange(4))}
    tag = "table" if r.random() < 0.1 else r.choice(TAGS)
    return tag, given, [tree(r, depth - 1) for _ in range(r.randrange(6))]


def another(r: random.Random, made: Tree | str) -> Tree | str:
    """That tree a little later: words and attributes changed, parts come, gone and moved."""
    if isinstance(made, str):
        return made if r.random() < 0.8 else r.choice(WORDS)
    tag, given, inside = made
    given, inside = dict(given), [another(r, part) for part in inside if r.random() < 0.9]
    if r.random() < 0.3:
        given[r.choice(ATTRIBUTES)] = str(r.randrange(6))
    if given and r.random() < 0.2:
        del given[r.choice(list(given))]
    if r.random() < 0.2:
        inside.insert(r.randrange(len(inside) + 1), tree(r, 2))
    if r.random() < 0.2:
        r.shuffle(inside)
    return tag, given, inside


def html(made: Tree | str) -> str:
    if isinstance(made, str):
        return made
    tag, given, inside = made
    body = "".join(map(html, inside))
    if tag == "table":
        return TABLE.format(body, "".join(f"<tr><td>{html(part)}</td></tr>" for part in inside))
    written = "".join(f' {name}="{value}"' for name, value in given.items())
    return f"<{tag}{written}>{body}</{tag}>"


DIFFERENCES = """(pairs) => {
  // The order that attributes stand in means nothing.
  const put_in_order = (root) => {
    for (const part of root.querySelectorAll("*")) {
      const held = Array.from(part.attributes).sort((a, b) => a.name < b.name ? -1 : 1)
      for (const one of held) part.removeAttributeNode(one)
      for (const one of held) part.setAttributeNode(one)
    }
    return root.outerHTML
  }
  const found = []
  for (const [before, after] of pairs) {
    const place = document.createElement("div"), written = document.createElement("div")
    document.body.append(place)
    place.innerHTML = before
    morph(place, after)
    written.innerHTML = after
    const equal = place.isEqualNode(written) && put_in_order(place) === put_in_order(written)
    if (!equal) found.push([before, after])
    place.remove()
  }
  return found
}"""


@pytest.fixture
def bare(browser: Any) -> Iterator[Any]:
    """An empty page that knows `morph`."""
    page = browser.new_page()
    page.set_content("<!doctype html><body></body>")
    page.add_script_tag(content=MORPH)
    yield page
    page.close()


def test_a_morph_ends_where_writing_anew_does(bare: Any) -> None:
    r = random.Random(11)
    pairs = []
    for number in range(300):
        before = [tree(r) for _ in range(4)]
        after = [tree(r) for _ in range(4)] if number % 3 == 0 else [another(r, part) for part in before]
        pairs.append(["".join(map(html, before)), "".join(map(html, after))])
    assert sum(before != after for before, after in pairs) > 280
    assert bare.evaluate(DIFFERENCES, pairs) == []


def test_what_stays_is_the_same_element(bare: Any) -> None:
    found = bare.evaluate(
        """() => {
          const item = (key, words) => `<li data-key="${key}"><a href="x">${words}</a></li>`
          const place = document.createElement("ol")
          document.body.append(place)
          place.innerHTML = item("a", "A") + item("b", "B") + item("c", "C")
          const [a, b, c] = place.children
          b.firstChild.focus()
          morph(place, item("c", "C") + item("new", "N") + item("b", "changed") + item("a", "A"))
          const keyed = [place.children[0] === c, place.children[2] === b, place.children[3] === a,
                         document.activeElement === b.firstChild, place.textContent]
          morph(place, "<li>first</li><li>last</li>")
          const last = place.children[1]
          morph(place, "<li>new</li><li>first</li><li>last</li>")
          return [...keyed, place.children[2] === last]
        }"""
    )
    assert found == [True, True, True, True, "CNchangedA", True]


def test_a_details_is_as_its_reader_left_it(bare: Any) -> None:
    found = bare.evaluate(
        """() => {
          const place = document.body, one = "<details><summary>S</summary>"
          place.innerHTML = one + "1</details>" + one.replace(">", " open>") + "1</details>"
          place.children[0].open = true
          place.children[1].open = false
          morph(place, one + "2</details>" + one.replace(">", " open>") + "2</details>")
          return [place.children[0].open, place.children[1].open, place.textContent]
        }"""
    )
    assert found == [True, False, "S2S2"]


def test_a_button_says_that_it_has_copied_until_its_time_is_over(bare: Any) -> None:
    bare.add_script_tag(content=FILES + "document.addEventListener('click', on_click)")
    bare.evaluate("""() => { document.body.innerHTML = '<p>1</p><button data-copy="one">Copy</button>' }""")
    bare.get_by_role("button").click()
    bare.wait_for_function("() => /Copied|Select/.test(document.body.textContent)")
    bare.evaluate("""() => morph(document.body, '<p>2</p><button data-copy="two">Copy it</button>')""")
    said = bare.get_by_role("button")
    assert said.inner_text() in ("Copied", "Select it by hand")
    assert said.get_attribute("data-copy") == "two" and bare.locator("p").inner_text() == "2"
    bare.wait_for_timeout(2100)
    assert said.inner_text() == "Copy it" and said.get_attribute("data-words") is None


def test_what_is_read_runs_no_more_than_what_is_written(bare: Any) -> None:
    """Handlers in attributes work as in what is written; what stays is not run again; scripts never."""
    found = bare.evaluate(
        """async () => {
          window.ran = []
          const place = document.body
          place.innerHTML = "<p>1</p>"
          const bad = `<img src="data:," onerror="ran.push('image')">`
          const text = (n) => `<p>${n}</p>${bad}<button onclick="ran.push('click')">B</button>`
            + `<script>ran.push("script")<` + "/script>"
          morph(place, text(2))
          await new Promise((done) => setTimeout(done, 300))
          morph(place, text(3))
          await new Promise((done) => setTimeout(done, 300))
          place.querySelector("button").click()
          return ran
        }"""
    )
    assert found == ["image", "click"]


def test_fragments_that_do_more_than_stand_there_are_written_anew(bare: Any) -> None:
    """Scripts run and links within the page get their handlers: Panel sees to both when it writes."""
    found = bare.evaluate(
        """() => {
          let written = 0
          const container = document.body
          const write = (text) => { written++; container.innerHTML = text }
          const view = { container, write: morphing(write) }
          return ["<p>1</p>", "<p>2</p>", "<p>3</p><script>1<" + "/script>", "<p>4</p>", "<p>5</p>",
                  '<a href="#x">6</a>', "<noscript>7</noscript>", null]
            .map((text) => { view.write(text); return written })
        }"""
    )
    assert found == [1, 1, 2, 3, 3, 4, 5, 6]


def test_a_control_that_is_made_anew_has_the_focus_again(bare: Any) -> None:
    found = bare.evaluate(
        """() => {
          const place = document.body
          place.innerHTML = "<p>1</p><div><button>A</button><button>B</button></div>"
          const held = place.querySelectorAll("button")[1]
          held.focus()
          morph(place, "<p>2</p><section><button>A</button><button>B</button></section>")
          const again = document.activeElement !== held && document.activeElement.textContent
          morph(place, "<p>3</p><div><button>A</button><button>another</button></div>")
          return [again, document.activeElement === document.body]
        }"""
    )
    assert found == ["B", True]


# A run at work

FOCUSED = """() => {
  let e = document.activeElement
  while (e && e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement
  return e
}"""

COUNT = """(e) => {
  const root = e.getRootNode()
  window.changes = 0
  new MutationObserver(() => { window.changes++ })
    .observe(root, {subtree: true, childList: true, characterData: true, attributes: true})
}"""


NARROW = """(e) => {
  const style = document.createElement("style")
  style.textContent = ".scroll { width: 160px }"
  e.getRootNode().append(style)
}"""


class Replay:
    """A run at work whose events come as a test asks for them."""

    def __init__(self, runs_dir: Path, run_id: str, begin: Callable[[str, int], bool]) -> None:
        run = make_run(runs_dir, run_id, name=run_id)
        self.writer = EventWriter(run.path)
        self.script = events(run, steps=400, details=True)
        seen: dict[str, int] = {}
        for kind, fields in self.script:
            self.writer.emit(kind, **fields)
            seen[kind] = seen.get(kind, 0) + 1
            if begin(kind, seen[kind]):
                break
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def changes(self, page: Any, part: Any, times: int = 3) -> None:
        """Go on until what stands around `part` has changed so many times."""
        part.evaluate(COUNT)
        for kind, fields in self.script:
            self.writer.emit(kind, **fields)
            page.wait_for_timeout(100)
            if page.evaluate("changes") >= times:
                return
        raise AssertionError(f"{page.evaluate('changes')} changes at the run's end")


def focused(page: Any, part: Any) -> bool:
    return bool(page.evaluate(f"(e) => e.isConnected && ({FOCUSED})() === e", part))


def by_keyboard(page: Any, part: Any, reached: list[Any]) -> bool:
    """Whether the keyboard came to that part; what it is, is added. On a page that is still being built it
    may come to another.
    """
    part.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    reached.append(part.element_handle())
    return focused(page, reached[-1])


def test_the_overview_changes_around_the_reader(page: Any, server: str, runs_dir: Path) -> None:
    def begin(kind: str, count: int) -> bool:
        return (kind, count) == ("layer.finished", 8)

    with closing(Replay(runs_dir, "at-work", begin)) as replay:
        page.goto(f"{server}?run=at-work&tab=overview")
        wait_for_status(page, "running", seconds=30)
        log = page.get_by_role("list", name="Events, newest first")
        log.locator("li").nth(7).wait_for()
        log.evaluate("(e) => { e.style.maxHeight = '120px'; e.scrollTop = 100 }")
        at = log.evaluate("(e) => { window.line = e.children[6]; return line.getBoundingClientRect().top }")
        newest = log.locator("li").first.inner_text()
        steps = page.locator('[data-csv="steps"]')
        reached: list[Any] = []
        wait_until(page, lambda: by_keyboard(page, steps, reached), "the keyboard comes to the button")
        held = reached[-1]
        title = page.locator('[data-step="4"] .title')
        title.evaluate("(e) => getSelection().selectAllChildren(e)")
        chosen = title.evaluate("(e) => e.getRootNode().getSelection().toString()")
        assert chosen
        replay.changes(page, held)
        assert focused(page, held)
        assert title.evaluate("(e) => e.getRootNode().getSelection().toString()") == chosen
        assert log.locator("li").first.inner_text() != newest
        moved = page.evaluate("line.getBoundingClientRect().top") - at
        assert page.evaluate("line.isConnected") and abs(moved) < 2, f"the log moved by {moved}"


def test_tables_of_curves_change_around_the_reader(page: Any, server: str, runs_dir: Path) -> None:
    """The tables under the curves of two runs: opened, scrolled sideways, the focus on a button in them."""
    write_run(runs_dir, "whole", name="a whole run")

    def begin(kind: str, count: int) -> bool:
        return (kind, count) == ("finetune.step", 30)

    with closing(Replay(runs_dir, "in-training", begin)) as replay:
        page.goto(f"{server}?run=whole&run=in-training&tab=compare")
        summary = page.get_by_text("The curves as tables")
        summary.click()
        part = page.locator("details.twin")
        scrolled = part.locator(".scroll")
        scrolled.evaluate(NARROW)
        save = part.locator("button").first
        save.focus()
        scrolled.evaluate("(e) => { e.scrollLeft = 30 }")
        held, box = save.element_handle(), scrolled.element_handle()
        assert box.evaluate("(e) => e.scrollLeft") == 30
        table = part.inner_text()
        replay.changes(page, held)
        assert part.inner_text() != table
        assert focused(page, held) and part.evaluate("(e) => e.open")
        assert box.evaluate("(e) => e.isConnected") and box.evaluate("(e) => e.scrollLeft") == 30


def test_the_table_of_tensors_grows_around_the_reader(page: Any, server: str, runs_dir: Path) -> None:
    def begin(kind: str, count: int) -> bool:
        return (kind, count) == ("layer.finished", 5)

    with closing(Replay(runs_dir, "growing", begin)) as replay:
        page.goto(f"{server}?run=growing&tab=diff")
        table = page.locator("[data-sorttable]")
        row = table.locator("tbody tr").nth(2)
        name = row.get_attribute("data-row")
        table.locator("thead button").first.focus()
        page.keyboard.press("Tab")
        header = page.evaluate_handle(FOCUSED).as_element()
        assert header.evaluate("(e) => e.closest('thead') !== null && e.tagName") == "BUTTON"
        box = table.evaluate_handle("(e) => e.parentElement")
        box.evaluate("(e) => { e.style.width = '300px'; e.scrollLeft = 90 }")
        rows, kept = table.locator("tbody tr").count(), row.element_handle()
        replay.changes(page, header)
        assert table.locator("tbody tr").count() > rows
        assert focused(page, header) and box.evaluate("(e) => e.scrollLeft") == 90
        assert kept.evaluate("(e) => e.isConnected") and kept.get_attribute("data-row") == name
        page.keyboard.press("Enter")
        page.wait_for_function("(e) => e.closest('th').ariaSort !== 'none'", arg=header)
        assert focused(page, header), "the table was sorted by the heading that has the focus"
        table.locator("tbody tr button").first.click()
        table.locator('tbody tr[aria-selected="true"]').wait_for()


def test_the_grid_as_a_table_changes_around_the_reader(page: Any, server: str, runs_dir: Path) -> None:
    def begin(kind: str, count: int) -> bool:
        return (kind, count) == ("layer.finished", 5)

    with closing(Replay(runs_dir, "gridded", begin)) as replay:
        page.goto(f"{server}?run=gridded&tab=progress")
        page.get_by_text("This page as a table").click()
        cell = page.locator("[data-grid] tbody button").nth(1)
        cell.focus()
        held = cell.element_handle()
        box = page.locator("[data-grid]").evaluate_handle("(e) => e.parentElement")
        box.evaluate("(e) => { e.style.width = '200px'; e.scrollLeft = 25 }")
        replay.changes(page, held)
        assert focused(page, held) and box.evaluate("(e) => e.scrollLeft") == 25
        page.keyboard.press("Enter")
        page.locator("[data-tensor]").get_by_text(str(held.get_attribute("data-open"))).wait_for()


def test_the_list_of_runs_changes_around_the_reader(page: Any, server: str, runs_dir: Path) -> None:
    def begin(kind: str, count: int) -> bool:
        return (kind, count) == ("layer.finished", 5)

    with closing(Replay(runs_dir, "listed", begin)) as replay:
        page.goto(f"{server}?tab=runs")
        box = page.get_by_role("checkbox", name="Choose listed", exact=True)
        box.check()
        link = page.get_by_role("link", name="listed", exact=True)
        link.focus()
        held = link.element_handle()
        write_run(runs_dir, "newer", name="a newer run", until="evaluation")
        replay.changes(page, held)
        page.get_by_role("link", name="a newer run").wait_for()
        assert focused(page, held) and box.is_checked()
        box.uncheck()
        box.focus()
        page.keyboard.press("Space")
        assert box.is_checked()
        link.click()
        page.locator('[data-tab="overview"]').wait_for(state="attached")
