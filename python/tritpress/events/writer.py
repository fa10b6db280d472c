"""The one writer of a run's events, inside the worker process."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from tritpress.events.reader import StateReader
from tritpress.events.schema import check_fields, encode, make_event
from tritpress.events.snapshot import fold, save_snapshot

SNAPSHOT_EVERY = 0.5
"""Least seconds between two snapshots, apart from those at the ends of steps."""

SNAPSHOT_SHARE = 0.004
"""Largest share of the time that snapshots may take: one that took 10 ms is not repeated for 2.5 s."""

BUDGET = 0.008
"""Share of the time that all writing may take before snapshots wait for up to `SNAPSHOT_LATEST` seconds."""

SNAPSHOT_LATEST = 30.0

PROGRESS_EVERY = 0.1
"""Least seconds between two `step.progress` of one step: a bar need not move more often."""

AT_ONCE = {"run.started", "run.paused", "run.resumed", "run.finished", "run.failed", "step.finished", "plan"}
"""Types after which the snapshot is written too."""

TOGETHER = {"step.progress", "layer.started", "layer.finished", "finetune.step", "metric", "gradient"}
"""Types that may wait for others of these, where the writer was told for how long."""

PLAIN = {int, float, str, bool, type(None), dict, list}


class EventWriter:
    """Appends to `events.jsonl` and keeps `snapshot.json` near it. Safe to use from several threads.

    Opened on a log that exists, it first cuts off a torn last line, then goes on with the next `seq`.

    With `together` seconds, events of the `TOGETHER` types wait for so long at most and are then written in
    one go, by a thread of the writer's own: a killed process loses no more than those. All others are written
    before `emit` returns, after what waited.
    """

    def __init__(self, run_path: str | Path, run_id: str | None = None, together: float = 0.0) -> None:
        self.run_path = Path(run_path)
        self.run_id = run_id or self.run_path.name
        self.snapshot_path = self.run_path / "snapshot.json"
        self._lock = threading.RLock()
        self._seconds = 0.0
        self._opened = time.perf_counter()
        self._snapshot_due = 0.0
        self._snapshot_last = self._opened
        self._progress_due: dict[Any, float] = {}
        reader = StateReader(self.run_path)
        reader.poll()
        self.state = reader.state
        self.state["run"] = self.run_id
        self._file = os.open(self.run_path / "events.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = self.state["offset"] = reader.events.offset
        os.ftruncate(self._file, self._size)
        self._together = together
        self._waiting: list[tuple[float, str, dict[str, Any]]] = []
        self._some = threading.Event()
        self._error: Exception | None = None
        self._ended = threading.Event()
        if together:
            threading.Thread(target=self._drain, name="events", daemon=True).start()

    @property
    def seq(self) -> int:
        """Number of the last event that was taken in."""
        with self._lock:
            return int(self.state["seq"]) + len(self._waiting)

    @property
    def write_seconds(self) -> float:
        """Seconds spent so far on encoding, folding and writing events and snapshots: all that `emit` takes,
        and the processor's time of the writer's own thread, for which nobody waits.
        """
        return self._seconds

    @property
    def seconds(self) -> float:
        """Seconds since this writer was opened."""
        return time.perf_counter() - self._opened

    def emit(self, type: str, /, **fields: Any) -> None:
        """Append one event (of `step.progress`, those that come too thick are left out, never the last one).

        Dicts and lists among the fields belong to the writer from then on. Raises OSError when it, or before
        it one that waited, cannot be written; the log then still ends with a whole line.
        """
        with self._lock:
            start = time.perf_counter()
            if type == "step.progress" and self._too_soon(fields, start):
                return
            check_fields(type, fields)
            self._waiting.append((time.time(), type, fields))
            # What is no plain value (a tensor, an array) may change before it is written.
            if self._together and type in TOGETHER and all(f.__class__ in PLAIN for f in fields.values()):
                self._some.set()
            else:
                self._write()
            self._seconds += time.perf_counter() - start
            self._raise()

    def flush(self) -> None:
        """Write what waits, and the snapshot if events came after the last one."""
        with self._lock:
            start = time.perf_counter()
            self._write()
            self._snapshot()
            self._seconds += time.perf_counter() - start
            self._raise()

    def close(self) -> None:
        """Write what waits and the snapshot, and close the log."""
        with self._lock:
            if self._file >= 0:
                try:
                    self.flush()
                finally:
                    os.close(self._file)
                    self._file = -1
                    self._ended.set()
                    self._some.set()

    def _drain(self) -> None:
        while self._some.wait() and not self._ended.wait(self._together):
            with self._lock:
                start = time.thread_time()
                try:
                    self._write()
                except OSError as error:
                    self._error = error
                self._seconds += time.thread_time() - start

    def _write(self) -> None:
        """Append what waits, in one piece, and fold it in."""
        waiting, self._waiting = self._waiting, []
        self._some.clear()
        if self._file < 0:
            return
        lines: list[str] = []
        for t, type, fields in waiting:
            seq = self.state["seq"] + len(lines) + 1
            try:
                lines.append(encode(make_event(self.run_id, seq, t, type, fields)))
            except (TypeError, ValueError) as error:  # the others are written all the same
                self._error = error
        if not lines:
            return
        self._append("".join(line + "\n" for line in lines).encode("utf-8"))
        # Folded from the lines, not from the arguments: the same state that every reader arrives at.
        for line in lines:
            fold(self.state, json.loads(line))
        self.state["offset"] = self._size
        if any(type in AT_ONCE for _, type, _ in waiting) or self._snapshot_wanted(time.perf_counter()):
            self._snapshot()

    def _raise(self) -> None:
        """Tell of what went wrong with an event that had waited."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _too_soon(self, fields: dict[str, Any], now: float) -> bool:
        done, total = fields.get("done"), fields.get("total")
        at_end = done is not None and total is not None and done >= total
        if now < self._progress_due.get(fields.get("step"), 0.0) and not at_end:
            return True
        self._progress_due[fields.get("step")] = now + PROGRESS_EVERY
        return False

    def _snapshot_wanted(self, now: float) -> bool:
        if now < self._snapshot_due:
            return False
        within = self._seconds <= BUDGET * (now - self._opened)
        return within or now >= self._snapshot_last + SNAPSHOT_LATEST

    def _append(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _snapshot(self) -> None:
        start = time.perf_counter()
        save_snapshot(self.snapshot_path, self.state)
        self._snapshot_last = end = time.perf_counter()
        self._snapshot_due = end + max(SNAPSHOT_EVERY, (end - start) / SNAPSHOT_SHARE)
