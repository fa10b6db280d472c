"""The alerts of all runs at work, whether a page shows those runs or not, read off the ends of their logs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritpress.dashboard.kept import type_of
from tritpress.dashboard.views.runs import LIVE
from tritpress.events.reader import parse

EVERY = 0.5
"""Seconds between two looks at the logs."""

RECENT = 10.0
"""Alerts of a run that is new among those at work are news when they are no older than so many seconds."""

BACK = 256 << 10
"""Bytes at the end of such a run's log in which they are looked for."""

KEPT = 100


@dataclass(frozen=True)
class RunAlert:
    """An alert of one run. Numbers count up from 1 over all runs, so that a page knows which it has told."""

    number: int
    run: str
    tone: str
    message: str


class AlertWatch:
    """Finds new alerts. The store's thread looks, pages read `last`, which is replaced and never changed."""

    def __init__(self) -> None:
        self.last: tuple[RunAlert, ...] = ()
        self._begun = time.time()
        self._fresh = True
        self._next = 0.0
        self._offsets: dict[str, int] = {}  # run -> just behind the last whole line looked at
        self._told: dict[str, int] = {}  # run -> number of its last event that was told

    @property
    def number(self) -> int:
        """That of the last alert."""
        return self.last[-1].number if self.last else 0

    def after(self, number: int) -> list[RunAlert]:
        """Those that came after that one, as far as they are kept."""
        return [alert for alert in self.last if alert.number > number]

    def begin(self) -> None:
        """Nobody has looked for a while: what came meanwhile is no news."""
        self._begun, self._fresh = time.time(), True

    def look(self, runs: Sequence[Mapping[str, Any]], now: float) -> None:
        """Look at the logs of those of `runs` that are at work, and a last time at those that were."""
        if now < self._next:
            return
        self._next = now + EVERY
        if self._fresh:
            self._offsets, self._fresh = {}, False
        live = {str(run["id"]) for run in runs if run["status"] in LIVE}
        for run in runs:
            run_id = str(run["id"])
            if run_id in live or run_id in self._offsets:
                self._read(run_id, Path(run["path"]) / "events.jsonl")
        self._offsets = {run: offset for run, offset in self._offsets.items() if run in live}

    def _read(self, run: str, log: Path) -> None:
        """Take up the alerts that came to that log."""
        since = 0.0 if run in self._offsets else max(self._begun, time.time() - RECENT)
        for event in self._new_alerts(run, log):
            if event["t"] < since or event["seq"] <= self._told.get(run, 0):
                continue
            self._told[run] = event["seq"]
            tone = "bad" if event.get("level") == "critical" else "warning"
            message = str(event.get("message") or event.get("rule") or "without a message")
            self.last = (*self.last, RunAlert(self.number + 1, run, tone, message))[-KEPT:]

    def _new_alerts(self, run: str, log: Path) -> Iterator[dict[str, Any]]:
        try:
            size = os.stat(log).st_size
            offset = self._offsets.setdefault(run, max(size - BACK, 0))
            if size <= offset:
                self._offsets[run] = size
                return
            with open(log, "rb") as file:
                file.seek(offset)
                data = file.read(size - offset)
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        self._offsets[run] = offset + whole
        if b'"alert"' not in data:
            return
        for line in data[:whole].split(b"\n"):
            event = parse(line) if type_of(line) == "alert" else None
            if event is not None:
                yield event
