"""What a tab is: built when it is first looked at, brought up to date only while it is shown."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import panel as pn

from tritpress.dashboard.components.html import Fragment, Markup
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.kept import Kept
from tritpress.dashboard.store import Feed

CLOCK = "clock"
"""Stands among the event types once a second while a run is at work: times and estimates move on."""

WORDS_EVERY = 0.45
"""Least seconds between two changes of words that change with every event: nobody reads them faster."""


@dataclass(frozen=True)
class Shown:
    """What a page shows: a run's state as far as it is read."""

    state: dict[str, Any]
    lost: bool
    now: float
    progress_bases: dict[int, tuple[float, float]]
    path: Path
    samples: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """Step -> (time, done) of its progress so far, evenly thinned."""
    kept: Kept = field(default_factory=Kept)
    """The events to be listed."""
    earlier: list[list[float | None]] = field(default_factory=list)
    """Seconds of the steps of finished runs like this one."""
    remote: bool = False
    """The run is worked on elsewhere: it hears no commands from here."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of all runs by their ids."""
    gone: bool = False
    """Its folder was deleted or moved away."""

    @property
    def over(self) -> bool:
        """No worker is at it, or has been yet."""
        return self.lost or self.gone or self.state["status"] not in ("created", "running", "paused")


def shown_of(feed: Feed | None) -> Shown | None:
    """What there is to show of that run now."""
    if feed is None:
        return None
    bases, samples = dict(feed.progress_base), dict(feed.samples)
    told = (feed.kept, feed.earlier, feed.remote, feed.names, feed.gone)
    return Shown(feed.state, feed.lost, time.time(), bases, feed.path, samples, *told)


class Tab(ABC):
    """One tab of the page. `page` is what it may ask of the page it stands in."""

    key: str
    title: str
    interests: frozenset[str]
    """Event types after which this tab looks different."""

    def __init__(self, page: PageContext) -> None:
        self.page = page
        self.holder = pn.Column(sizing_mode="stretch_width", margin=(16, 8, 32, 8), name=self.title)
        self.seen = -1  # version of the feed that the tab shows
        self.built = False

    def query(self) -> dict[str, str]:
        """What belongs in the URL beside run and tab, so that the link opens the same view."""
        return {}

    def go(self, query: Mapping[str, str]) -> None:
        """Take over what the URL says; comes before the refresh that shows it, {} is the plain view."""
        return None

    def forget(self) -> None:
        """Another run is open: everything is made anew when the tab is looked at."""
        self.seen, self.built = -1, False

    def refresh(self, shown: Shown | None, changed: set[str] | None) -> None:
        """Show `shown`; `changed` are event types since the last call, None means everything."""
        if not self.built:
            mark = Fragment(Markup('<span hidden data-tab="{}"></span>').format(self.key))
            self.holder.objects = [mark.pane, *self.build()]
            self.built, changed = True, None
        if changed is None or changed & self.interests:
            self.update(shown, changed)

    @property
    def pending(self) -> bool:
        """Whether something has come that the open run's events do not tell of; asked for at every tick."""
        return False

    def take_up(self) -> None:
        """Show what has come."""
        return None

    @abstractmethod
    def build(self) -> list[Any]:
        """The parts of the tab."""

    @abstractmethod
    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        """Bring the parts up to date; `shown` is None while no run is open."""
