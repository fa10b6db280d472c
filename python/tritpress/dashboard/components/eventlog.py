"""The list of events of a run; lines that are on the page already are left alone when new ones come."""

from __future__ import annotations

import json
from typing import Any

import param
from panel.custom import JSComponent

from tritpress.dashboard.components.export import csv_tools
from tritpress.dashboard.theme import STYLES

CSS = """
.table-tools { margin: 0 0 4px; }
ol { list-style: none; margin: 0; padding: 0; max-height: 340px; overflow-y: auto; }
ol:focus-visible { outline: 2px solid var(--accent); }
li {
  display: grid; grid-template-columns: 72px 92px minmax(0, 1fr); gap: 0 10px; padding: 4px 0;
  border-top: 1px solid var(--line); font-size: 12.5px; overflow-wrap: anywhere;
}
li:first-child { border-top: 0; }
li .day:not(:empty) { display: block; font-weight: 600; }
@media (max-width: 560px) { li { grid-template-columns: 72px minmax(0, 1fr); } li .kind { display: none; } }
"""


class EventLog(JSComponent):
    """Shows `lines`, newest first (see `views.events.event_lines`), given as JSON: a list of hundreds of
    dictionaries would be searched through for models at every change.
    """

    lines = param.String(default="[]")

    _esm = """
    export function render({ model }) {
      const list = document.createElement("ol")
      list.tabIndex = 0
      list.setAttribute("aria-label", "Events, newest first")
      list.dataset.line = JSON.stringify(["Time", "About", "Level", "Event"])
      const box = document.createElement("div")
      box.innerHTML = CSV_TOOLS
      box.append(list)
      let shown = new Map()
      const part = (name, text) => {
        const made = document.createElement("span")
        made.className = name
        made.textContent = text
        return made
      }
      const draw = () => {
        const next = new Map()
        for (const line of JSON.parse(model.lines)) {
          let row = shown.get(line.key)
          if (!row) {
            row = document.createElement("li")
            row.dataset.level = line.level
            row.dataset.line = JSON.stringify([line.at, line.kind, line.level, line.text])
            const when = part("soft", "")
            when.append(part("day", ""), line.time)
            row.append(when, part("soft kind", line.kind),
                       part(line.tone, line.mark ? `${line.mark} ${line.text}` : line.text))
          }
          // Whether the day is said depends on the line above, which another search changes.
          const day = row.querySelector(".day")
          if (day.textContent !== line.day) day.textContent = line.day
          next.set(line.key, row)
        }
        for (const [key, row] of shown) if (!next.has(key)) row.remove()
        let place = list.firstChild
        for (const row of next.values()) {
          if (row === place) place = place.nextSibling
          else list.insertBefore(row, place)
        }
        shown = next
      }
      model.on("lines", draw)
      draw()
      return box
    }
    """.replace("CSV_TOOLS", json.dumps(csv_tools("events")))

    def __init__(self, **params: Any) -> None:
        super().__init__(sizing_mode="stretch_width", margin=0, stylesheets=[STYLES, CSS], **params)

    def show(self, lines: list[dict[str, Any]]) -> None:  # type: ignore[override]
        """Show those lines."""
        text = json.dumps(lines)
        if text != self.lines:
            self.lines = text
