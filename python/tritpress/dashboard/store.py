"""What every page of this server shares: one thread that tails the logs of the runs that are open.

A page asks for a `Feed` and looks at `feed.version`; `feed.changed_since(version)` names the event types that
came since. `feed.state` is replaced, never changed in place, so that a page can read it without a lock.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from tritpress.events import StateReader

log = logging.getLogger(__name__)

LIVE_INTERVAL = 0.1
"""Seconds between two looks at the log of a run that is at work."""

QUIET_INTERVAL = 1.0
"""Seconds between two looks at the log of a run that is over: it may be resumed from elsewhere."""

LIVENESS_INTERVAL = 2.0
"""Seconds between two looks at whether the worker process still lives."""

LIST_INTERVAL = 2.0
"""Seconds between two looks at the folder of runs."""

UNFINISHED = ("created", "running", "paused")

State = dict[str, Any]


class Feed:
    """One run as far as its log has been read. The store's thread writes, pages read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.readers = 0
        self.version = 1
        self.alive: bool | None = None  # None: not known
        self.progress_base: dict[int, tuple[float, float]] = {}  # step -> (time, done) of its first progress
        self._types: dict[str, int] = {}
        self._reader = StateReader(path)
        self._next_look = 0.0
        self._next_liveness = 0.0
        self._reader.poll()
        self.state: State = _copy(self._reader.state)
        self._look_for_worker(time.monotonic())

    def changed_since(self, version: int) -> set[str]:
        """Event types that came after `version`; "liveness" when the worker came or went."""
        return {kind for kind, at in self._types.items() if at > version}

    @property
    def unfinished(self) -> bool:
        return self.state["status"] in UNFINISHED

    @property
    def lost(self) -> bool:
        """The run says it is at work, but its worker process is gone."""
        return self.unfinished and self.alive is False

    def poll(self, now: float) -> bool:
        """Read what is new when it is time to; True when something changed."""
        version = self.version
        if now >= self._next_look:
            self._read()
            self._next_look = now + (LIVE_INTERVAL if self.unfinished else QUIET_INTERVAL)
        self._look_for_worker(now)
        return self.version != version

    def _read(self) -> None:
        events = self._reader.poll()
        if not events:
            return
        for event in events:
            self._note_progress(event)
        state = _copy(self._reader.state)
        version = self.version + 1
        for event in events:
            self._types[event["type"]] = version
        self.state = state
        self.version = version  # last: a page that sees the version finds the state in place

    def _note_progress(self, event: dict[str, Any]) -> None:
        step = event.get("step")
        if not isinstance(step, int):
            return
        if event["type"] == "step.started":
            self.progress_base.pop(step, None)
        elif event["type"] == "step.progress" and isinstance(event.get("done"), int | float):
            self.progress_base.setdefault(step, (event["t"], event["done"]))

    def _look_for_worker(self, now: float) -> None:
        if not self.unfinished or now < self._next_liveness:
            return
        self._next_liveness = now + LIVENESS_INTERVAL
        alive = _is_alive(self.path)
        if alive != self.alive:
            self.alive = alive
            self._types["liveness"] = self.version + 1
            self.version += 1


class RunStore:
    """All feeds of one folder of runs, and the list of its runs. Its thread starts with the first feed."""

    def __init__(self, runs_dir: str | Path) -> None:
        self.runs_dir = Path(runs_dir).absolute()
        self.list_version = 0
        self.runs: list[dict[str, Any]] = []
        self._feeds: dict[str, Feed] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._pages = 0
        self._next_list = 0.0

    def path_of(self, run_id: str) -> Path | None:
        """The folder of that run, or None when there is none; never a folder outside `runs_dir`."""
        if not run_id or run_id.startswith(".") or "/" in run_id or "\\" in run_id or "\0" in run_id:
            return None
        path = self.runs_dir / run_id
        return path if (path / "run.json").is_file() or (path / "events.jsonl").is_file() else None

    def join(self) -> None:
        """A page opened: keep the list of runs fresh from now on."""
        with self._lock:
            self._pages += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tritpress-reader", daemon=True)
                self._thread.start()
        self.refresh_list()

    def leave(self) -> None:
        """A page closed."""
        with self._lock:
            self._pages -= 1

    def open(self, run_id: str) -> Feed | None:
        """The feed of that run, shared with other pages; `close` gives it back. None without such a run."""
        path = self.path_of(run_id)
        if path is None:
            return None
        with self._lock:
            feed = self._feeds.get(run_id)
            if feed is None:
                feed = self._feeds[run_id] = Feed(path)
            feed.readers += 1
        self._wake.set()
        return feed

    def close(self, feed: Feed) -> None:
        """Give a feed back; the last page to do so lets it go."""
        with self._lock:
            feed.readers -= 1
            if feed.readers <= 0 and self._feeds.get(feed.id) is feed:
                del self._feeds[feed.id]

    def refresh_list(self) -> None:
        """Look at the folder of runs now."""
        from tritpress.runs.history import list_runs

        self._next_list = time.monotonic() + LIST_INTERVAL
        try:
            runs = list_runs(self.runs_dir)
        except OSError as error:
            log.warning("cannot list the runs in %s: %s", self.runs_dir, error)
            return
        if runs != self.runs:
            self.runs = runs
            self.list_version += 1

    def _run(self) -> None:
        while True:
            with self._lock:
                feeds, pages = list(self._feeds.values()), self._pages
            now = time.monotonic()
            for feed in feeds:
                try:
                    feed.poll(now)
                except Exception:  # one unreadable run must not stop the others
                    log.exception("cannot read the run %s", feed.path)
            if pages and now >= self._next_list:
                self.refresh_list()
            self._wake.wait(LIVE_INTERVAL if feeds or pages else QUIET_INTERVAL)
            self._wake.clear()


def _copy(state: State) -> State:
    """A copy that later events leave alone: what `fold` changes in place is copied, the rest is shared."""
    copy = dict(state)
    copy["steps"] = [dict(step) for step in state["steps"]]
    copy["metrics"] = {name: list(points) for name, points in state["metrics"].items()}
    copy["finetune"] = list(state["finetune"])
    for key in ("layers", "evaluations", "figures", "gradients", "gates", "acks"):
        copy[key] = dict(state[key])
    return copy


def _is_alive(path: Path) -> bool | None:
    from tritpress.runs.directory import RunDirectory
    from tritpress.runs.launch import is_alive

    try:
        return bool(is_alive(RunDirectory(path)))
    except (OSError, ValueError, KeyError):
        return None
