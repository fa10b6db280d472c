"""Tells the server whether anyone sees the page, and keeps the sidebar open where there is room beside it."""

from __future__ import annotations

import param
from panel.custom import JSComponent

from tritpress.dashboard.theme import BREAKPOINTS


class Viewport(JSComponent):
    """Invisible. `visible` is false while the browser tab is hidden; such a page is not kept up to date."""

    visible = param.Boolean(default=True)
    limit = param.Integer(default=BREAKPOINTS["sm"])

    # The page's own model is set here and not by the server: what a server sends while a page still loads is
    # lost, and the drawer would cover a narrow page until someone closes it.
    _esm = """
    export function render({ model, view }) {
      let wide = true
      const seen = () => { model.visible = document.visibilityState !== "hidden" }
      const sized = () => {
        const now = window.innerWidth >= model.limit
        if (now === wide) return
        wide = now
        for (const root of view.model.document.roots()) {
          if (root.data && root.data.sidebar_open !== undefined) root.data.sidebar_open = now
        }
      }
      document.addEventListener("visibilitychange", seen)
      window.addEventListener("resize", sized)
      model.on("remove", () => {
        document.removeEventListener("visibilitychange", seen)
        window.removeEventListener("resize", sized)
      })
      seen()
      setTimeout(sized, 0)
      const mark = document.createElement("span")
      mark.hidden = true
      return mark
    }
    """

    def __init__(self, **params: object) -> None:
        super().__init__(width=0, height=0, margin=0, **params)
