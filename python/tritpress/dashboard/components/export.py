"""Saving what the page shows: a menu on every chart (PNG, SVG, CSV), CSV of tables, downloads, a zip.

All of it happens in the browser with what it already has; only reports and drawings come from the server,
over the page's own connection. `export_charts.js` finds the charts by itself: those made by `charts.figure`
have a `name`, which their files are called by.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from tritpress.dashboard.components.html import Markup
from tritpress.dashboard.theme import STYLES

CSV = "text/csv;charset=utf-8"

HERE = Path(__file__).parent
FILES = (HERE / "export_files.js").read_text(encoding="utf-8")
CHARTS = (HERE / "export_charts.js").read_text(encoding="utf-8")


class ChartExport(JSComponent):
    """Invisible, once a page: gives every chart its menu and lets `csv_button`s work."""

    _esm = f"{FILES}\n{CHARTS}"

    def __init__(self, **params: object) -> None:
        super().__init__(width=0, height=0, margin=0, **params)


def csv_button(name: str) -> Markup:
    """A button that saves the table in whose box it stands, as RUN-NAME.csv."""
    return Markup(
        '<button type="button" class="csv" data-csv="{}" data-no-csv title="Save this table as CSV">CSV'
        '<span class="visually-hidden"> of this table</span></button>'
    ).format(name)


def csv_tools(name: str) -> Markup:
    """A line with that button alone, for the place above a table that has no heading of its own."""
    return Markup('<div class="table-tools" data-no-csv>{}</div>').format(csv_button(name))


def copy_button(text: str, what: str) -> Markup:
    """A button that puts `text` on the clipboard; `what` names it for who does not see where it stands."""
    return Markup(
        '<button type="button" class="csv" data-copy="{}" data-no-csv aria-label="Copy: {}">Copy</button>'
    ).format(text, what)


def command_block(command: str) -> Markup:
    """A command line in a frame, with a button that copies it."""
    return Markup(
        '<div class="command"><code class="mono break">{}</code>'
        '<button type="button" class="copy" data-copy="{}">Copy</button></div>'
    ).format(command, command)


class Downloads(JSComponent):
    """Buttons that fetch a file from the server: `items` are [key, title, why not] each.

    `make(key)` is called for the one that was asked for; it answers by `send_file`, `send_bundle` or `fail`.
    """

    items = param.List()

    _stylesheets: ClassVar[list[str]] = [
        STYLES,
        """
        .downloads { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
        button { font: inherit; font-size: 13.5px; padding: 6px 14px; border-radius: 6px; cursor: pointer;
          color: var(--accent); background: transparent;
          border: 1px solid color-mix(in srgb, var(--accent) 55%, transparent); }
        button:hover:not(:disabled) { background: color-mix(in srgb, var(--accent) 12%, transparent); }
        button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
        button:disabled { cursor: default; color: var(--soft); border-color: var(--line); }
        .said { font-size: 12.5px; color: var(--soft); }
        """,
    ]

    _esm = (
        FILES
        + """
    export function render({ model }) {
      const box = document.createElement("div")
      box.className = "downloads"
      const said = document.createElement("span")
      said.className = "said"
      said.setAttribute("role", "status")
      const buttons = document.createElement("span")
      buttons.className = "downloads"
      let busy = "", told = false  // told: the words are about a file that was asked for
      const draw = () => {
        const root = box.getRootNode(), held = root.activeElement && root.activeElement.dataset.download
        buttons.replaceChildren(...model.items.map(([key, title, why]) => {
          const button = document.createElement("button")
          button.type = "button"
          button.textContent = title
          button.dataset.download = key
          button.disabled = Boolean(why) || busy === key
          if (why) button.title = why
          button.addEventListener("click", () => {
            busy = key
            told = true
            said.textContent = "Making the file …"
            draw()
            model.send_msg({ get: key })
          })
          return button
        }))
        if (!busy && !told) said.textContent = model.items.map(([, , why]) => why).filter(Boolean).join(" ")
        if (held) for (const button of buttons.children) if (button.dataset.download === held) button.focus()
      }
      const done = (words) => { busy = ""; said.textContent = words; draw() }
      model.on("msg:custom", async (message) => {
        const data = message && message.data !== undefined && message.files === undefined
          && message.text === undefined && message.error === undefined ? message.data : message
        try {
          if (data.error !== undefined) return done(data.error)
          if (data.text !== undefined) {
            save(data.name, data.text, data.type)
            return done(`Saved ${data.name}`)
          }
          const files = data.files.slice()
          for (const [path, svg] of data.drawings) {
            files.push([`${path}.svg`, svg], [`${path}.png`, await picture_of(svg)])
          }
          save(`${data.name}.zip`, await zip(files))
          done(`Saved ${data.name}.zip: ${files.length} files`)
        } catch (error) {
          console.error(error)
          done("The file could not be made in this browser.")
        }
      })
      model.on("items", draw)
      draw()
      box.append(buttons, said)
      return box
    }
    """
    )

    def __init__(self, make: Callable[[str], None], **params: object) -> None:
        super().__init__(**{"sizing_mode": "stretch_width", "margin": 0, **params})
        self._make = make

    def _handle_msg(self, data: Any) -> None:
        if not isinstance(data, dict) or not isinstance(data.get("get"), str):
            return
        known = {key: why for key, _, why in self.items}
        if known.get(data["get"], "no such file") == "":
            self._make(data["get"])
        else:
            self.fail(known.get(data["get"]) or "There is no such file.")

    def show(self, items: list[list[str]]) -> None:  # type: ignore[override]
        """Offer these: key, title, why it cannot be had ("" when it can)."""
        if self.items != items:
            self.items = items

    def send_file(self, name: str, text: str, kind: str) -> None:
        """Let the browser save that text."""
        self._send_msg({"name": name, "text": text, "type": kind})

    def send_bundle(self, name: str, files: list[tuple[str, str]], drawings: list[tuple[str, str]]) -> None:
        """Let the browser save a zip of `files` (path, text) and `drawings` (path without ending, SVG)."""
        sent = {"files": [list(f) for f in files], "drawings": [list(d) for d in drawings]}
        self._send_msg({"name": name, **sent})

    def fail(self, words: str) -> None:
        """Say why there is no file."""
        self._send_msg({"error": words})
