"""The grid for those who use no pointer: a strip that takes the keys, and the page's figures as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from tritpress.dashboard.components.html import MORPH, Markup
from tritpress.dashboard.theme import STYLES

KEYS = (
    "ArrowUp",
    "ArrowDown",
    "ArrowLeft",
    "ArrowRight",
    "PageUp",
    "PageDown",
    "Home",
    "End",
    "Enter",
    "Escape",
)


class GridKeys(JSComponent):
    """A focusable line below the grid: says which cell is chosen, and sends the keys pressed on it."""

    words = param.String(default="")
    taken = param.List(default=list(KEYS))

    _esm = """
    export function render({ model }) {
      const box = document.createElement("div")
      box.className = "keys"
      box.tabIndex = 0
      box.setAttribute("role", "group")
      box.setAttribute("aria-label", "Grid by keyboard: arrow keys choose a cell, Enter opens it, "
        + "Page Up and Page Down turn pages, Home and End go to the first and last page, Escape closes")
      box.dataset.keys = ""
      const help = document.createElement("span")
      help.className = "soft"
      for (const [key, word] of [["← ↑ ↓ →", "cell"], ["Enter", "open"], ["Page Up/Down", "page"],
                                 ["Home/End", "first/last"]]) {
        const cap = document.createElement("kbd")
        cap.textContent = key
        help.append(cap, " " + word + "  ")
      }
      const words = document.createElement("span")
      words.setAttribute("aria-live", "polite")
      words.dataset.cursor = ""
      const say = () => { words.textContent = model.words }
      say()
      model.on("words", say)
      box.append(help, words)
      box.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey || !model.taken.includes(event.key)) return
        event.preventDefault()
        model.send_msg({ key: event.key })
      })
      return box
    }
    """
    _stylesheets: ClassVar[list[str]] = [
        STYLES,
        """
        .keys { display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 5px 10px; font-size: 12.5px;
                border: 1px solid var(--line); border-radius: 6px; min-height: 32px; align-items: center; }
        .keys:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
        kbd { font: inherit; font-size: 11.5px; border: 1px solid var(--line); border-radius: 4px;
              padding: 0 5px; white-space: nowrap; }
        .keys span { white-space: pre-wrap; }
        """,
    ]

    def on_key(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the name of a key of `KEYS`."""
        self.on_msg(lambda event: _hand_on(event, "key", callback))


class GridTable(JSComponent):
    """The table twin, behind a line that opens it. Its figures are buttons; nothing is sent while closed."""

    html = param.String(default="")
    open = param.Boolean(default=False)

    _esm = (
        MORPH
        + """
    export function render({ model }) {
      const details = document.createElement("details")
      details.className = "small"
      const summary = document.createElement("summary")
      summary.className = "soft"
      summary.textContent = "This page as a table"
      const body = document.createElement("div")
      body.className = "scroll"
      const fill = () => morph(body, model.html)
      details.open = model.open
      details.append(summary, body)
      details.addEventListener("toggle", () => { model.open = details.open })
      body.addEventListener("click", (event) => {
        const button = event.target.closest("button[data-open]")
        if (button) model.send_msg({ open: button.dataset.open })
      })
      fill()
      model.on("html", fill)
      return details
    }
    """
    )
    _stylesheets: ClassVar[list[str]] = [
        STYLES,
        """
        summary { cursor: pointer; padding: 4px 0; }
        td, th { padding: 3px 8px; }
        button { all: unset; cursor: pointer; padding: 1px 4px; border-radius: 4px; color: var(--accent); }
        button:hover { text-decoration: underline; }
        button:focus-visible { outline: 2px solid var(--accent); }
        caption { text-align: left; padding: 4px 0; }
        """,
    ]

    def on_open(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with what stands in the button's data-open."""
        self.on_msg(lambda event: _hand_on(event, "open", callback))

    def show(self, markup: Markup) -> None:  # type: ignore[override]
        """Show that table; a string that is no Markup is refused."""
        assert isinstance(markup, Markup)
        if self.open and self.html != str(markup):
            self.html = str(markup)


def _hand_on(event: Any, key: str, callback: Callable[[str], None]) -> None:
    """Pass on what a browser sent, when it is what was agreed on."""
    data = getattr(event, "data", event)
    if isinstance(data, dict) and isinstance(data.get(key), str):
        callback(data[key])
