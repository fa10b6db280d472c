"""The list of runs as data: what a search finds, which state a run is in, and the order of what is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dashboard_log import write_run
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import RunStore
from tritpress.dashboard.views.runs import (
    IN_SELECTOR,
    OLDER,
    ORDERS,
    STATES,
    Search,
    compare_words,
    found_runs,
    run_list,
    run_options,
    state_group,
)


def entry(number: int, name: str, status: str, **more: Any) -> dict[str, Any]:
    return {"id": f"id-{number}", "name": name, "status": status, "created": 1000.0 + number, **more}


RUNS = [
    entry(
        1, "Alpha", "finished", gates={"ratio": True, "accuracy": None}, ratio_file=6.0,
        perplexity_change=0.04, seconds=50.0, tags=["nightly", "a"], model="/models/llama-small/",
    ),
    entry(
        2, "beta", "finished", gates={"ratio": False}, ratio_file=9.0, perplexity_change=0.2, seconds=10.0,
        note="two planes\nfor the talk", model={"path": "/models/Straße"},
    ),
    entry(3, "Gamma", "failed", error="no space left", ratio_file=float("nan")),
    entry(4, "delta", "died", tags=["nightly"]),
    entry(5, "Epsilon", "stopped", ratio_file=7.0, perplexity_change=-0.01),
    entry(6, "zeta", "running", ratio_file=1.0, alive=True),
    entry(7, "eta", "queued"),
]  # fmt: skip


def names(**search: str) -> list[str]:
    return [run["name"] for run in found_runs(RUNS, Search(**search))]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ALPHA", ["Alpha"]),
        ("id-2", ["beta"]),
        ("llama small", ["Alpha"]),
        ("strasse", ["beta"]),
        ("talk planes", ["beta"]),
        ("nightly", ["delta", "Alpha"]),
        ("nightly delta", ["delta"]),
        ("nothing of the kind", []),
        ("  ", ["eta", "zeta", "Epsilon", "delta", "Gamma", "beta", "Alpha"]),
    ],
)
def test_every_word_is_looked_for_in_name_id_model_tags_and_note(words: str, found: list[str]) -> None:
    assert names(words=words) == found


def test_every_run_is_in_one_state_of_the_filter() -> None:
    found = {state: names(state=state) for state in STATES if state}
    assert found == {
        "live": ["eta", "zeta"],
        "passed": ["Alpha"],
        "gates": ["beta"],
        "failed": ["delta", "Gamma"],
        "stopped": ["Epsilon"],
    }
    assert sum(map(len, found.values())) == len(RUNS) == len(names(state=""))
    assert {state_group(run) for run in RUNS} <= set(STATES)
    assert state_group(entry(8, "new", "finished")) == "passed", "no gate was asked for"


def test_tags_are_whole_words_and_narrow_with_the_rest() -> None:
    assert names(tag="nightly") == ["delta", "Alpha"] and names(tag="night") == []
    assert names(tag="nightly", state="passed") == ["Alpha"]
    assert names(tag="nightly", state="passed", words="delta") == []
    assert run_list(RUNS, Search(words="beta")).tags == ("a", "nightly"), "tags of all runs are offered"


def test_orders_have_those_at_work_on_top_and_the_unknown_last() -> None:
    over = {order: [name for name in names(order=order) if name not in ("eta", "zeta")] for order in ORDERS}
    assert over == {
        "": ["Epsilon", "delta", "Gamma", "beta", "Alpha"],
        "name": ["Alpha", "beta", "delta", "Epsilon", "Gamma"],
        "ratio": ["beta", "Epsilon", "Alpha", "Gamma", "delta"],
        "perplexity": ["Epsilon", "Alpha", "beta", "Gamma", "delta"],
        "length": ["Alpha", "beta", "Gamma", "delta", "Epsilon"],
    }
    for order in (*ORDERS, "of no name"):
        assert set(names(order=order)[:2]) == {"eta", "zeta"}, order
    assert names(order="of no name") == names()


def test_pages_are_held_within_bounds() -> None:
    whole = [row.name for row in run_list(RUNS).rows]
    pages = [run_list(RUNS, page=page, a_page=3) for page in range(3)]
    assert [row.name for page in pages for row in page.rows] == whole
    assert [len(page.rows) for page in pages] == [3, 3, 1] and pages[0].pages == 3
    assert run_list(RUNS, page=99, a_page=3).page == 2 and run_list(RUNS, page=-1, a_page=3).page == 0
    nothing = run_list(RUNS, Search(words="nothing of the kind"), page=4)
    assert (nothing.rows, nothing.found, nothing.total, nothing.page, nothing.pages) == ((), 0, 7, 0, 1)


def test_how_many_can_be_compared() -> None:
    assert "two to six" in compare_words(1) and "at most six" in compare_words(7)
    assert compare_words(2) == compare_words(6) == ""


def test_the_selector_tells_runs_of_one_name_apart() -> None:
    twice = [*RUNS, {**RUNS[0], "id": "id-9"}]
    options = run_options(twice, "gone")
    assert set(options.values()) == {"", "gone", *(run["id"] for run in twice)}


def test_a_selector_says_that_there_are_older_runs() -> None:
    assert OLDER not in run_options(RUNS).values() and RunStore(".").path_of(OLDER) is None
    many = [entry(number, f"run {number}", "finished") for number in range(IN_SELECTOR + 3)]
    options = run_options(many, "id-1", "")
    assert list(options.items())[-1] == ("… 2 older runs: in Runs", OLDER)
    assert len(options) == 1 + IN_SELECTOR + 1 + 1
    assert "id-1" in options.values() and not {"id-0", "id-2"} & set(options.values())


def test_the_entry_for_older_runs_leads_to_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritpress.dashboard.views.runs.IN_SELECTOR", 1)
    for name in ("oldest", "old", "middle", "new"):
        write_run(tmp_path, name, until="model")
    store = RunStore(tmp_path)
    store.refresh_list()
    session: Any = Session(store)
    session.context.open_run("old")
    assert session.selector.value == "old" and OLDER in session.selector.options.values()
    session.selector.value = OLDER
    assert session.tab.key == "runs" and session.selector.value == "old" == session.feed.id
    session.context.open_run("old,middle", "compare")
    picker = session.tab.picker
    assert picker.value == ["old", "middle"] and list(picker.options.values())[-1] == OLDER
    picker.value = ["old", "middle", OLDER]
    assert session.tab.key == "runs" and picker.value == ["old", "middle"]
    assert session.context.runs == ("old", "middle")
