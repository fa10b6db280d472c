"""Charts of plug-ins, for a report that is written without the page."""

from __future__ import annotations

import importlib.metadata

from tritpress.dashboard.views.curves import Chart
from tritpress.dashboard.views.status import State

GROUP = "tritpress.dashboard"


def added_charts(state: State) -> list[Chart]:
    """What plug-ins add to the curves; none where there are no plug-ins or where they cannot be loaded.

    A plug-in that fails is left out: the page says so, a report is about the run.
    """
    if not importlib.metadata.entry_points(group=GROUP):
        return []
    try:
        from tritpress.dashboard.plugins import plugin_charts
    except ImportError:  # an installation without the page
        return []
    return plugin_charts(state)[0]
