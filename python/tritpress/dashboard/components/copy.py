"""Copying with one click: any element with `data-copy="TEXT"` in a fragment, one listener for the page."""

from __future__ import annotations

from panel.custom import JSComponent

from tritpress.dashboard.components.html import Markup


class Copier(JSComponent):
    """Invisible; every page needs one, more do no harm."""

    _esm = """
    export function render({ model }) {
      const mark = document.createElement("span")
      mark.hidden = true
      if (window.tritpressCopier) return mark
      window.tritpressCopier = true
      const old = (text) => {  // pages over plain http have no clipboard object
        const area = document.createElement("textarea")
        area.value = text
        area.style.position = "fixed"
        document.body.append(area)
        area.select()
        const done = document.execCommand("copy")
        area.remove()
        return done ? Promise.resolve() : Promise.reject()
      }
      document.addEventListener("click", (event) => {
        const button = event.composedPath().find((node) => node.dataset && node.dataset.copy !== undefined)
        if (!button) return
        const text = button.dataset.copy, before = button.textContent
        const copied = navigator.clipboard ? navigator.clipboard.writeText(text) : old(text)
        const say = (word) => {
          if (button.dataset.saying) return
          button.dataset.saying = "1"
          button.textContent = word
          setTimeout(() => { button.textContent = before; delete button.dataset.saying }, 1500)
        }
        copied.catch(() => old(text)).then(() => say("Copied"), () => say("Select and copy"))
      })
      return mark
    }
    """

    def __init__(self, **params: object) -> None:
        super().__init__(width=0, height=0, margin=0, **params)


def copy_button(text: str, what: str = "Copy") -> Markup:
    """A button that copies `text`."""
    return Markup('<button type="button" class="copy" data-copy="{}">{}</button>').format(text, what)


def command_block(command: str) -> Markup:
    """A command line in a frame, with a button that copies it."""
    return Markup('<div class="command"><code class="mono break">{}</code>{}</div>').format(
        command, copy_button(command)
    )
