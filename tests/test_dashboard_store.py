"""The reader thread, the charts' data and the HTML of the live page, without a browser."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bokeh.models import ColumnDataSource
from dashboard_log import events, make_run, write_run
from tritpress.dashboard.app import app_path
from tritpress.dashboard.components.html import Markup, note
from tritpress.dashboard.components.sources import sync
from tritpress.dashboard.kept import GRAVE, RECENT, Kept
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import Feed, RunStore, _copy
from tritpress.dashboard.views.eta import TimeLeft, run_left
from tritpress.dashboard.views.events import SHOWN, EventSearch, event_lines, left_out_words
from tritpress.dashboard.views.overview import step_lines
from tritpress.dashboard.views.status import seconds_left, step_left
from tritpress.events import EventWriter, StateReader, fold, initial_state
from tritpress.runs.history import RunIndex, list_runs
from tritpress.runs.labels import edit_labels
from tritpress.runs.liveness import this_host


def wait_for(check: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_feed_follows_the_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    writer = EventWriter(run.path)
    all_events = list(events(run))
    for kind, fields in all_events[:30]:
        writer.emit(kind, **fields)
    store = RunStore(tmp_path)
    store.join()
    feed = store.open("r")
    assert feed is not None and store.open("r") is feed
    first, version = feed.state, feed.version
    before = len(first["layers"])
    for kind, fields in all_events[30:]:
        writer.emit(kind, **fields)
    writer.close()
    wait_for(lambda: feed.state["status"] == "finished")
    assert {"layer.finished", "gate", "run.finished"} <= feed.changed_since(version)
    assert feed.changed_since(feed.version) == set()
    assert len(first["layers"]) == before and first["status"] == "running", (
        "a page's state never changes under it"
    )
    fresh = StateReader(run.path)
    fresh.poll()
    assert feed.state == fresh.state, "who opens late and who followed see the same"
    store.close(feed)
    store.close(feed)
    assert store.open("r") is not feed
    store.leave()


def test_a_pause_is_no_slow_work(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    with closing(EventWriter(run.path)) as writer:
        writer.emit("run.started", model="/models/m", out="o", config={})
    feed, log = Feed(run.path), []

    def tell(t: float, type: str, **fields: object) -> None:
        log.append({"v": 1, "run": "r", "seq": len(log) + 2, "t": t, "type": type, **fields})

    tell(1000.0, "step.started", step=4)
    for k in range(6):
        tell(1010.0 + 10 * k, "step.progress", step=4, done=k + 1, total=10)
    tell(1061.0, "run.paused")
    tell(5061.0, "run.resumed", seconds=4000.0)
    tell(5069.0, "step.progress", step=4, done=7, total=10)
    with open(run.events_path, "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in log)
    assert feed.poll(time.monotonic() + 60)
    state, base = feed.state, feed.progress_base
    left = step_left(state["steps"][3], 5069.0, base[4], feed.samples[4])
    assert left is not None and left.low is not None
    assert 25 < left.low <= left.seconds <= (left.high or 0.0) < 35
    assert seconds_left(state["steps"][3], 5069.0, base[4]) == pytest.approx((59 / 6) * 3)
    assert seconds_left(state["steps"][3], 5069.0) == pytest.approx((69 / 7) * 3)
    assert step_lines(state, 5069.0)[3].time == "1 min 09 s"
    took = [None, None, None, 100.0, 1.0, 1.0, 1.0]
    assert run_left(state["steps"], 5069.0, None, [took]) is None  # steps 1 to 3 are still to come
    took[:3] = [0.0, 0.0, 0.0]
    assert run_left(state["steps"], 5069.0, None, [took]) == TimeLeft(31 + 3)


def test_paths_stay_inside(tmp_path: Path) -> None:
    inside = tmp_path / "runs"
    write_run(tmp_path, "outside", until="model")
    write_run(inside, "r", until="model")
    store = RunStore(inside)
    assert store.path_of("r") == inside / "r"
    for name in ("", ".", "..", "../outside", "/etc", "r/../r", "a\0b", "nope"):
        assert store.path_of(name) is None, name


def test_a_worker_that_is_gone_is_noticed(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r", until="gate")
    store = RunStore(tmp_path)
    feed = store.open("r")
    assert feed is not None and feed.alive and not feed.lost
    run.update_run(pid=2**22 - 1, process_start="1")
    feed.poll(time.monotonic() + 60)
    assert feed.lost and "liveness" in feed.changed_since(1)


ODD = [
    {"created": "2024-01-01T00:00:00", "status": "finished"},
    {"status": "running", "launched": "2024-01-01"},
    {"status": "running", "host": "elsewhere", "pid": [], "heartbeat": "then", "created": {}},
    {"status": "running", "host": this_host(), "pid": "x", "name": 5, "model": [], "error": {"a": 1}},
    {"status": [], "created": math.nan, "origin": 7, "after": "x"},
    {"status": "running", "launched": 10**400},
    {"status": "running", "pid": 1, "host": "h", "heartbeat": math.inf},
]


def test_odd_records_of_runs_neither_hide_the_others_nor_stop_a_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, "good")
    for number, record in enumerate(ODD):
        make_run(tmp_path, f"odd{number}").write_run(record)
    worse = make_run(tmp_path, "worse")
    worse.snapshot_path.write_text('{"v": 1, "offset": 0, "steps": [1]}')
    runs = list_runs(tmp_path)
    assert {run["id"] for run in runs} == {"good", *(f"odd{number}" for number in range(len(ODD)))}
    assert runs[0]["id"] == "good" and not any(run["alive"] for run in runs[1:])
    session = Session(RunStore(tmp_path))
    caplog.clear()
    session.store.refresh_list()
    session.store.refresh_list()
    worse.update_run(heartbeat=1.0)  # as the worker of a run at work does
    session.store.refresh_list()
    assert [str(worse.path) in record.message for record in caplog.records] == [True], "said once"
    for name in ("good", *(f"odd{number}" for number in range(len(ODD)))):
        session.open(name)
        assert session.feed is not None and session.feed.id == name
        for tab in ("runs", "overview"):
            session.routing.go({"run": name, "tab": tab})


def test_a_run_whose_summary_fails_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(record: dict[str, Any]) -> bool:
        if record["pid"] == 7:
            raise OverflowError("of all things")
        return False

    write_run(tmp_path, "good")
    make_run(tmp_path, "odd").update_run(pid=7)
    monkeypatch.setattr("tritpress.runs.history.is_alive_record", fails)
    assert [run["id"] for run in list_runs(tmp_path)] == ["good"]


def test_what_fails_at_every_look_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, "r")
    store = RunStore(tmp_path)
    feed = store.open("r")
    assert feed is not None
    asked = []

    def fails(now: float) -> bool:
        asked.append(now)
        raise KeyError("a" if len(asked) < 3 else "b")

    monkeypatch.setattr(feed, "poll", fails)
    monkeypatch.setattr(store.watch, "look", lambda *_: 1 / 0)
    store.join()
    wait_for(lambda: len(asked) >= 5)
    store.close(feed)
    store.leave()
    told = sorted(record.message for record in caplog.records)
    assert told == ["cannot look for alerts", *[f"cannot read the run {feed.path}"] * 2]


def test_a_list_that_cannot_be_made_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: RunIndex) -> list[dict[str, Any]]:
        raise TypeError("of all things")

    monkeypatch.setattr(RunIndex, "list", fail)
    store = RunStore(tmp_path)
    store.join()
    assert store.runs == []
    store.leave()


@pytest.mark.parametrize("until", ["gate", None])
def test_a_log_of_a_later_version_opens(tmp_path: Path, until: str | None) -> None:
    run = write_run(tmp_path, "r", until=until)
    seq = StateReader(run.path).state["seq"]
    odd: list[dict[str, Any]] = [
        {"type": "layer.finished", "tensor": "x"},
        {"type": "handoff", "items": 5},
        {"type": "run.queued", "after": 7},
        {"type": "gate"},
        {"type": "model", "model": "m", "targets": []},
        {"type": "model", "model": {}, "targets": 5},
        {"type": "plan", "tensors": {"x": 1}},
        {"type": "plan", "tensors": ["x"]},
    ]
    if until is None:
        odd.append({"type": "run.finished", "status": "finished", "exit_code": 0})
    with open(run.events_path, "a") as file:
        for number, event in enumerate(odd, seq + 1):
            file.write(json.dumps({"v": 2, "run": "r", "seq": number, "t": time.time(), **event}) + "\n")
    session = Session(RunStore(tmp_path))
    session.routing.go({"run": "r", "tab": "overview"})
    assert session.feed is not None
    for tab in session.tabs:
        session.shown_tabs.active = session.tabs.index(tab)
    assert not session.broken
    lines, _ = event_lines(session.feed.kept.events)
    assert any(line["text"] == "handoff: written in a way that is not known here" for line in lines)


def test_a_run_that_cannot_be_opened_is_said_to_be_and_takes_no_page_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, "good")
    make_run(tmp_path, "bad").snapshot_path.write_text('{"v": 1, "offset": 0, "steps": [1]}')
    store = RunStore(tmp_path)
    one, other = Session(store), Session(store)
    one.open("good")
    other.open("good")
    feed = one.feed
    assert feed is not None and feed is other.feed and feed.readers == 2
    caplog.clear()
    one.open("bad")
    assert one.feed is None and one.context.missing == "bad" and feed.readers == 1
    assert [record.message for record in caplog.records] == [f"cannot open the run {tmp_path / 'bad'}"]
    notes = [note.message for note in one.toasts.area.notifications]
    assert any("cannot be read" in message for message in notes)
    one.open("good")
    one.open("")
    assert feed.readers == 1, "the other page's, given back by nobody else"


def test_a_page_reads_while_the_thread_writes(tmp_path: Path) -> None:
    class Growing(dict[str, int]):
        """A type of event comes while the others are looked through."""

        def items(self) -> Any:
            for pair in super().items():
                self[f"more {len(self)}"] = 9
                yield pair

    write_run(tmp_path, "r", until="gate")
    feed = RunStore(tmp_path).open("r")
    assert feed is not None
    feed._types = Growing({"gate": 3, "log": 1})
    assert feed.changed_since(2) == {"gate"}
    state = initial_state("r")
    seen = _copy(state)
    fold(state, {"seq": 1, "t": 1.0, "type": "gradient", "layer": "x", "norm": 1.0, "original": 2.0})
    assert seen == _copy(initial_state("r")), "what a page holds stays as it was"


def test_an_open_page_follows_the_name_that_a_run_at_work_is_given(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", name="first name")
    with closing(EventWriter(run.path)) as writer:
        writer.emit("run.started", model="m", config={}, name="first name")
    session = Session(RunStore(tmp_path))
    session.open("r")
    feed = session.feed
    assert feed is not None and feed.name == "first name"
    version, now = feed.version, time.monotonic()
    run.update_run(heartbeat=time.time())
    assert not feed.poll(now + 10) and feed.version == version, "a heartbeat is no news"
    run.update_run(name="<b>second</b>")
    assert feed.poll(now + 20) and feed.state["name"] == feed.name == "<b>second</b>"
    session.told = 0.0
    session.refresh()
    assert "second" in str(session.bar.pane.object)
    assert "<b>second</b>" in session.viewport.tab_title
    edit_labels(run.path, name="labelled")
    assert feed.poll(now + 30) and feed.name == "labelled"
    edit_labels(run.path, name="")
    assert feed.poll(now + 40) and feed.name == "<b>second</b>"
    shutil.rmtree(run.path)
    assert feed.poll(now + 50) and feed.gone and feed.name == "<b>second</b>"


def test_sync_sends_as_little_as_possible() -> None:
    source = ColumnDataSource({"a": [], "b": []})
    assert sync(source, {"a": [1, 2], "b": [3.0, math.nan]}) == "all"
    assert sync(source, {"a": [1, 2], "b": [3.0, math.nan]}) == "nothing"
    assert sync(source, {"a": [1, 2], "b": [3.0, 4.0]}) == "patch"
    assert source.data["b"] == [3.0, 4.0]
    assert sync(source, {"a": [1, 2, 5], "b": [3.0, 4.0, 6.0]}) == "stream"
    assert source.data["a"] == [1, 2, 5]
    assert sync(source, {"a": [9, 2, 5, 7], "b": [3.0, 4.0, 6.0, 8.0]}) == "all", "never two in one"
    assert sync(source, {"a": [1], "b": [2.0]}) == "all"


def test_markup_escapes() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    assert "<img" not in note("bad", hostile)
    assert "&lt;img" in Markup("<b>{}</b>").format(hostile)


def test_a_session_shows_every_tab(tmp_path: Path) -> None:
    write_run(tmp_path, "r", name="<img src=x>")
    store = RunStore(tmp_path)
    store.refresh_list()
    session = Session(store)
    session.open("r")
    assert session.bar.pane.object and "<img" not in session.bar.pane.object
    assert "6.41×" in session.bar.pane.object and "4.56 bits a weight" in session.bar.pane.object
    for index, tab in enumerate(session.tabs):
        session.shown_tabs.active = index
        assert tab.built and tab.seen == session.feed.version
    progress = next(tab for tab in session.tabs if tab.key == "progress")
    lengths = {len(column) for column in progress.parts.heatmap.source.data.values()}
    assert lengths == {42}
    session.open("nope")
    assert session.feed is None and "no run" in session.sidebar.message.pane.object
    session.open("")


def noisy_log(folder: Path) -> tuple[Path, EventWriter]:
    """A long log with warnings at its beginning and a failed gate in the middle."""
    run = make_run(folder, "noisy")
    writer = EventWriter(run.path)
    writer.emit("run.started", model="/m", out="/o", config={}, name="n", resumed=False, pid=1, host="h")
    writer.emit("alert", rule="nan", level="critical", message="the loss is not finite")
    writer.emit("log", level="warning", message='a "type":"alert" that is none')
    for number in range(800):
        writer.emit("step.progress", step=4, done=number, total=800, detail="")
        writer.emit("log", message=f"ordinary {number}")
        if number == 400:
            writer.emit("gate", name="ratio", target=6.0, actual=5.0, passed=False)
    writer.flush()
    return run.path, writer


def test_early_warnings_stay_in_the_list_of_events(tmp_path: Path) -> None:
    path, writer = noisy_log(tmp_path)
    opened = Feed(path)
    assert len(opened.kept.recent) == RECENT and not opened.kept.grave
    assert opened.kept.recent[0]["message"] == "ordinary 301", "what has no line is not kept"
    version = opened.version
    opened.poll(time.monotonic())
    opened.poll(time.monotonic())
    assert opened.version > version and "log" in opened.changed_since(version)
    kept = opened.kept
    assert [event["type"] for event in kept.grave] == ["alert", "log"]
    assert (kept.older, kept.older_grave) == (1 + 301, 0), "the beginning and the first messages"
    lines, more = event_lines(kept.events, EventSearch(level="warning"))
    assert [line["level"] for line in lines] == ["warning", "warning", "error"] and more == 0
    assert len(event_lines(kept.events, EventSearch(level="error"))[0]) == 1
    lines, more = event_lines(kept.events)
    total = 1 + 2 + 800 + 1
    assert len(lines) == SHOWN and len(lines) + more + kept.older == total
    words = left_out_words(more, kept.older + kept.older_grave)
    assert words.startswith(f"{total - SHOWN} older events not shown.")
    assert event_lines(kept.events, EventSearch("finite"))[0][0]["text"] == "the loss is not finite"
    for number in range(2 * RECENT):
        writer.emit("log", message=f"later {number}", level="warning" if number % 2 else "info")
    writer.close()
    opened.poll(time.monotonic() + 60)
    assert len(opened.kept.events) == RECENT + 3 + 250 and opened.kept.older == total + 750 - 3 - RECENT
    again = Feed(path)
    while again._history is not None:
        again.poll(time.monotonic() + 60)
    assert again.kept == opened.kept, "who opens late and who followed see the same"


def test_only_the_newest_warnings_are_kept() -> None:
    warning = {"type": "log", "t": 0.0, "level": "warning"}
    warnings = [{**warning, "seq": n, "message": str(n)} for n in range(1300)]
    kept = Kept().with_new(warnings)
    assert len(kept.grave) == GRAVE and kept.older_grave == 1300 - RECENT - GRAVE and kept.older == 0
    lines, more = event_lines(kept.events, EventSearch(level="warning"))
    assert lines[0]["text"] == "1299" and len(lines) == 500 and more == 500
    assert left_out_words(0, 0) == ""


def test_lists_carry_what_is_saved_of_them(tmp_path: Path) -> None:
    write_run(tmp_path, "r", name='a "quoted" name')
    session = Session(RunStore(tmp_path))
    session.context.open_run("r")
    page = session.tab.steps.pane.object
    lines = [json.loads(html.unescape(line)) for line in re.findall(r'data-line="([^"]*)"', page)]
    assert lines[0] == ["Step", "Title", "State", "Time", "About"] and len(lines) == 8
    assert [line[0] for line in lines[1:]] == list(range(1, 8)) and 'data-csv="steps"' in page
    assert lines[4][1:4] == ["Ternarization", "done", "6.0 s"]


def test_hidden_tabs_do_no_work(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    writer = EventWriter(run.path)
    script = list(events(run))
    for kind, fields in script[:25]:
        writer.emit(kind, **fields)
    session = Session(RunStore(tmp_path))
    session.context.open_run("r")
    overview = session.tab
    assert overview.key == "overview" and [tab for tab in session.tabs if tab.built] == [overview]
    shown = overview.seen
    session.visible = False
    for kind, fields in script[25:60]:
        writer.emit(kind, **fields)
    writer.close()
    session.feed.poll(time.monotonic() + 60)
    session.tick()
    assert overview.seen == shown
    session.visible = True
    session.tick()
    assert overview.seen == session.feed.version > shown


def test_the_app_is_where_panel_finds_it() -> None:
    assert app_path().is_file() and app_path().stem == "dashboard"
    root = Path(__file__).parent.parent / "dashboard" / "main.py"
    assert root.is_file() and "servable" in root.read_text() and len(root.read_text().splitlines()) < 12
