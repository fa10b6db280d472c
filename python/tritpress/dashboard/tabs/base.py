"""What a tab is: built when it is first looked at, brought up to date only while it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import panel as pn

from tritpress.dashboard.components.html import Fragment, Markup

CLOCK = "clock"
"""Stands among the event types once a second while a run is at work: times and estimates move on."""


@dataclass(frozen=True)
class Shown:
    """What a page shows: a run's state as far as it is read."""

    state: dict[str, Any]
    lost: bool
    now: float
    progress_bases: dict[int, tuple[float, float]]
    path: Path


class Tab(ABC):
    """One tab of the page."""

    key: str
    title: str
    interests: frozenset[str]
    """Event types after which this tab looks different."""

    def __init__(self, on_navigate: Callable[[], None] | None = None) -> None:
        self.holder = pn.Column(sizing_mode="stretch_width", margin=(16, 8, 32, 8), name=self.title)
        self.seen = -1  # version of the feed that the tab shows
        self.built = False
        self.on_navigate = on_navigate or (lambda: None)

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
        """Whether something that the tab asked for beside the server's loop has come."""
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
