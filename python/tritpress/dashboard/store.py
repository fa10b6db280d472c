"""What every page of this server shares: one thread that tails the logs of the runs that are open.

A page asks for a `Feed` and looks at `feed.version`; `feed.changed_since(version)` names the event types that
came since. `feed.state` is replaced, never changed in place, so that a page can read it without a lock.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

from tritpress.allocator import give_back_freed
from tritpress.dashboard.kept import Kept, look_back, tail
from tritpress.dashboard.watch import AlertWatch
from tritpress.errors import TritpressError
from tritpress.events import StateReader
from tritpress.runs.directory import REMOTE, RunDirectory
from tritpress.runs.history import RunIndex
from tritpress.runs.labels import FILE as LABELS_FILE
from tritpress.runs.labels import Labels, load_labels

log = logging.getLogger(__name__)

LIVE_INTERVAL = 0.06
"""Seconds between two looks at the log of a run that is at work."""

PACE, MANY_PACE, FEW = 0.14, 0.29, 4
"""Seconds between two batches to a page, to each of more than `FEW` pages."""

QUIET_INTERVAL = 1.0
"""Seconds between two looks at the log of a run that is over: it may be resumed from elsewhere."""

LIVENESS_INTERVAL = 2.0
"""Seconds between two looks at whether the worker process still lives."""

LABELS_INTERVAL = 1.0
"""Seconds between two looks at the labels of a run, and at whether its folder is still there."""

TIDY_AFTER = 5.0
"""Seconds after the last page closed."""

LIST_INTERVAL = 2.0
"""Seconds between two looks at the folder of runs."""

UNFINISHED = ("created", "queued", "running", "paused")

EARLIER = 5
"""Finished runs like a running one that say how long its next steps will take."""

SAMPLES = 64
"""Points of progress of a step that its pace is judged by."""

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
        self.samples: dict[int, list[tuple[float, float]]] = {}  # step -> (time, done), evenly thinned
        self._paused_at: float | None = None
        self.earlier: list[list[float | None]] = []  # seconds of the steps of finished runs like this one
        self.names: dict[str, str] = {}  # of all runs, by their ids
        self.labels = Labels()
        self.gone = False  # the folder was deleted or moved away
        self._record_path = RunDirectory(path).run_json
        record = _record(path)
        self.remote = record.get("origin") == REMOTE  # that never changes
        self._given = record.get("name")  # `set` gives a run at work another name than it began with
        self._labels_sign: tuple[Any, ...] = ()
        self._next_labels = 0.0
        self._types: dict[str, int] = {}
        self._reader = StateReader(path)
        self._next_look = 0.0
        self._next_liveness = 0.0
        self._reader.poll()
        self.state: State = self._named(_copy(self._reader.state))
        log = path / "events.jsonl"
        self.kept, before = tail(log, self._reader.events.offset)
        self._history, self._earlier = (look_back(log, before) if before else None), Kept()
        self._look_for_labels(time.monotonic())
        self._look_for_worker(time.monotonic())

    def changed_since(self, version: int) -> set[str]:
        """Event types that came after `version`; "liveness" when the worker came or went."""
        # Of a copy: the thread may add a type meanwhile.
        return {kind for kind, at in self._types.copy().items() if at > version}

    @property
    def name(self) -> str:
        """What the run is called; of one that has not begun the list of runs knows it."""
        return str(self.state.get("name") or self.names.get(self.id, self.id))

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
        self._look_back()
        self._look_for_worker(now)
        self._look_for_labels(now)
        return self.version != version

    def _read(self) -> None:
        if not self._reader.behind:
            return
        events = self._reader.poll()
        if not events:
            return
        for event in events:
            self._note_progress(event)
        self.kept = self.kept.with_new(events)
        state = self._named(_copy(self._reader.state))
        version = self.version + 1
        for event in events:
            self._types[event["type"]] = version
        self.state = state
        self.version = version  # last: a page that sees the version finds the state in place

    def _look_back(self) -> None:
        """Look through a piece of the log from before the events that it was opened with."""
        if self._history is None:
            return
        found = next(self._history, None)
        if found is not None:
            self._earlier = found
            return
        self.kept, self._history = self.kept.with_older(self._earlier), None
        self._types["log"] = self.version + 1
        self.version += 1

    def _note_progress(self, event: dict[str, Any]) -> None:
        if event["type"] == "run.paused" and self._paused_at is None:
            self._paused_at = event["t"]
        elif event["type"] in ("run.resumed", "run.started"):
            self._leave_out_pause(event["t"])
        step = event.get("step")
        if not isinstance(step, int):
            return
        if event["type"] == "step.started":
            self.progress_base.pop(step, None)
            self.samples.pop(step, None)
        elif event["type"] == "step.progress" and isinstance(event.get("done"), int | float):
            self.progress_base.setdefault(step, (event["t"], event["done"]))
            samples = [*self.samples.get(step, ()), (event["t"], event["done"])]
            self.samples[step] = samples[::2] if len(samples) > SAMPLES else samples

    def _leave_out_pause(self, until: float) -> None:
        """Move what was seen before a pause up to its end, as if there had been none: it is no work."""
        since, self._paused_at = self._paused_at, None
        if since is None or until <= since:
            return

        def moved(point: tuple[float, float]) -> tuple[float, float]:
            return (point[0] + until - since if point[0] <= since else point[0], point[1])

        self.progress_base = {step: moved(point) for step, point in self.progress_base.items()}
        self.samples = {step: [moved(point) for point in seen] for step, seen in self.samples.items()}

    def _named(self, state: State) -> State:
        """The state under the name that people gave the run."""
        name = self.labels.name or self._given
        return {**state, "name": name} if name else state

    def _look_for_labels(self, now: float) -> None:
        if now < self._next_labels:
            return
        self._next_labels = now + LABELS_INTERVAL
        gone = not self.path.exists()
        sign = (_sign(self.path / LABELS_FILE), _sign(self._record_path))
        if sign == self._labels_sign and gone == self.gone:
            return
        self._labels_sign = sign
        labels = self.labels if gone else load_labels(self.path)
        given = _record(self.path).get("name") or self._given
        if (labels, given, gone) == (self.labels, self._given, self.gone):  # a heartbeat in run.json
            return
        if gone != self.gone:
            self._types["liveness"] = self.version + 1
        self.labels, self._given, self.gone = labels, given, gone
        self.state = self._named(_copy(self._reader.state))
        self._types["labels"] = self.version + 1
        self.version += 1

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
        self.names: dict[str, str] = {}  # of these runs, by their ids
        self._feeds: dict[str, Feed] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._pages = 0
        self._next_list = 0.0
        self._tidy_at = math.inf
        self.watch = AlertWatch()
        self._index = RunIndex(self.runs_dir)
        self._list_lock = threading.Lock()
        self._list_error = ""  # the last one told
        self._told: set[tuple[str, str]] = set()  # what the thread could not do, and why

    def path_of(self, run_id: str) -> Path | None:
        """The folder of that run, or None when there is none; never a folder outside `runs_dir`."""
        if not run_id or run_id.startswith(".") or "/" in run_id or "\\" in run_id or "\0" in run_id:
            return None
        path = self.runs_dir / run_id
        return path if (path / "run.json").is_file() or (path / "events.jsonl").is_file() else None

    @property
    def pace(self) -> float:
        """Least seconds between two batches to one page: many get fewer each, so that all keep up."""
        return PACE if self._pages <= FEW else MANY_PACE

    def join(self) -> None:
        """A page opened: keep the list of runs fresh from now on."""
        with self._lock:
            if not self._pages:
                self.watch.begin()
            self._pages += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tritpress-reader", daemon=True)
                self._thread.start()
        self.refresh_list()

    def leave(self) -> None:
        """A page closed."""
        with self._lock:
            self._pages -= 1
        self._tidy_at = time.monotonic() + TIDY_AFTER

    def _tidy(self, pages: int) -> None:
        """Give back what closed pages held: a page is one large ring of references, and what was freed
        among the rest would stay with the process.
        """
        self._tidy_at = math.inf
        if not pages:  # else the server's loop would wait for it, and with it every page
            gc.collect()
        give_back_freed()

    def open(self, run_id: str) -> Feed | None:
        """The feed of that run, shared with other pages; `close` gives it back. None without such a run, or
        where it cannot be read: the log then says why.
        """
        path = self.path_of(run_id)
        if path is None:
            return None
        with self._lock:
            feed = self._feeds.get(run_id)
            if feed is None:
                try:
                    feed = self._feeds[run_id] = Feed(path)
                except Exception:  # whatever a folder holds, pages stand
                    log.exception("cannot open the run %s", path)
                    return None
                feed.earlier, feed.names = earlier_runs(self.runs, run_id), self.names
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
        self._next_list = time.monotonic() + LIST_INTERVAL
        with self._list_lock:
            try:
                runs = self._index.list()
            except Exception as error:  # neither a page nor the thread may end with it
                if repr(error) != self._list_error:
                    self._list_error = repr(error)
                    log.warning("cannot list the runs in %s", self.runs_dir, exc_info=error)
                return
            self._list_error = ""
            if runs != self.runs:
                self.runs = runs
                self.names = {run["id"]: str(run["name"] or run["id"]) for run in runs}
                self.list_version += 1
                for feed in list(self._feeds.values()):
                    feed.earlier, feed.names = earlier_runs(runs, feed.id), self.names

    def _run(self) -> None:
        while True:
            with self._lock:
                feeds, pages = list(self._feeds.values()), self._pages
            now = time.monotonic()
            for feed in feeds:
                try:
                    feed.poll(now)
                except Exception as error:  # one unreadable run must not stop the others
                    self._tell(f"cannot read the run {feed.path}", error)
            if pages and now >= self._next_list:
                self.refresh_list()
            if pages:
                self._watch(now)
            if now >= self._tidy_at:
                self._tidy(pages)
            self._wake.wait(LIVE_INTERVAL if feeds or pages else QUIET_INTERVAL)
            self._wake.clear()

    def _watch(self, now: float) -> None:
        try:
            self.watch.look(self.runs, now)
        except Exception as error:  # one odd log must not stop what else the thread does
            self._tell("cannot look for alerts", error)

    def _tell(self, words: str, error: Exception) -> None:
        """Log it once: what failed is tried again many times a second."""
        if (words, repr(error)) not in self._told:
            self._told.add((words, repr(error)))
            log.error("%s", words, exc_info=error)


def earlier_runs(runs: list[dict[str, Any]], run_id: str) -> list[list[float | None]]:
    """Seconds of the steps of the last `EARLIER` finished runs that are like that one."""
    alike = next((run["alike"] for run in runs if run["id"] == run_id), None)
    found = (run for run in runs if run["alike"] == alike and run["status"] == "finished")
    return [run["step_seconds"] for run in islice((run for run in found if run["id"] != run_id), EARLIER)]


def _copy(state: State) -> State:
    """A copy that later events leave alone: what `fold` changes in place is copied, the rest is shared."""
    copy = dict(state)
    copy["steps"] = [dict(step) for step in state["steps"]]
    copy["metrics"] = {name: list(points) for name, points in state["metrics"].items()}
    copy["finetune"] = list(state["finetune"])
    for key in ("layers", "evaluations", "figures", "gradients", "gradients_original", "gates", "acks"):
        copy[key] = dict(state[key])
    return copy


def _sign(path: Path) -> tuple[int, int, int] | None:
    """Another one when the file is written anew."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _record(path: Path) -> dict[str, Any]:
    """run.json; empty where there is none that can be read."""
    try:
        return RunDirectory(path).read_run()
    except TritpressError:
        return {}


def _is_alive(path: Path) -> bool | None:
    from tritpress.runs.launch import is_alive

    try:
        return bool(is_alive(RunDirectory(path)))
    except (OSError, ValueError, KeyError):
        return None
