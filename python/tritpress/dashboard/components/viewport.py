"""Tells the server whether anyone sees the page, and whether there is room for the sidebar beside it."""

from __future__ import annotations

import param
from panel.custom import JSComponent

from tritpress.dashboard.theme import BREAKPOINTS


class Viewport(JSComponent):
    """Invisible. `visible` is false while the browser tab is hidden; such a page is not kept up to date."""

    visible = param.Boolean(default=True)
    wide = param.Boolean(default=True)
    limit = param.Integer(default=BREAKPOINTS["sm"])

    _esm = """
    export function render({ model }) {
      const seen = () => { model.visible = document.visibilityState !== "hidden" }
      const sized = () => { model.wide = window.innerWidth >= model.limit }
      document.addEventListener("visibilitychange", seen)
      window.addEventListener("resize", sized)
      model.on("remove", () => {
        document.removeEventListener("visibilitychange", seen)
        window.removeEventListener("resize", sized)
      })
      seen()
      sized()
      const mark = document.createElement("span")
      mark.hidden = true
      return mark
    }
    """

    def __init__(self, **params: object) -> None:
        super().__init__(width=0, height=0, margin=0, **params)
