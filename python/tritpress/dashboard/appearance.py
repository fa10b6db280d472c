"""Light or dark: the system's choice, until the switch of the page is used; the browser remembers that.

The server must know before it makes a page, or the page would be made light and change before one's eyes.
So a few lines ahead of everything else compare what is wanted with what a cookie told the server, and load
the page once more where they differ (the first visit of a dark system).
"""

from __future__ import annotations

import panel as pn

COOKIE = "tritpress-appearance"
"""`dark` or `light`; holds no more than that, and the same name is the choice's in the browser's storage."""

FUNCTIONS = f"""
const APPEARANCE = "{COOKIE}"
const systemIsDark = () => window.matchMedia("(prefers-color-scheme: dark)").matches
const darkKept = () => {{
  try {{ const kept = localStorage.getItem(APPEARANCE); return kept === null ? null : kept === "dark" }}
  catch {{ return null }}
}}
const tellServer = (dark) => {{
  document.cookie = `${{APPEARANCE}}=${{dark ? "dark" : "light"}}; path=/; max-age=31536000; SameSite=Lax`
}}
"""
"""JavaScript that the head of the page and `Viewport` share."""

HEAD = f"""<meta name="color-scheme" content="light dark">
<style>@media (prefers-color-scheme: dark) {{ :root:not(.light) {{ background: #161f25 }} }}</style>
<script>(() => {{{FUNCTIONS}
  const told = () => document.cookie.includes(`${{APPEARANCE}}=dark`)
  const dark = darkKept() ?? systemIsDark()
  if (told() === dark) return
  tellServer(dark)
  if (told() === dark) location.reload()
}})()</script>"""

TEMPLATE = '{% extends "base.html" %}{% block preamble %}{{ super() }}' + HEAD + "{% endblock %}"


def wants_dark() -> bool:
    """Whether the page that is being made is to be dark."""
    return pn.state.curdoc is not None and pn.state.cookies.get(COOKIE) == "dark"
