"""A run that failed, was stopped or lost its worker: no tab, nor the report, promises what will not come."""

from __future__ import annotations

import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dashboard_log import events, make_run, write_run
from tritpress.dashboard.components.html import Html
from tritpress.dashboard.report.facts import read_facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import RunStore
from tritpress.dashboard.views import overview, quality
from tritpress.dashboard.views.compare import compare
from tritpress.dashboard.views.ending import ended_words
from tritpress.dashboard.views.progress import Board, map_targets
from tritpress.events import EventWriter, StateReader, fold
from tritpress.runs.comparison import Side
from tritpress.runs.directory import REMOTE, RunDirectory

PROMISE = re.compile(r"waiting|(in|with) step \d|\byet\b|so far|once it|as soon as|Judged in", re.I)
ENDS = ("failed", "stopped", "lost")
PLACES = [("evaluation", 1), ("layer.finished", 11), ("finetune.step", 9), ("gate", 3)]
"""Where the run ends: before the n-th event of that type, in steps 2, 4, 5 and 7."""


def broken(runs: Path, how: str, until: str = "run.finished", count: int = 1) -> RunDirectory:
    """A run that ends so, there."""
    run = make_run(runs, how, name="Broken")
    writer = EventWriter(run.path)
    for kind, fields in events(run, layers=3, steps=30):
        count -= kind == until
        if count == 0:
            break
        writer.emit(kind, **fields)
    if how == "failed":
        writer.emit("run.failed", error="no space left", exit_code=1, write_seconds=0.0, seconds=1.0)
    elif how == "stopped":
        writer.emit("run.finished", status="stopped", exit_code=None, report=None, write_seconds=0.0)
    writer.close()
    run.update_run(**({"process_start": "another"} if how == "lost" else {"status": how}))
    return run


def words_of(html: str) -> str:
    """What is read of it, without the signs that only stand in attributes."""
    return " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", html, flags=re.S).split())


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize(("until", "count"), PLACES)
def test_nothing_is_promised_on_the_page_or_in_the_report(
    tmp_path: Path, how: str, until: str, count: int
) -> None:
    run = broken(tmp_path, how, until, count)
    session: Any = Session(RunStore(tmp_path))
    session.context.open_run(how)
    assert session.feed is not None
    session.feed.poll(time.monotonic() + 60)
    assert session.feed.lost == (how == "lost")
    for tab in session.tabs:
        if tab.key in ("runs", "compare"):
            continue
        session.context.open_run(how, tab.key)
        text = " ".join(words_of(pane.object) for pane in tab.holder.select(Html) if pane.visible)
        assert text, tab.key
        assert not PROMISE.search(text), (tab.key, PROMISE.search(text), text)
        if tab.key == "progress" and until != "evaluation":
            states = set(tab.parts.heatmap.source.data["state"])
            assert "waiting" not in states and (until != "layer.finished" or "not reached" in states)
    report = words_of(report_html(read_facts(run.path)))
    assert not PROMISE.search(report), (PROMISE.search(report), report)


@pytest.mark.parametrize("how", ENDS)
def test_a_run_worked_on_elsewhere_is_not_told_to_be_resumed_here(tmp_path: Path, how: str) -> None:
    run = broken(tmp_path, how, "layer.started")
    gone = {"pid": 0, "heartbeat": 0.0} if how == "lost" else {}
    run.update_run(origin="remote", host="remote", **gone)
    session: Any = Session(RunStore(tmp_path))
    session.context.open_run(how)
    session.feed.poll(time.monotonic() + 60)
    assert session.feed.remote and session.feed.lost == (how == "lost")
    for key in ("overview", "progress", "outputs", "diff", "tuning"):
        session.context.open_run(how, key)
        text = " ".join(words_of(pane.object) for tab in session.tabs for pane in tab.holder.select(Html))
        assert text and not re.search(r"Resume|on disk|worker\.log|worker process", text), text
    assert "Resume" not in words_of(report_html(read_facts(run.path)))


@pytest.mark.parametrize("how", ENDS)
def test_page_and_report_say_the_same_of_a_run_that_broke_off(tmp_path: Path, how: str) -> None:
    facts = read_facts(broken(tmp_path, how, "layer.finished", 11).path)
    cards = quality.gate_cards(facts.state, facts.lost)
    assert {(card.verdict, card.mark, card.word) for card in cards} == {("unjudged", "–", "not judged")}
    assert {card.advice for card in cards} == {"The run ended before step 7."}
    words = [line.word for line in overview.step_lines(facts.state, 0.0, lost=facts.lost)]
    fourth = {"failed": "failed", "stopped": "stopped here", "lost": "interrupted"}[how]
    assert words == ["done", "done", "skipped", fourth, *["not reached"] * 3]
    tiles = {tile.key: tile.beside for tile in overview.tiles(facts.state, facts.lost)}
    assert tiles["perplexity"] == "not measured" and tiles["ratio"].endswith("planned")
    report = words_of(report_html(facts))
    assert report.count("– not judged") == 5 and report.count("– not reached") == 3


def test_beside_a_finished_run_its_gates_are_not_awaited(tmp_path: Path) -> None:
    whole = read_facts(write_run(tmp_path, "whole", layers=2, steps=2).path)
    for how, status in (("failed", "failed"), ("stopped", "stopped"), ("lost", "died")):
        facts = read_facts(broken(tmp_path, how, "gate").path)
        sides = [Side(facts.id, "a", status, facts.state), Side(whole.id, "b", "finished", whole.state)]
        assert {row.cells[0].word for row in compare(sides).gates} == {"not judged"}
    going = StateReader(write_run(tmp_path, "going", layers=2, until="gate").path).state
    sides = [Side("going", "a", "running", going), Side(whole.id, "b", "finished", whole.state)]
    assert {row.cells[0].word for row in compare(sides).gates} == {"not judged yet"}


def test_a_run_that_goes_on_waits_again(tmp_path: Path) -> None:
    run = broken(tmp_path, "stopped", "layer.finished", 11)
    state = StateReader(run.path).state
    assert ended_words(state, 4) == "The run ended before step 4 was done."
    board = Board(map_targets(state["targets"]))
    board.update(state)
    assert board.states["unreached"] == 11 and board.states["waiting"] == 0
    fold(state, {"v": 1, "run": "r", "seq": state["seq"] + 1, "t": 1.0, "type": "run.started"})
    changed, _ = board.update(state)
    assert len(changed) == 11 and board.states["waiting"] == 11
    assert {card.verdict for card in quality.gate_cards(state)} == {"waiting"}
    assert [line.state for line in overview.step_lines(state, 0.0)][3:] == ["waiting"] * 4


def test_a_finished_run_promises_no_figure_that_it_has_not(tmp_path: Path) -> None:
    state = StateReader(write_run(tmp_path, "r").path).state
    del state["gates"]["ratio"], state["evaluations"]["packed"]
    card = quality.gate_cards(state)[0]
    assert (card.verdict, card.advice) == ("unjudged", "The run finished without judging it.")
    assert {tile.key: tile.beside for tile in overview.tiles(state)}["perplexity"] == "not measured"


def test_a_finished_run_from_elsewhere_offers_nothing_empty_to_copy(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pushed")
    with closing(EventWriter(run.path)) as writer:
        for kind, fields in events(run):
            told = {key: value for key, value in fields.items() if key != "out"}
            if kind == "output":
                told["path"] = "/".join(Path(told["path"]).parts[-2:])
            writer.emit(kind, **told)
    run.update_run(status="finished", origin=REMOTE, host=REMOTE, pid=0)
    session: Any = Session(RunStore(tmp_path))
    session.context.open_run("pushed", "outputs")
    tab = next(tab for tab in session.tabs if tab.key == "outputs")
    html = "".join(pane.object for pane in tab.holder.select(Html))
    report = report_html(read_facts(run.path))
    for text in (html, report):
        assert "OUT/packed" in text and "machine that worked on this run" in text
        assert "load(&#34;&#34;)" not in text and "load(&quot;&quot;)" not in text
    assert 'data-copy=""' not in html and "Nothing written" not in html and "data-copy" in html
