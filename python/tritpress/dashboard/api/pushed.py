"""Runs that are worked on elsewhere: a controller pushes their events, here they become a run's folder.

The numbers of the events are the client's own, 1, 2, 3 ...: one that is there already is passed over, so that
a push can be repeated after a lost answer, over restarts of this server too; a gap is refused.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tritpress.dashboard.api.checks import check_config, check_event, check_values
from tritpress.dashboard.api.errors import ApiError
from tritpress.errors import UsageError
from tritpress.events.reader import StateReader
from tritpress.events.schema import ENDED, encode, make_event, most_bytes
from tritpress.events.snapshot import WORK, fold, save_snapshot
from tritpress.runs.directory import REMOTE, RunDirectory, check_run_id, write_json
from tritpress.runs.liveness import HEARTBEAT_STALE, is_alive_record

EVENTS_A_PUSH = 10_000
LOG_SIZE = 2 << 30
NAME = 200
SNAPSHOT_EVERY = 0.5
HEARTBEAT_EVERY = 1.0
OPEN_LOGS = 32
KEYS = {"source", "name", "model", "config", "events", "report"}

_logs: OrderedDict[Path, PushedLog] = OrderedDict()
_locks: dict[Path, threading.Lock] = {}
_lock = threading.Lock()


def push(runs_dir: Path, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Take a push in; {run, seq (of the last event kept), accepted, ignored}.

    Raises `UsageError` (400) for what is no push, `ApiError` 409 for a run that is not the sender's and for a
    gap in the numbers, 413 for a log that is full.
    """
    check_run_id(run_id)
    _check_body(body)
    check_values(body)
    run = RunDirectory(runs_dir / run_id)
    with _lock:
        one_at_a_time = _locks.setdefault(run.path, threading.Lock())
    with one_at_a_time:
        with _lock:
            log = _logs.pop(run.path, None)
        made = not run.path.exists()
        try:
            answer, log = _take(log, run, body)
        except BaseException:
            if made:  # of a run whose first push is refused nothing stays
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        with _lock:
            _logs[run.path] = log
            while len(_logs) > OPEN_LOGS:
                _logs.popitem(last=False)
    return answer


def _take(
    log: PushedLog | None, run: RunDirectory, body: dict[str, Any]
) -> tuple[dict[str, Any], PushedLog]:
    if log is None or not run.run_json.is_file():
        log = PushedLog(run, body)
    # A log that raised is not kept: what is on disk counts, and the next push begins from there.
    try:
        return log.take(body), log
    except OSError as error:
        raise ApiError(507, f"the events could not be kept: {error.strerror or error}") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the events cannot be folded into a run's state: {error!r}") from None


class PushedLog:
    """The folder of one pushed run and its folded state."""

    def __init__(self, run: RunDirectory, body: dict[str, Any]) -> None:
        self.run = run
        if not run.run_json.is_file():
            run.create()
            run.write_run(new_record(run, body))
        record = run.read_run()
        if record.get("origin") != REMOTE:
            raise ApiError(409, f"run {run.id} is worked on here: only runs that were pushed take events")
        reader = StateReader(run.path)
        reader.poll()
        self.state = reader.state
        self.state["run"] = run.id
        self.size = reader.events.offset
        if run.events_path.exists():
            os.truncate(run.events_path, self.size)  # a line that was torn by a crash
        self.snapshot_at = 0.0
        self.beaten_at = 0.0

    def take(self, body: dict[str, Any]) -> dict[str, Any]:
        """Append what is new of a push."""
        record = self.run.read_run()
        known = record.get("source")
        if known not in (None, body["source"]) and is_alive_record(record):
            raise ApiError(
                409, f"another controller is pushing run {self.run.id} already", until_silent=HEARTBEAT_STALE
            )
        lines, changes, ended = self._fold(body["events"], record.get("status"))
        data = b"".join(lines)
        if self.size + len(data) > LOG_SIZE:
            raise ApiError(413, f"the log of run {self.run.id} is full ({LOG_SIZE:,} bytes)")
        if data:
            self._append(data)
        if body.get("report") is not None:
            write_json(self.run.report_path, body["report"])
        now = time.monotonic()
        if known != body["source"]:
            changes["source"] = body["source"]
        if changes or now - self.beaten_at > HEARTBEAT_EVERY:
            self.beaten_at = now
            self.run.update_run(heartbeat=time.time(), **changes)
        if lines and (ended or now - self.snapshot_at > SNAPSHOT_EVERY):
            save_snapshot(self.run.snapshot_path, self.state)
            self.snapshot_at = time.monotonic()
        return {
            "run": self.run.id,
            "seq": self.state["seq"],
            "accepted": len(lines),
            "ignored": len(body["events"]) - len(lines),
        }

    def _fold(
        self, events: list[dict[str, Any]], status: str | None
    ) -> tuple[list[bytes], dict[str, Any], bool]:
        """Lines of the new events, what they change in run.json, which has that status, and whether the run
        ended.
        """
        fresh = [event for event in events if event["seq"] > self.state["seq"]]
        for expected, event in enumerate(fresh, self.state["seq"] + 1):
            if event["seq"] != expected:
                raise ApiError(
                    409, f"event {expected} is missing: {event['seq']} came in its place", expected=expected
                )
        # All are looked at before any is taken: a push counts whole or not at all.
        coming: dict[str, set[Any]] = {}
        checked = [check_event(event, self.state, coming) for event in fresh]
        lines: list[bytes] = []
        changes: dict[str, Any] = {}
        for event, (kind, fields) in zip(fresh, checked):
            made = make_event(self.run.id, event["seq"], _time_of(event), kind, fields)
            line = encode(made).encode()
            if len(line) > (most := most_bytes(kind)):
                raise UsageError(f"event {event['seq']} has {len(line):,} bytes; {most:,} at most")
            fold(self.state, made, strict=True)
            lines.append(line + b"\n")
            changes.update(_changes(kind, fields, changes.get("status", status)))
        return lines, changes, changes.get("status") in ENDED

    def _append(self, data: bytes) -> None:
        file = os.open(self.run.events_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = 0
            while written < len(data):
                written += os.write(file, data[written:])
        except OSError:
            os.ftruncate(file, self.size)
            raise
        finally:
            os.close(file)
        self.size += len(data)
        self.state["offset"] = self.size


def new_record(run: RunDirectory, body: dict[str, Any]) -> dict[str, Any]:
    """run.json of a pushed run. Its worker has no process here: its pushes are its heartbeat."""
    now = time.time()
    return {
        "v": 1,
        "id": run.id,
        "origin": REMOTE,
        "source": body["source"],
        "name": body.get("name") or run.id,
        "created": now,
        "launched": now,
        "model": body.get("model") or "",
        "out": str(run.path / "out"),
        "text": [],
        "config": check_config(body.get("config") or {}),
        "chosen": {},
        "status": "running",
        "pid": 0,
        "host": REMOTE,
        "process_start": None,
        "heartbeat": now,
        "resumes": 0,
        "commands_offset": 0,
        "error": None,
        "exit_code": None,
    }


def _changes(kind: str, fields: dict[str, Any], status: str | None = None) -> dict[str, Any]:
    """What an event changes in run.json, which has that status: a queued run that works has begun."""
    now = time.time()
    if status == "queued" and kind in WORK:
        return _changes("run.started", {})
    if kind == "run.started":
        given = {key: fields[key] for key in ("name", "model") if isinstance(fields.get(key), str)}
        return {**given, "status": "running", "error": None, "exit_code": None}
    if kind == "run.queued":
        return {"status": "queued", "after": fields.get("after") or []}
    if kind in ("run.paused", "run.resumed"):
        return {"status": "paused" if kind == "run.paused" else "running"}
    if kind == "run.finished":
        return {
            "status": fields.get("status") or "finished",
            "exit_code": fields.get("exit_code"),
            "finished": now,
        }
    if kind == "run.failed":
        return {
            "status": "failed",
            "error": fields.get("error"),
            "exit_code": fields.get("exit_code", 1),
            "finished": now,
        }
    return {}


def _time_of(event: dict[str, Any]) -> float:
    """The sender's time where it is one, else now."""
    t = event.get("t")
    usable = isinstance(t, int | float) and not isinstance(t, bool) and 0 < t < 1e11
    return float(t) if usable and t is not None else time.time()


def _check_body(body: dict[str, Any]) -> None:
    unknown = sorted(body.keys() - KEYS)
    if unknown:
        raise UsageError(f"a push has no {unknown[0]!r}; it has {', '.join(sorted(KEYS))}")
    source = body.get("source")
    if not isinstance(source, str) or not 8 <= len(source) <= 100:
        raise UsageError("a push names its sender in 'source', by 8 to 100 characters that stay the same")
    for key in ("name", "model"):
        if not isinstance(body.get(key, ""), str | None) or len(body.get(key) or "") > 5 * NAME:
            raise UsageError(f"{key!r} must be a text of at most {5 * NAME} characters")
    for key in ("config", "report"):
        if not isinstance(body.get(key), dict | None):
            raise UsageError(f"{key!r} must be a JSON object")
    events = body.setdefault("events", [])
    if not isinstance(events, list) or len(events) > EVENTS_A_PUSH:
        raise UsageError(f"'events' must be a list of at most {EVENTS_A_PUSH:,} events")
    for event in events:
        if (
            not isinstance(event, dict)
            or not isinstance(event.get("type"), str)
            or type(event.get("seq")) is not int
            or event["seq"] < 1
        ):
            raise UsageError("every event is a JSON object with 'seq' (1, 2, 3 ...) and 'type'")
