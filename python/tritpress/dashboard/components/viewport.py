"""What a page takes from its browser: whether anyone sees it, what it has drawn, room for the sidebar, light
or dark. What it gives it: the name of its tab."""

from __future__ import annotations

import param
from panel.custom import JSComponent

from tritpress.dashboard.appearance import FUNCTIONS
from tritpress.dashboard.theme import BREAKPOINTS
from tritpress.dashboard.views.title import PLAIN


class Viewport(JSComponent):
    """Invisible. `visible` is false while the browser tab is hidden; such a page is not kept up to date.
    `drawn` follows `asked` once all that came before it is drawn."""

    visible = param.Boolean(default=True)
    limit = param.Integer(default=BREAKPOINTS["sm"])
    tab_title = param.String(default=PLAIN)
    asked = param.Integer(default=0)
    drawn = param.Integer(default=0)

    # The page's own model is set here and not by the server: what a server sends while a page still loads is
    # lost, and the drawer would cover a narrow page until someone closes it.
    _esm = (
        FUNCTIONS
        + """
    export function render({ model, view }) {
      let wide = true
      const pages = view.model.document.roots().filter((root) => root.data?.dark_theme !== undefined)
      const system = window.matchMedia("(prefers-color-scheme: dark)")
      let own = false
      const dress = () => {
        own = true
        for (const page of pages) page.data.dark_theme = darkKept() ?? systemIsDark()
        own = false
        tellServer(darkKept() ?? systemIsDark())
      }
      const switched = (dark) => {
        if (own) return
        try {
          if (dark === systemIsDark()) localStorage.removeItem(APPEARANCE)  // from now on the system's again
          else localStorage.setItem(APPEARANCE, dark ? "dark" : "light")
        } catch { /* a browser that keeps nothing: the cookie does */ }
        tellServer(dark)
      }
      const off = pages.map((page) => {
        const slot = () => switched(page.data.dark_theme)
        page.data.properties.dark_theme.change.connect(slot)
        return () => page.data.properties.dark_theme.change.disconnect(slot)
      })
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
      system.addEventListener("change", dress)
      model.on("remove", () => {
        system.removeEventListener("change", dress)
        for (const each of off) each()
        document.removeEventListener("visibilitychange", seen)
        window.removeEventListener("resize", sized)
      })
      model.on("asked", () => {
        const number = model.asked
        const answer = () => { model.drawn = number }
        // Bokeh draws in the next frame; what is posted there comes after it. A hidden page has no frames.
        if (document.visibilityState === "hidden") answer()
        else requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(answer, 0)))
      })
      const entitle = () => { document.title = model.tab_title }
      model.on("tab_title", entitle)
      entitle()
      seen()
      setTimeout(sized, 0)
      const mark = document.createElement("span")
      mark.hidden = true
      return mark
    }
    """
    )

    def __init__(self, **params: object) -> None:
        super().__init__(width=0, height=0, margin=0, **params)
