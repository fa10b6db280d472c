"""The table of runs: links, boxes to choose several, and a button for each thing that can be done to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import param
from panel.custom import JSComponent

from tritpress.dashboard.components.html import MORPH
from tritpress.dashboard.theme import STYLES

ESM = """
const el = (name, props, ...children) => {
  const made = Object.assign(document.createElement(name), props)
  for (const child of children) if (child !== null && child !== undefined) made.append(child)
  return made
}

const HEADS = {
  runs: ["Run", "State", "Model", "Ratio", "Perplexity", "Gates", "Started", ""],
  trash: ["Run", "State", "Model", "Ratio", "Perplexity", "Gates", "Deleted", ""],
}
const LEFT = new Set(["State", "Model"])

export function render({ model }) {
  const body = el("tbody")
  const all = el("input", { type: "checkbox" })
  all.setAttribute("aria-label", "Choose all runs of this page")
  const head = el("tr")
  if (model.kind === "runs") head.append(el("th", { className: "box" }, all))
  for (const title of HEADS[model.kind]) {
    const className = `${LEFT.has(title) ? "left" : ""} ${title.toLowerCase()}`
    head.append(title ? el("th", { className }, title)
                      : el("th", {}, el("span", { className: "visually-hidden" }, "Actions")))
  }
  const table = el("table", { className: "runs" }, el("thead", {}, head), body)
  const holder = el("div", { className: "scroll" }, table)
  let shown = new Map()  // id -> { text, row }

  const pick = (id, on) => {
    const rest = model.picked.filter((other) => other !== id)
    model.picked = on ? [...rest, id] : rest
  }
  all.addEventListener("change", () => {
    const here = model.rows.map((row) => row.id)
    const others = model.picked.filter((id) => !here.includes(id))
    model.picked = all.checked ? [...others, ...here] : others
  })

  const action = (row, what, text, refused) => {
    const made = el("button", { type: "button", className: "act", textContent: text })
    made.dataset.act = what
    made.setAttribute("aria-label", `${text} ${row.name}`)
    const why = model.why_not || refused
    made.disabled = Boolean(why)
    if (why) made.title = why
    made.addEventListener("click", () => model.send_msg({ act: what, id: row.id }))
    return made
  }

  const line = (row) => {
    const made = el("tr")
    made.dataset.run = row.id
    if (model.kind === "runs") {
      const box = el("input", { type: "checkbox", checked: model.picked.includes(row.id) })
      box.setAttribute("aria-label", `Choose ${row.name}`)
      box.addEventListener("change", () => pick(row.id, box.checked))
      made.append(el("td", { className: "box" }, box))
    }
    const name = el("td", { className: "name" })
    if (model.kind === "runs") {
      const link = el("a", { href: `?run=${encodeURIComponent(row.id)}`, textContent: row.name })
      link.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return
        event.preventDefault()
        model.send_msg({ act: "open", id: row.id })
      })
      name.append(link)
    } else name.append(el("b", {}, row.name))
    for (const tag of row.tags) name.append(" ", el("span", { className: "tag" }, tag))
    const also = el("div", { className: "also soft small" })
    for (const [key, before] of [["model", ""], ["perplexity", "Perplexity "], ["gates", "Gates: "]])
      if (row[key] !== "–") also.append(el("span", { className: `also-${key}` }, before + row[key]))
    name.append(also)
    if (row.note) name.append(el("div", { className: "note-line soft small", title: row.note }, row.note))
    made.append(
      name,
      el("td", { className: "left state" },
        el("span", { className: row.tone }, `${row.mark} ${row.label}`),
        row.detail ? el("div", { className: "soft small" }, row.detail) : null),
      el("td", { className: "left model" }, row.model),
      el("td", {}, row.ratio, el("div", { className: "soft small" }, row.bits)),
      el("td", { className: "perplexity" }, row.perplexity),
      el("td", { className: "gates" }, row.gates),
      el("td", {}, row.when, el("div", { className: "soft small" }, row.length)),
    )
    const actions = el("td", { className: "actions" })
    if (model.kind === "runs") {
      actions.append(action(row, "edit", "Edit", ""))
      actions.append(action(row, "delete", "Delete", row.live ? "It is at work: stop it first" : ""))
    } else actions.append(action(row, "restore", "Restore", ""))
    made.append(actions)
    return made
  }

  const draw = () => {
    const next = new Map()
    for (const row of model.rows) {
      const text = JSON.stringify([row, model.why_not])
      const old = shown.get(row.id)
      if (old && old.text !== text) morph(old.row, line(row))  // handlers know a row by its id alone
      next.set(row.id, { text, row: old ? old.row : line(row) })
    }
    keeping_focus(body, () => {
      for (const [id, entry] of shown) if (!next.has(id)) entry.row.remove()
      let place = body.firstChild
      for (const { row } of next.values()) {
        if (row === place) place = place.nextSibling
        else body.insertBefore(row, place)
      }
    })
    shown = next
    mark()
  }
  const mark = () => {
    for (const [id, entry] of shown) {
      const box = entry.row.querySelector("input")
      if (box) box.checked = model.picked.includes(id)
    }
    const here = model.rows.filter((row) => model.picked.includes(row.id)).length
    all.checked = here > 0 && here === model.rows.length
    all.indeterminate = here > 0 && here < model.rows.length
  }
  model.on("rows", draw)
  model.on("why_not", draw)
  model.on("picked", mark)
  draw()
  return holder
}
"""

CSS = """
.runs td { vertical-align: top; }
.runs td, .runs th { padding-left: 8px; padding-right: 8px; }
.runs td.name { white-space: normal; min-width: 150px; width: 34%; overflow-wrap: anywhere; }
.runs td.model { white-space: normal; overflow-wrap: anywhere; min-width: 90px; max-width: 180px; }
.runs td.gates, .runs th.gates { display: table-cell; border-left: 0; border-radius: 0; }
.runs .box { width: 28px; padding-left: 2px; text-align: left; }
.runs .box + th, .runs .box + td { text-align: left; }
.runs tbody tr:hover { background: color-mix(in srgb, var(--ink) 4%, transparent); }
.runs td.state { white-space: normal; min-width: 180px; max-width: 260px; }
.runs input { accent-color: var(--accent); width: 16px; height: 16px; margin: 2px 0 0; }
.tag {
  border: 1px solid var(--line); border-radius: 999px; padding: 0 8px; font-size: 12px; white-space: nowrap;
}
.note-line { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; width: 0; min-width: 100%; }
.runs td.actions { padding-right: 0; }
@media (max-width: 1200px) {
  .runs td.actions { white-space: normal; width: 76px; }
  .act { margin: 0 0 4px; width: 66px; }
}
.also span { display: none; }
.also span + span::before { content: " · "; }
@media (max-width: 820px) {
  .runs .model { display: none; }
  .also .also-model { display: inline; }
}
@media (max-width: 620px) {
  .runs td.gates, .runs th.gates, .runs .perplexity { display: none; }
  .also .also-gates, .also .also-perplexity { display: inline; }
}
.act {
  font: inherit; font-size: 12.5px; color: var(--accent); background: none; cursor: pointer;
  border: 1px solid var(--line); border-radius: 6px; padding: 2px 8px; margin-left: 6px;
}
.act:hover:not(:disabled), .act:focus-visible { border-color: currentColor; }
.act:disabled { color: var(--soft); cursor: not-allowed; opacity: .6; }
"""


class RunTable(JSComponent):
    """Shows `rows` (see `views.runs.RunRow`); `picked` are the ids whose boxes are ticked, in that order.

    `kind` is runs or trash. `why_not`, when not empty, switches every action off and is its explanation.
    """

    kind: Any = param.Selector(default="runs", objects=["runs", "trash"])
    rows = param.List(default=[])
    picked = param.List(default=[])
    why_not = param.String(default="")

    _esm = MORPH + ESM

    def __init__(self, act: Callable[[str, str], None], **params: Any) -> None:
        self._act = act
        super().__init__(sizing_mode="stretch_width", margin=0, stylesheets=[STYLES, CSS], **params)

    def _handle_msg(self, msg: Any) -> None:
        if isinstance(msg, dict) and isinstance(msg.get("id"), str) and isinstance(msg.get("act"), str):
            self._act(msg["act"], msg["id"])
