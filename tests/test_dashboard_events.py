"""The list of events: a search of the whole log, days beside the times, runs by their names."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dashboard_log import events, make_run
from tritpress.dashboard.logsearch import LogSearch
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import RunStore
from tritpress.dashboard.views.events import SHOWN, EventSearch, event_lines, found_words
from tritpress.events import EventWriter
from tritpress.runs.directory import RunDirectory

LAYERS = 126


def pressed(runs_dir: Path) -> tuple[RunDirectory, EventWriter]:
    """A run of 882 tensors, all of them pressed."""
    run = make_run(runs_dir, "r")
    writer = EventWriter(run.path)
    for kind, fields in events(run, LAYERS):
        if kind == "finetune.step":
            break
        writer.emit(kind, **fields)
    writer.flush()
    return run, writer


def looked(run: RunDirectory, **search: str) -> LogSearch:
    found = LogSearch(run.events_path, EventSearch(**search))
    found.look()
    return found


def test_a_search_finds_what_lies_far_back_in_the_log(tmp_path: Path) -> None:
    run, writer = pressed(tmp_path)
    first = looked(run, words="LAYERS.0. q_proj")
    assert first.whole and first.found == 1
    assert first.newest[0]["name"] == "model.layers.0.self_attn.q_proj.weight"
    assert "histogram" not in first.newest[0], "what is kept to be listed is short"
    every = looked(run, kind="layer")
    assert every.found == 7 * LAYERS and len(every.newest) == SHOWN
    assert every.newest[-1]["name"].startswith(f"model.layers.{LAYERS - 1}."), "the last ones are kept"
    assert looked(run, words="layers.0. no_such_part").found == 0
    assert looked(run, level="warning").found == 0
    writer.emit("log", level="warning", message="layers.0. of another kind")
    writer.emit("log", message="nothing of the kind")
    writer.close()
    first.look()
    assert first.found == 1, "both words are asked for"
    every.look()
    assert every.found == 7 * LAYERS, "a second look takes nothing twice"
    assert looked(run, level="warning").found == 1


def test_a_search_that_is_given_up_ends_and_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    run, writer = pressed(tmp_path)
    writer.close()
    search = LogSearch(run.events_path, EventSearch(kind="layer"))
    search.give_up()
    search.look()
    assert not search.whole and search.found == 0
    nothing = LogSearch(tmp_path / "nowhere" / "events.jsonl", EventSearch("x"))
    nothing.look()
    assert nothing.whole and nothing.found == 0


def test_what_a_search_says(tmp_path: Path) -> None:
    assert "nothing of the kind" in found_words(0, 0)
    assert found_words(1, 1) == "1 event found in the whole log."
    assert found_words(1300, 200) == "1,300 events found in the whole log; the last 200 of them are listed."


def shown_of(tab: Any) -> tuple[int, str]:
    return tab.events.lines.count('"key"'), str(tab.left_out.pane.object)


def settled(session: Session, words: str) -> Any:
    deadline = time.monotonic() + 20
    while words not in shown_of(session.tab)[1]:
        assert time.monotonic() < deadline, shown_of(session.tab)
        time.sleep(0.02)
        session.tick()
    return session.tab


def test_the_overview_looks_through_the_log_and_goes_on_with_it(tmp_path: Path) -> None:
    _, writer = pressed(tmp_path)
    session = Session(RunStore(tmp_path))
    session.context.open_run("r")
    tab: Any = session.tab
    assert tab.key == "overview" and "not shown" in shown_of(tab)[1]
    tab.find.value_input = "layers.0."
    assert "Looking through" in shown_of(tab)[1] and shown_of(tab)[0] == 0
    settled(session, "7 events found in the whole log.")
    assert shown_of(tab)[0] == 7 and "self_attn.q_proj" in tab.events.lines

    writer.emit("log", level="warning", message="layers.0. once more")
    writer.close()
    assert session.feed is not None
    session.feed.poll(time.monotonic() + 60)
    settled(session, "8 events found in the whole log.")
    assert tab.events.lines.index("once more") < tab.events.lines.index("q_proj"), "newest first"

    tab.level.value = "warning"
    settled(session, "1 event found in the whole log.")
    tab.find.value_input = "no such thing"
    settled(session, "nothing of the kind")
    assert "No event matches" in tab.no_events.pane.object and tab.looking is not None
    tab.find.value_input, tab.level.value = "", "info"
    assert tab.looking is None and "not shown" in shown_of(tab)[1] and shown_of(tab)[0] == SHOWN


def test_the_day_is_said_where_it_changes() -> None:
    def at(year: int, month: int, day: int, hour: int) -> float:
        return time.mktime((year, month, day, hour, 30, 15, 0, 0, -1))

    days = [(2025, 12, 31, 23), (2026, 3, 1, 1), (2026, 3, 1, 2), (2026, 3, 2, 0), (2026, 3, 2, 9)]
    moments = [at(*day) for day in days]
    log = [{"type": "log", "seq": n, "t": t, "message": str(n)} for n, t in enumerate(moments)]
    lines, _ = event_lines(log, now=at(2026, 3, 2, 10))
    assert [line["day"] for line in lines] == ["", "", "01 Mar", "", "31 Dec 2025"]
    assert [line["time"] for line in lines] == ["09:30:15", "00:30:15", "02:30:15", "01:30:15", "23:30:15"]
    assert lines[2]["at"] == "2026-03-01 02:30:15"
    again, _ = event_lines(log[:4], now=at(2026, 3, 9, 1))
    assert [line["day"] for line in again] == ["02 Mar", "01 Mar", "", "31 Dec 2025"], "above it is today"
    assert [line["day"] for line in event_lines(log, EventSearch("1"), now=at(2026, 3, 1, 3))[0]] == [""]


def test_a_queued_run_waits_for_others_by_their_names() -> None:
    queued = {"type": "run.queued", "seq": 1, "t": 0.0, "after": ["id-1", "id-2"]}
    names = {"id-1": "Llama, two planes"}
    (line,), _ = event_lines([queued], names=names)
    assert line["text"] == "Waits in the queue for Llama, two planes, id-2"
    assert len(event_lines([queued], EventSearch("two planes"), names)[0]) == 1
    assert event_lines([queued], EventSearch("id-1"), names)[0] == []
