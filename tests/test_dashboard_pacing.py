"""A browser that draws slowly is sent no more than it can draw, without a browser."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from dashboard_log import make_run
from tritpress.dashboard.pacing import EVERY, GRACE, LOST, Pacing
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import RunStore
from tritpress.events import EventWriter


def test_one_that_keeps_up_is_asked_now_and_then() -> None:
    pacing, sent, asked, now = Pacing(), 0, 0, 100.0
    for _ in range(1000):
        now += 0.01
        if pacing.may_send(now, 0.14):
            sent += 1
            if (number := pacing.question(now)) is not None:
                asked += 1
                pacing.answer(number, now + 0.05)
    assert sent == pytest.approx(10 / 0.15, abs=6) and asked == pytest.approx(10 / EVERY, abs=1)


@pytest.mark.parametrize("draw", [0.3, 1.0, 3.0, 15.0])
def test_what_waits_for_a_slow_one_does_not_grow(draw: float) -> None:
    """It draws one batch after the other, each in `draw` seconds."""
    pacing, now, free = Pacing(), 0.0, 0.0
    answers: list[tuple[float, int]] = []
    behind = []
    seconds = max(60.0, 20 * draw)
    for _ in range(round(100 * seconds)):
        now += 0.01
        while answers and answers[0][0] <= now:
            pacing.answer(answers.pop(0)[1], now)
        if pacing.may_send(now, 0.14):
            free = max(free, now) + draw
            behind.append(free - now)
            if (number := pacing.question(now)) is not None:
                answers.append((free, number))
    settled = behind[len(behind) // 3 :]
    assert max(settled) <= 1.01 * draw, "none waits for another"
    assert len(behind) >= 0.9 * seconds / draw, "and it is never left without any"


def test_one_that_never_answers_is_given_up_waiting_for() -> None:
    pacing, now, sent = Pacing(), 0.0, 0
    for _ in range(3000):
        now += 0.01
        if pacing.may_send(now, 0.14):
            sent += 1
            pacing.question(now)
    assert 2 <= sent <= 2 * (2 + GRACE / 0.14), "given up after 10 seconds and after 20 more"


def test_what_someone_waits_for_is_not_held_back() -> None:
    pacing = Pacing()
    assert pacing.question(0.0) is not None
    assert not pacing.may_send(2.0, 0.14) and pacing.may_send(2.0, 0.14, urgent=True)
    pacing.question(2.0)
    assert not pacing.may_send(2.1, 0.14, urgent=True), "no sooner than others"


def test_an_old_answer_is_none() -> None:
    pacing = Pacing()
    first = pacing.question(0.0)
    second = pacing.question(LOST)
    assert first is not None and second is not None and second > first
    pacing.answer(first, LOST + 0.1)
    assert not pacing.may_send(LOST + 1, 0.14)
    pacing.answer(second, LOST + 1)
    assert pacing.may_send(LOST + 1, 0.14)


def test_a_page_waits_until_its_browser_has_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "slow")
    writer = EventWriter(run.path)
    store = RunStore(tmp_path)
    session = Session(store)
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
    monkeypatch.setattr("tritpress.dashboard.session.time", clock)

    def more() -> bool:
        """Another event; whether the page takes it up."""
        nonlocal now
        now += 0.2
        writer.emit("log", message="one more")
        assert session.feed is not None
        session.feed.poll(now)
        before = session.seen
        session.beat()
        return session.seen != before

    try:
        store.refresh_list()
        session.open("slow")
        assert more() and session.viewport.asked == 1, "asked with the first batch"
        assert more() and not more() and not more(), "after the grace nothing more is sent"
        session.viewport.drawn = 1
        assert more() and session.viewport.asked == 2
        session.viewport.drawn = 2
        assert all(more() for _ in range(5)), "drawn at once: it keeps up"
    finally:
        writer.close()
