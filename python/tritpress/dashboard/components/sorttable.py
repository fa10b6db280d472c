"""A table that is sorted by its headings and whose rows can be chosen; the server sorts and turns pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import param
from panel.custom import JSComponent

from tritpress.dashboard.components.html import MORPH
from tritpress.dashboard.components.soon import soon
from tritpress.dashboard.theme import STYLES

STYLE = """
table { font-size: 13px; }
th, td { padding: 5px 12px; white-space: nowrap; }
th.left, td.left { text-align: left; }
td.wide, th.wide { white-space: normal; overflow-wrap: anywhere; min-width: 220px; }
button { all: unset; cursor: pointer; font: inherit; color: inherit; }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 2px; }
thead button:hover, tbody button:hover { text-decoration: underline; }
th[aria-sort="ascending"] button, th[aria-sort="descending"] button { color: var(--ink); font-weight: 600; }
tbody button { color: var(--accent); overflow-wrap: anywhere; }
tbody tr { cursor: pointer; }
tbody tr:hover { background: color-mix(in srgb, var(--ink) 5%, transparent); }
tbody tr[aria-selected="true"] { background: color-mix(in srgb, var(--accent) 14%, transparent); }
"""


class SortTable(JSComponent):
    """`columns`: [key, title, class] each; `rows`: [key, cell, ..] each, all text.

    A click on a heading gives `clicked` = {"sort": column}, one on a row {"row": key}; both also by keyboard.
    """

    columns = param.List()
    rows = param.List()
    sort = param.String()
    descending = param.Boolean()
    selected = param.String()
    caption = param.String()

    _stylesheets = [STYLES, STYLE]  # noqa: RUF012  (panel's own interface)

    _esm = (
        MORPH
        + """
    export function render({ model }) {
      const box = document.createElement("div")
      box.className = "scroll"
      const table = document.createElement("table")
      table.setAttribute("data-sorttable", "")
      box.append(table)
      const make = (name, text, kind) => {
        const made = document.createElement(name)
        if (text !== undefined) made.textContent = text
        if (kind) made.className = kind
        return made
      }
      const draw = () => {
        const wanted = make("table"), caption = make("caption", model.caption, "visually-hidden")
        const head = make("tr")
        for (const [key, title, kind] of model.columns) {
          const cell = make("th", undefined, kind)
          cell.scope = "col"
          const active = key === model.sort
          cell.setAttribute("aria-sort", active ? (model.descending ? "descending" : "ascending") : "none")
          const button = make("button", title + (active ? (model.descending ? " ▼" : " ▲") : ""))
          button.setAttribute("data-sort", key)
          cell.append(button)
          head.append(cell)
        }
        const thead = make("thead"), tbody = make("tbody")
        thead.append(head)
        for (const [key, ...cells] of model.rows) {
          const row = make("tr")
          row.setAttribute("data-row", key)
          row.setAttribute("data-key", key)
          row.setAttribute("aria-selected", String(key === model.selected))
          cells.forEach((text, at) => {
            const kind = (model.columns[at] || [])[2]
            if (at === 0) {
              const cell = make("th", undefined, kind)
              cell.scope = "row"
              cell.append(make("button", text))
              row.append(cell)
            } else row.append(make("td", text, kind))
          })
          tbody.append(row)
        }
        wanted.append(caption, thead, tbody)
        morph(table, wanted)
      }
      table.addEventListener("click", (event) => {
        const head = event.target.closest("[data-sort]"), row = event.target.closest("[data-row]")
        if (head) model.send_msg({ sort: head.getAttribute("data-sort") })
        else if (row) model.send_msg({ row: row.getAttribute("data-row") })
      })
      for (const name of ["columns", "rows", "sort", "descending", "selected"]) model.on(name, draw)
      draw()
      return box
    }
    """
    )

    def __init__(
        self,
        columns: Sequence[tuple[str, str, str]],
        caption: str,
        on_sort: Callable[[str], None],
        on_row: Callable[[str], None],
    ) -> None:
        super().__init__(
            columns=[list(column) for column in columns],
            caption=caption,
            sizing_mode="stretch_width",
            margin=0,
        )
        self._on_sort, self._on_row = on_sort, on_row

    def _handle_msg(self, data: Any) -> None:
        if not isinstance(data, dict):
            return
        if isinstance(data.get("sort"), str):
            soon(partial(self._on_sort, data["sort"]))
        elif isinstance(data.get("row"), str):
            soon(partial(self._on_row, data["row"]))

    def show(  # type: ignore[override]
        self, rows: Sequence[tuple[str, Sequence[str]]], sort: str, descending: bool, chosen: str
    ) -> None:
        """Show these rows: (key, cells) each."""
        new = {
            "rows": [[key, *cells] for key, cells in rows],
            "sort": sort,
            "descending": descending,
            "selected": chosen,
        }
        changed = {key: value for key, value in new.items() if getattr(self, key) != value}
        if changed:
            self.param.update(**changed)
