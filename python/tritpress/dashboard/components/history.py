"""Back and forward in the browser reach the server: panel's own Location listens to the hash alone."""

from __future__ import annotations

from panel.custom import JSComponent


class History(JSComponent):
    """Invisible, once a page: after back or forward the page's Location says what the address bar says."""

    # Setting the model would push the address once more, and what lies ahead of it would be forgotten.
    _esm = """
    export function render({ model, view }) {
      const moved = () => {
        const here = window.location.search
        for (const part of view.model.document._all_models.values()) {
          if (!part.type.endsWith("location.Location") || part.search === here) continue
          const own = Object.getOwnPropertyDescriptor(window.history, "pushState")
          Object.defineProperty(window.history, "pushState", { configurable: true, value: () => {} })
          try {
            part.search = here
          } finally {
            if (own) Object.defineProperty(window.history, "pushState", own)
            else delete window.history.pushState
          }
        }
      }
      window.addEventListener("popstate", moved)
      model.on("remove", () => window.removeEventListener("popstate", moved))
      const mark = document.createElement("span")
      mark.hidden = true
      return mark
    }
    """

    def __init__(self, **params: object) -> None:
        super().__init__(width=0, height=0, margin=0, **params)
