"""The tabs of the page; each pulls what changed since it last looked, and only while it is shown."""

from __future__ import annotations

from tritpress.dashboard.context import PageContext
from tritpress.dashboard.tabs.base import Tab
from tritpress.dashboard.tabs.compare import Compare
from tritpress.dashboard.tabs.diff import Diff
from tritpress.dashboard.tabs.metrics import Metrics
from tritpress.dashboard.tabs.outputs import Outputs
from tritpress.dashboard.tabs.overview import Overview
from tritpress.dashboard.tabs.plugin import plugin_tabs
from tritpress.dashboard.tabs.progress import Progress
from tritpress.dashboard.tabs.quality import Quality
from tritpress.dashboard.tabs.runs import Runs
from tritpress.dashboard.tabs.tuning import Tuning

TABS: tuple[type[Tab], ...] = (Runs, Overview, Progress, Metrics, Quality, Outputs, Compare, Diff, Tuning)
"""In the order of the page."""


def make_tabs(page: PageContext) -> list[Tab]:
    """New tabs for one page."""
    tabs = [kind(page) for kind in TABS]
    return [*tabs, *plugin_tabs(page, {tab.key for tab in tabs})]
