"""Finding an event by its number in a long log, without reading what lies before it.

Events are numbered upwards along the file, so the place is found by halving: some twenty lines are looked at
in a log of a million, and nothing is kept that could become stale.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from tritpress.events.reader import parse

NEAR = 64 << 10
"""Bytes that are read through rather than halved any further."""


def offset_after(path: Path, seq: int) -> int:
    """Offset of the log's first event with a number above `seq`; the log's end when there is none."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; a missing file is no error)
    except FileNotFoundError:
        return 0
    with file:
        low, high = 0, os.fstat(file.fileno()).st_size
        while high - low > NEAR and seq > 0:
            middle = (low + high) // 2
            found = _first_event(file, middle, high)
            if found is None or found[0] > seq:
                high = middle
            else:
                low = found[1]
        file.seek(low)
        for line in file:
            if not line.endswith(b"\n"):
                break  # still being written
            event = parse(line)
            if event is not None and event["seq"] > seq:
                break
            low += len(line)
        return low


def read_lines(path: Path, offset: int, events: int, size: int) -> tuple[list[bytes], int]:
    """Whole lines that are events from `offset` on, as they are, and the offset behind the last one.

    Stops after `events` of them or about `size` bytes.
    """
    lines: list[bytes] = []
    taken = 0
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return lines, offset
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or len(lines) >= events or taken >= size:
                break
            offset += len(line)
            if parse(line) is not None:
                lines.append(line[:-1])
                taken += len(line)
    return lines, offset


def _first_event(file: BinaryIO, offset: int, end: int) -> tuple[int, int] | None:
    """(number, offset behind it) of the first event that begins at `offset` or later and before `end`."""
    file.seek(max(offset - 1, 0))
    place = max(offset - 1, 0)
    if offset > 0:
        place += len(file.readline())
    while place < end:
        line = file.readline()
        if not line.endswith(b"\n"):
            return None
        place += len(line)
        event = parse(line)
        if event is not None:
            return event["seq"], place
    return None
