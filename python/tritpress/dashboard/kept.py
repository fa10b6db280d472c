"""The events of a run that are kept to be listed: the last ones, and warnings and errors however old.

A log may hold millions of events. Its end is read when it is opened; what lies before is looked through once,
beside the pages, for what is grave in it, and the rest is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tritpress.dashboard.views.events import DESCRIBE, level_of
from tritpress.events.reader import parse, whole_lines

Event = dict[str, Any]

RECENT = 500
"""So many of the last events are kept, of those that the list has a line for."""

GRAVE = 500
"""So many warnings and errors from before them are kept."""

TAIL = 4 << 20
"""Bytes at the end of a log that are looked through for its last events when it is opened."""

HEAD = 300
"""Bytes of a line in which its type stands, before anything that a run wrote."""

MAY_BE_GRAVE = ("alert", "log", "gate", "handoff", "command.ack", "run.finished", "run.failed")
"""Types of which some events are warnings or errors."""

TYPE = re.compile(rb'"type":\s?"([a-z_.]+)"')


@dataclass(frozen=True)
class Kept:
    """`older` ordinary events from before `recent` are left out, and `older_grave` warnings and errors."""

    recent: list[Event] = field(default_factory=list)
    grave: list[Event] = field(default_factory=list)
    older: int = 0
    older_grave: int = 0

    @property
    def events(self) -> list[Event]:
        """All that are kept, in the order in which they came."""
        return [*self.grave, *self.recent]

    def with_new(self, events: Iterable[Event]) -> Kept:
        """With those that came."""
        recent = [*self.recent, *(brief(event) for event in events if event["type"] in DESCRIBE)]
        gone, recent = recent[: max(len(recent) - RECENT, 0)], recent[-RECENT:]
        grave = [event for event in gone if is_grave(event)]
        older = self.older + len(gone) - len(grave)
        return replace(self, recent=recent, grave=self.grave + grave, older=older)._within_bounds()

    def with_older(self, found: Kept) -> Kept:
        """With what was found in the log before these."""
        return replace(
            self,
            grave=found.grave + self.grave,
            older=found.older + self.older,
            older_grave=found.older_grave + self.older_grave,
        )._within_bounds()

    def _within_bounds(self) -> Kept:
        over = max(len(self.grave) - GRAVE, 0)
        return replace(self, grave=self.grave[over:], older_grave=self.older_grave + over) if over else self


def is_grave(event: Event) -> bool:
    """Whether the list marks it as a warning or an error."""
    return event["type"] in MAY_BE_GRAVE and level_of(event) != "info"


def tail(path: Path, end: int) -> tuple[Kept, int]:
    """The last events before `end` (an offset at a line's end), and the offset at which the first begins."""
    start = max(end - TAIL, 0)
    try:
        with open(path, "rb") as file:
            file.seek(start)
            lines = file.read(end - start).split(b"\n")
    except OSError:
        return Kept(), 0
    found: list[Event] = []
    before = end + 1
    for line in reversed(lines[1:] if start else lines):
        if len(found) == RECENT:
            break
        before -= len(line) + 1
        event = parse(line) if type_of(line) in DESCRIBE else None
        if event is not None:
            found.append(brief(event))
    return Kept(found[::-1]), max(before, 0)


def look_back(path: Path, end: int) -> Iterator[Kept]:
    """What is grave in the log before that offset, and how many events are not: so far, piece by piece."""
    found = Kept()
    try:
        with open(path, "rb") as file:
            for lines in whole_lines(file, end):
                found = _looked_through(lines).with_older(found)
                yield found
    except OSError:
        return


def _looked_through(lines: list[bytes]) -> Kept:
    grave, ordinary = [], 0
    for line in lines:
        kind = type_of(line)
        if kind not in DESCRIBE:
            continue
        event = parse(line) if kind in MAY_BE_GRAVE else None
        if event is not None and is_grave(event):
            grave.append(brief(event))
        else:
            ordinary += 1
    return Kept(grave=grave, older=ordinary)


def type_of(line: bytes) -> str:
    """The type of the event on that line, without reading the rest of it."""
    found = TYPE.search(line, 0, HEAD)
    return found[1].decode() if found else ""


def brief(event: Event) -> Event:
    """The event without what is long in it: it is kept to be listed."""
    return {key: value for key, value in event.items() if key not in ("histogram", "targets", "tensors")}
