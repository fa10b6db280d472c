"""`tritpress.compress` in Python: events, errors, and what happens when the caller gives up."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import runs_helper as helper
from tritpress.api import compress, resume
from tritpress.config import CompressionConfig
from tritpress.errors import InputError, StopRequested, TritpressError, UsageError
from tritpress.runs.commands import send
from tritpress.runs.directory import RunDirectory
from tritpress.runs.follow import WorkerDied
from tritpress.runs.liveness import is_alive


@pytest.fixture
def press(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    helper.use(monkeypatch)
    model = helper.tiny_model(tmp_path / "model")

    def press(kind: int, on_event=None) -> dict:
        config = CompressionConfig(seed=kind)
        return compress(model, tmp_path / "out", config, on_event=on_event, runs_dir=tmp_path / "runs")

    return press


def the_run(tmp_path: Path) -> RunDirectory:
    (path,) = (tmp_path / "runs").iterdir()
    return RunDirectory(path)


def test_the_report_comes_back_and_every_event_was_seen(press, tmp_path: Path) -> None:
    events: list[dict] = []
    report = press(helper.GATE_FAILS, events.append)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "run.finished" and events[-1]["exit_code"] == 3


@pytest.mark.parametrize(
    ("kind", "error", "sentence"),
    [
        (helper.FAILS, InputError, "holds a NaN"),
        (helper.WRONG_OPTION, UsageError, "no CUDA device"),
        (helper.CRASHES, TritpressError, "ZeroDivisionError"),
    ],
)
def test_errors_of_the_worker_are_raised_here(press, kind, error, sentence) -> None:
    with pytest.raises(error, match=sentence) as caught:
        press(kind)
    assert type(caught.value) is error
    assert any("runs_helper.py" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError])
def test_a_callback_that_raises_stops_the_worker(press, tmp_path: Path, reason) -> None:
    def on_event(event: dict) -> None:
        if event["type"] == "layer.finished":
            raise reason

    with pytest.raises(reason):
        press(helper.SLOW, on_event)
    run = the_run(tmp_path)
    assert not is_alive(run) and run.read_run()["status"] == "stopped"
    events: list[dict] = []
    assert resume(run.id, on_event=events.append, runs_dir=run.path.parent)["run"] == run.id
    assert events[0]["type"] == "run.started" and events[0]["resumed"] is True
    assert sum(event["type"] == "layer.finished" for event in events) < 10


def test_a_run_stopped_by_others_says_how_to_go_on(press, tmp_path: Path) -> None:
    def on_event(event: dict) -> None:
        if event["type"] == "layer.finished" and event["layer"] == 1:
            send(the_run(tmp_path), "stop")

    with pytest.raises(StopRequested, match="compress --resume"):
        press(helper.SLOW, on_event)


def test_a_killed_worker_says_how_to_go_on(press, tmp_path: Path) -> None:
    def on_event(event: dict) -> None:
        if event["type"] == "layer.finished" and event["layer"] == 1:
            os.kill(the_run(tmp_path).read_run()["pid"], signal.SIGKILL)

    with pytest.raises(WorkerDied, match=r"without a word.*compress --resume"):
        press(helper.SLOW, on_event)
