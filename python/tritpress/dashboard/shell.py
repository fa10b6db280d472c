"""What a reader sees while a page opens: the run's state and figures, written by the server at once.

It lies over the page that is being built, has its measures, and is taken away when that one stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, Template
from panel.io.resources import LOCAL_DIST

from tritpress.dashboard.components.html import MORPH, Markup, join
from tritpress.dashboard.components.statusbar import status_bar
from tritpress.dashboard.tabs.base import shown_of
from tritpress.dashboard.tabs.overview import still
from tritpress.dashboard.theme import APP_BAR, BREAKPOINTS, FONT, STYLES, THEME
from tritpress.dashboard.views import figures as fig

if TYPE_CHECKING:
    from tritpress.dashboard.store import Feed

FIRST_RUNS = 30
"""So many runs stand in the list that is seen while the start page opens."""

ATTRIBUTES = re.compile(r' data-([a-z-]+)(?=="|>)')

TEMPLATE = Path(__file__).parent / "opening.html"

STYLE = """
:host { position: fixed; inset: 0; overflow: hidden; background: var(--panel-surface-color);
  --bokeh-base-font: FONT; COLOURS }
header { height: 56px; background: BAR; color: #fff; display: flex; align-items: center; padding: 0 68px;
  font-size: 20px; font-weight: 500; }
.columns { display: flex; height: calc(100% - 56px); }
aside { width: 320px; flex: none; border-right: 1px solid var(--line);
  background: var(--panel-surface-color); }
@media (max-width: WIDEpx) { aside { display: none; } }
main { flex: 1 1 0; min-width: 0; padding: 16px 20px; overflow: hidden; display: grid; gap: 14px;
  align-content: start; }
.top { display: flex; flex-wrap: wrap; gap: 10px 18px; align-items: center; }
.field { flex: 0 1 300px; height: 40px; border: 1px solid var(--line); border-radius: 6px; }
.row { height: 44px; margin: -6px -8px 2px; border-bottom: 1px solid var(--line); }
"""


def shell(feed: Feed | None, tab: str, runs: Sequence[Mapping[str, Any]] = (), dark: bool = False) -> Markup:
    """The page as far as the server can write it: `feed` on the overview, or what heads its other tabs;
    without one the first of `runs`.
    """
    if feed is not None:
        head, body = status_bar(feed), still(shown_of(feed)) if tab == "overview" else Markup("")
    else:
        head, body = Markup(""), _list(runs)
    body = Markup('<div class="top"><span class="field"></span>{}</div><div class="row"></div>{}').format(
        head, body
    )
    # Under other names than on the page: what looks for the page's own parts must not find these.
    body = Markup(ATTRIBUTES.sub(r" data-early-\1", body))
    return Markup(
        '<div id="opening" aria-busy="true"><template shadowrootmode="open"><style>{}</style>'
        '<header>tritpress</header><div class="columns"><aside></aside><main>{}'
        '<p class="soft small" role="status" data-opening>Opening the page …</p></main></div>'
        "</template></div>"
    ).format(Markup(_style(dark)), body)


def _list(runs: Sequence[Mapping[str, Any]]) -> Markup:
    if not runs:
        return Markup("")
    rows = join(
        Markup("<tr><th>{}</th><td>{}</td><td>{}</td></tr>").format(
            run["name"] or run["id"], run["status"], fig.ratio(run["ratio_file"])
        )
        for run in runs[:FIRST_RUNS]
    )
    return Markup(
        "<table><thead><tr><th>Run</th><th>State</th><th>Ratio</th></tr></thead><tbody>{}</tbody></table>"
    ).format(rows)


@cache
def _style(dark: bool) -> str:
    palette = THEME["dark" if dark else "light"]["palette"]
    own = STYLE.replace("FONT", FONT).replace(
        "COLOURS", _variables(palette, "#ffffff" if dark else "#1d262c")
    )
    return STYLES + own.replace("BAR", APP_BAR).replace("WIDE", str(BREAKPOINTS["sm"] - 1))


def _variables(palette: Mapping[str, Any], ink: str) -> str:
    """The page's theme, by the names that `theme.css` knows it by."""
    found = {
        "--panel-on-surface-color": ink,
        "--panel-on-secondary-color": f"color-mix(in srgb, {ink} 66%, transparent)",
        "--panel-background-color": palette["background"]["default"],
        "--panel-surface-color": palette["background"]["paper"],
        "--panel-primary-color": palette["primary"]["main"],
        "--success-bg-color": palette["success"]["main"],
        "--danger-bg-color": palette["error"]["main"],
        "--mui-palette-warning-main": palette["warning"]["main"],
    }
    return "; ".join(f"{name}: {value}" for name, value in found.items())


def use_template(page: Any, doc: Any) -> None:
    """Serve `page` with the shell over it, a plain one where the server writes none of its own."""
    doc.template_variables.update(material=page._template, opening=shell(None, ""), morph=MORPH)
    # Else what is built before the page is written out, or without that, asks another host for its styles.
    doc.template_variables.setdefault("dist_url", LOCAL_DIST)
    page._template = _template()


@cache
def _template() -> Template:
    return Environment(autoescape=False).from_string(TEMPLATE.read_text(encoding="utf-8"))
