"""Text that is there to be taken away: shown as code, copied by a button, on plain http too."""

from __future__ import annotations

from typing import Any

import param
from panel.custom import JSComponent

from tritpress.dashboard.components.export import FILES
from tritpress.dashboard.theme import STYLES

CSS = """
.top { display: flex; justify-content: space-between; align-items: center; gap: 8px; }
.copy {
  font: inherit; font-size: 12.5px; color: var(--accent); background: none; cursor: pointer;
  border: 1px solid var(--line); border-radius: 6px; padding: 1px 8px;
}
.copy:hover, .copy:focus-visible { border-color: currentColor; }
pre.code { margin: 4px 0 0; }
"""


class CopyBox(JSComponent):
    """`text` under `title`; the button beside the title puts it on the clipboard and says so."""

    title = param.String(default="")
    text = param.String(default="")

    _esm = (
        FILES
        + """
    export function render({ model }) {
      const title = document.createElement("span"), button = document.createElement("button")
      const top = document.createElement("div"), code = document.createElement("pre")
      const holder = document.createElement("div")
      top.className = "top"
      title.className = "soft small"
      button.className = "copy"
      button.type = "button"
      button.textContent = "Copy"
      button.setAttribute("aria-live", "polite")
      code.className = "code mono"
      code.tabIndex = 0
      top.append(title, button)
      holder.append(top, code)
      let timer = 0
      button.addEventListener("click", async () => {
        const done = await copied(model.text)
        button.textContent = done ? "Copied" : "Select and copy it by hand"
        clearTimeout(timer)
        timer = setTimeout(() => { button.textContent = "Copy" }, 2000)
      })
      const draw = () => {
        title.textContent = model.title
        code.textContent = model.text
        code.setAttribute("aria-label", model.title)
        button.setAttribute("aria-label", `Copy: ${model.title}`)
      }
      model.on("text", draw)
      model.on("title", draw)
      draw()
      return holder
    }
    """
    )

    def __init__(self, **params: Any) -> None:
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(stylesheets=[STYLES, CSS], **params)
