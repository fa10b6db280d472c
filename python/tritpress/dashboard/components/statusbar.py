"""The line above the tabs: how the run stands, its name, how much smaller the model became."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritpress.dashboard.components.html import Markup
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.status import headline, status_of

if TYPE_CHECKING:
    from tritpress.dashboard.store import Feed


def missing_words(run_id: str, there: bool) -> str:
    """Why a run that was asked for is not shown; `there`: its folder is, but cannot be read."""
    return f"The run {run_id!r} cannot be read" if there else f"There is no run {run_id!r} here"


def status_bar(feed: Feed | None, missing: str = "", there: bool = False) -> Markup:
    """The line for the open run, or for none; `missing` is the one that was asked for and is not shown, as it
    is not there or (`there`) cannot be read.
    """
    if feed is None:
        words = f"{missing_words(missing, there)}." if missing else "No run is open."
        return Markup('<div class="bar"><span class="soft">{}</span></div>').format(words)
    status, head = status_of(feed.state, feed.lost, feed.gone), headline(feed.state)
    figure = Markup("")
    if head.ratio != fig.NOTHING:
        figure = Markup(
            '<span class="headline" data-headline><b>{}</b> smaller · {} · {}</span>'
            '<span class="soft small">{}</span>'
        ).format(head.ratio, head.bits, head.planes, head.note)
    return Markup(
        '<div class="bar"><span class="chip {}" data-status="{}">{} {}</span>'
        '<span class="name">{}</span>{}</div>'
    ).format(
        status.tone,
        "gone" if feed.gone else "lost" if feed.lost else feed.state["status"],
        status.mark,
        status.label,
        feed.name,
        figure,
    )
