"""How a page opens: what the server writes at once, the session that is kept ready, the data it sends."""

from __future__ import annotations

import asyncio
import http.client
import time
from pathlib import Path
from typing import Any

import pytest
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import ColumnDataSource, ImportedStyleSheet
from bokeh.server.session import ServerSession
from dashboard_log import make_run, write_run
from server_helper import TOKEN
from tritpress.dashboard import opening
from tritpress.dashboard.session import Session
from tritpress.dashboard.shell import shell
from tritpress.dashboard.store import RunStore
from tritpress.dashboard.views.metrics import POINTS
from tritpress.events import EventWriter

HOSTILE = '<img src=x onerror="alert(1)"> data-x="1"'


def test_the_shell_has_the_runs_figures_and_no_names_of_the_pages_own_parts(tmp_path: Path) -> None:
    write_run(tmp_path, "r", name=HOSTILE)
    store = RunStore(tmp_path)
    feed = store.open("r")
    assert feed is not None
    text = str(shell(feed, "overview"))
    assert "6.41×" in text and "Accuracy kept" in text and "Validation" in text
    assert "&lt;img src=x" in text and "<img" not in text
    assert "data-early-status" in text and " data-status" not in text and " data-figure" not in text
    other = str(shell(feed, "metrics"))
    assert "6.41×" in other and "Accuracy kept" not in other
    store.close(feed)
    store.refresh_list()
    assert "&lt;img src=x" in str(shell(None, "runs", store.runs))
    assert shell(None, "", dark=True) != shell(None, "")


def read_page(port: int, query: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", f"/dashboard{query}", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        assert answer.status == 200 and "charset=utf-8" in answer.headers["Content-Type"].lower()
        return answer.read().decode()
    finally:
        connection.close()


def test_a_page_begins_with_its_run_whether_or_not_a_session_was_ready(port: int, runs: Path) -> None:
    write_run(runs, "shown", name=HOSTILE)
    pages = [read_page(port, "?run=shown") for _ in range(2)]  # the second head is known to be the same
    time.sleep(6)
    pages.append(read_page(port, "?run=shown"))
    for text in pages:
        places = [text.index(mark) for mark in ("<head>", "data-early-status", "bokeh", "data-root-id")]
        assert text.count("<html") == text.count("</html>") == text.count('id="opening"') == 1
        assert places[0] < places[1] < places[3] and "<img" not in text
        assert text.index("data-early-status") < text.index("bokeh.min.js")
    tokens = {text.partition('"token":"')[2].partition('"')[0] for text in pages}
    assert len(tokens) == 3 and "" not in tokens, "each page has a session of its own"
    unknown = read_page(port, "?run=nowhere")
    assert "data-early-status" not in unknown


def test_a_session_waits_for_a_slow_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has connected, and not for ever."""

    async def run() -> None:
        monkeypatch.setattr(opening, "PATIENCE", 0.2)
        connected, never = (ServerSession(name, Document()) for name in ("one", "other"))  # type: ignore[arg-type]
        for session in (connected, never):
            opening.keep_until_ready(session)
            assert session.expiration_blocked
        connected.document.callbacks.trigger_event(DocumentReady())
        assert not connected.expiration_blocked and never.expiration_blocked
        await asyncio.sleep(0.4)
        assert not never.expiration_blocked and connected.expiration_blocked_count == 0

    asyncio.run(run())


def test_no_page_asks_another_host_for_its_styles(tmp_path: Path) -> None:
    """Not even one that is built for a browser whose session is gone, which is never written out as HTML."""
    from panel.io.state import set_curdoc

    write_run(tmp_path, "r")
    doc = Document()
    with set_curdoc(doc):
        session = Session(RunStore(tmp_path))
        page = session.attach()
        session.context.open_run("r", "overview")
        page.server_doc(doc)
    urls = {model.url for model in doc.models if isinstance(model, ImportedStyleSheet)}
    assert urls and all(url.startswith("static/") for url in urls), urls


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """(kind, name of the source, points) of what goes into data sources."""
    sent: list[tuple[str, str, int]] = []
    stream, put = ColumnDataSource.stream, ColumnDataSource.__setattr__

    def streamed(source: Any, data: Any, *rest: Any) -> None:
        sent.append(("stream", source.name, len(next(iter(data.values())))))
        stream(source, data, *rest)

    def set_anew(source: Any, name: str, value: Any) -> None:
        if name == "data":
            sent.append(("all", source.name, len(next(iter(value.values()), []))))
        put(source, name, value)

    monkeypatch.setattr(ColumnDataSource, "stream", streamed)
    monkeypatch.setattr(ColumnDataSource, "__setattr__", set_anew)
    return sent


def train(writer: EventWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        loss = 2.0 / step + 0.1 * (step % 7)
        writer.emit("finetune.step", step=step, steps=10**6, epoch=1, tokens=512 * step, loss=loss, ce=loss,
                    kl=loss, lr=1e-3, grad_norm=0.5, tokens_per_s=1000.0)  # fmt: skip
        writer.emit("metric", name="mine", value=loss)


def test_curves_grow_by_what_is_new_and_never_have_more_than_two_thousand_points(
    tmp_path: Path, traffic: list[tuple[str, str, int]]
) -> None:
    run = make_run(tmp_path, "r")
    writer = EventWriter(run.path)
    writer.emit("run.started", model="m", out="o", config={}, name="r")
    writer.emit("step.started", step=5, name="fine-tuning")
    train(writer, 1, 20)
    session = Session(RunStore(tmp_path))
    session.context.open_run("r", "metrics")
    assert session.feed is not None
    traffic.clear()
    for first in (21, 31, 41):
        train(writer, first, first + 9)
        session.feed.poll(time.monotonic() + first)
        session.tick()
    curves = [sent for sent in traffic if str(sent[1]).startswith("curve:")]
    assert {"curve:loss:loss", "curve:metric:mine:value"} <= {name for _, name, _ in curves}
    assert {(kind, points) for kind, _, points in curves} == {("stream", 10)}
    traffic.clear()
    train(writer, 51, 6000)
    session.feed.poll(time.monotonic() + 100)
    session.tick()
    session.tab.update(session.tab.last, None)
    assert {points for _, name, points in traffic if name} and max(points for *_, points in traffic) <= POINTS
    writer.close()
    session.open("")


def test_a_page_that_was_closed_is_let_go(tmp_path: Path) -> None:
    """Panel's state lives as long as the process: what a page leaves there keeps all of it."""
    import panel as pn
    from tritpress.dashboard.session import Session
    from tritpress.dashboard.store import RunStore

    def watchers() -> int:
        kept = pn.state._param__private.watchers
        return sum(len(each) for kinds in kept.values() for each in kinds.values())

    store = RunStore(tmp_path)
    Session(store)
    before = watchers()
    Session(store)
    assert watchers() == before


def test_a_page_built_ahead_offers_the_presets_saved_since(tmp_path: Path) -> None:
    session = Session(RunStore(tmp_path))
    assert "saved since" not in session.sidebar.preset.options
    (tmp_path / "presets.toml").write_text('["saved since"]\ncalibration_tokens = 2048\n', encoding="utf-8")
    session.enter()
    assert "saved since" in session.sidebar.preset.options
