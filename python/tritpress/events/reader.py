"""Readers of a run's events: whole lines only, from any offset, at any time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tritpress.events.snapshot import State, fold, initial_state, load_snapshot

CHUNK = 4 << 20
"""Bytes of a log that are read at a time."""


def whole_lines(file: BinaryIO, most: float = math.inf) -> Iterator[list[bytes]]:
    """The whole lines of the next `most` bytes of a log, some at a time, without their ends. The beginning of
    a line that is still being written is passed over.
    """
    rest = b""
    while most > 0 and (chunk := file.read(int(min(CHUNK, most)))):
        most -= len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield lines


class EventReader:
    """Reads `events.jsonl` from a byte offset on. A line that is still being written is left for later."""

    def __init__(self, path: str | Path, offset: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset  # just behind the last line handed out

    def poll(self) -> list[dict[str, Any]]:
        """All events that became whole since the last call; [] when there is nothing new or no file yet."""
        return [event for event, _ in self.poll_offsets()]

    def poll_offsets(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Like `poll`, each event with the offset just behind it. Lines that are no event are passed over."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below; a missing file is no error)
        except FileNotFoundError:
            return
        with file:
            file.seek(self.offset)
            for lines in whole_lines(file):
                for line in lines:
                    self.offset += len(line) + 1
                    event = parse(line)
                    if event is not None:
                        yield event, self.offset


class StateReader:
    """Follows a run: starts at its snapshot, then folds in only what came after it."""

    def __init__(self, run_path: str | Path) -> None:
        self.run_path = Path(run_path)
        events_path = self.run_path / "events.jsonl"
        snapshot = load_snapshot(self.run_path / "snapshot.json")
        size = events_path.stat().st_size if events_path.exists() else 0
        if snapshot is None or snapshot["offset"] > size:  # none yet, damaged, or of another log
            snapshot = initial_state(self.run_path.name)
        self.state: State = snapshot
        self.events = EventReader(events_path, snapshot["offset"])

    @property
    def behind(self) -> bool:
        """Whether the log has grown since the last `poll`; cheaper than to open it."""
        try:
            return os.stat(self.events.path).st_size != self.events.offset
        except OSError:
            return False

    def poll(self) -> list[dict[str, Any]]:
        """Fold in what is new and return those events (with their histograms)."""
        new = []
        for event, offset in self.events.poll_offsets():
            fold(self.state, event)
            self.state["offset"] = offset
            new.append(event)
        return new


def parse(line: bytes) -> dict[str, Any] | None:
    """The event on that line, or None when it is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return None
    return event if isinstance(event.get("seq"), int) and isinstance(event.get("t"), int | float) else None
