"""Runs as the start page and `tritpress runs` keep them: labels, trash, queue, and the list of thousands."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import runs_helper
from dashboard_log import make_run, write_run
from runs_helper import FAST, SLOW, tiny_model
from tritpress.cli import app
from tritpress.config import CompressionConfig
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import RunStore
from tritpress.errors import InputError, UsageError
from tritpress.events import StateReader
from tritpress.runs import history
from tritpress.runs.commands import send
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import RunIndex, list_runs
from tritpress.runs.labels import Labels, edit_labels, load_labels
from tritpress.runs.launch import launch
from tritpress.runs.liveness import is_alive
from tritpress.runs.trash import delete_run, list_trash, restore_run
from typer.testing import CliRunner

HOSTILE = "<img src=x onerror=alert(1)>"


def test_labels_are_kept_beside_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r", name="started so")
    assert load_labels(run.path) == Labels()
    edit_labels(run.path, name=f"  {HOSTILE} ", tags=["a, b", "a"], note="first\nsecond ")
    assert load_labels(run.path) == Labels(HOSTILE, ("a", "b"), "first\nsecond")
    edit_labels(run.path, tags=["c"])
    entry = list_runs(tmp_path)[0]
    assert (entry["name"], entry["tags"], entry["note"]) == (HOSTILE, ["c"], "first\nsecond")
    edit_labels(run.path, name="")
    assert list_runs(tmp_path)[0]["name"] == "started so"
    for wrong in ({"name": "x" * 201}, {"tags": ["t" * 41]}, {"tags": [str(i) for i in range(21)]}):
        with pytest.raises(UsageError):
            edit_labels(run.path, **wrong)
    (run.path / "labels.json").write_text('{"name": 3, "tags": "no", "note": []}')
    assert load_labels(run.path) == Labels()


def test_deleting_and_restoring(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r", name="mine")
    (run.path / "out").mkdir()
    (run.path / "out" / "weights").write_bytes(b"bytes")
    assert delete_run(run) == tmp_path / ".trash" / "r"
    assert list_runs(tmp_path) == [] and not run.path.exists()
    write_run(tmp_path, "r", name="another")
    delete_run(run)
    trash = list_trash(tmp_path)
    assert [(entry["id"], entry["was"], entry["name"]) for entry in trash] == [
        ("r.2", "r", "another"),
        ("r", "r", "mine"),
    ]
    restored = restore_run("r", tmp_path)
    assert restored.path == run.path and (run.path / "out" / "weights").read_bytes() == b"bytes"
    assert not (run.path / "deleted.json").exists() and list_runs(tmp_path)[0]["name"] == "mine"
    with pytest.raises(UsageError, match="again"):
        restore_run("r.2", tmp_path)
    with pytest.raises(InputError, match="no run"):
        restore_run("other", tmp_path)


def test_of_a_full_trash_only_the_last_deleted_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        run = make_run(tmp_path, f"r{number}", status="finished")
        run.update_run(pid=None)
        delete_run(run)
        (tmp_path / ".trash" / run.id / "deleted.json").write_text(json.dumps({"t": number, "id": run.id}))
    (tmp_path / ".trash" / "r0" / "deleted.json").write_text('{"t": "odd"}')
    (tmp_path / ".trash" / "r3" / "run.json").write_text("{")
    read: list[str] = []
    plain = RunDirectory.read_run
    monkeypatch.setattr(RunDirectory, "read_run", lambda run: (read.append(run.id), plain(run))[1])
    assert [run["id"] for run in list_trash(tmp_path, 2)] == ["r4", "r2"]
    assert read == ["r4", "r3", "r2"]
    assert [run["deleted"] for run in list_trash(tmp_path)] == [4.0, 2.0, 1.0, None]


def test_the_trash_is_read_beside_the_servers_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def listed(*given: object) -> list[Any]:
        threads.append(threading.current_thread())
        return list_trash(tmp_path, 100)

    monkeypatch.setattr("tritpress.dashboard.tabs.runs.list_trash", listed)
    run = make_run(tmp_path, "r", name="mine", status="finished")
    run.update_run(pid=None)
    delete_run(run)
    session = Session(RunStore(tmp_path))
    session.context.open_run("", tab="runs")
    tab: Any = session.tab
    tab.bin.active = [0]
    for job in session.steering.jobs:
        job.future.result(20)
    session.steering.look(time.time())
    assert [row["name"] for row in tab.trash.rows] == ["mine"]
    assert threads and threading.current_thread() not in threads


def test_a_column_that_a_narrow_page_hides_is_told_in_the_first(tmp_path: Path) -> None:
    from tritpress.dashboard.components.runtable import CSS, ESM

    hidden = {}
    for width, rules in re.findall(r"@media \(max-width: (\d+)px\) \{((?:[^{}]*\{[^}]*\})+)\s*\}", CSS):
        for selectors in re.findall(r"([^{}]*)\{ display: none; \}", rules):
            for key in set(re.findall(r"\.(model|perplexity|gates)\b", selectors)):
                hidden[key] = width
                shown = re.findall(r"([^{}]*)\{ display: inline; \}", rules)
                assert any(f".also-{key}" in told for told in shown), key
                assert f'["{key}", ' in ESM
    assert hidden == {"model": "820", "gates": "620", "perplexity": "620"}


def test_a_run_at_work_is_not_deleted(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    with pytest.raises(UsageError, match="at work"):
        delete_run(run)
    assert run.run_json.is_file()


def test_the_commands(tmp_path: Path) -> None:
    def call(*words: str) -> tuple[int, Any]:
        answer = CliRunner().invoke(
            app, ["runs", *words, "--runs", str(tmp_path), "--json"], prog_name="tritpress"
        )
        return answer.exit_code, json.loads(answer.stdout) if answer.stdout else None

    write_run(tmp_path, "20261124-a", name="mine")
    code, answer = call("edit", "20261124", "--name", "best", "--tag", "x", "--tag", "y", "--note", "n")
    assert code == 0 and answer == {"run": "20261124-a", "name": "best", "tags": ["x", "y"], "note": "n"}
    assert call("edit", "20261124", "--no-tags")[1]["tags"] == []
    assert call("edit", "20261124")[0] == 2
    assert call("delete", "20261124")[0] == 2, "not without being asked or --yes"
    code, answer = call("delete", "20261124", "--yes")
    assert code == 0 and answer["trash"] == str(tmp_path / ".trash" / "20261124-a")
    assert call("list")[1]["runs"] == []
    assert [run["name"] for run in call("restore")[1]["runs"]] == ["best"]
    assert call("restore", "20261124")[0] == 0
    assert [run["name"] for run in call("list")[1]["runs"]] == ["best"]


def wait_for(check: Any, what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_queued_run_waits_for_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_helper.use(monkeypatch)
    model, runs = tiny_model(tmp_path / "m"), tmp_path / "runs"

    def start(name: str, seed: int, queue: bool = True) -> RunDirectory:
        return launch(model, None, CompressionConfig(seed=seed), runs, run_id=name, queue=queue)

    def status(run: RunDirectory) -> str:
        return next(entry["status"] for entry in list_runs(runs) if entry["id"] == run.id)

    first = start("first", SLOW, queue=False)
    send(first, "pause")  # it lives, and would be over too soon otherwise
    second, third, fourth = start("second", FAST), start("third", FAST), start("fourth", FAST)
    assert second.read_run()["after"] == ["first"]
    assert fourth.read_run()["after"] == ["first", "second", "third"]
    assert status(second) == status(fourth) == "queued" and is_alive(second)
    with pytest.raises(UsageError, match="at work"):
        delete_run(second)
    send(third, "stop")
    wait_for(lambda: status(third) == "stopped", "a queued run can be cancelled")
    assert status(first) == "paused" and status(second) == "queued"
    os.kill(first.read_run()["pid"], 9)  # however it ends: the next one starts
    wait_for(lambda: status(fourth) == "finished", "the last of the queue")
    assert status(second) == "finished"
    reader = StateReader(fourth.path)
    kinds = [event["type"] for event in reader.poll()]
    assert reader.state["status"] == "finished"
    events = [json.loads(line) for line in fourth.events_path.read_text().splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds.index("run.queued") < kinds.index("run.started")
    began = next(event["t"] for event in events if event["type"] == "run.started")
    ended = json.loads(second.events_path.read_text().splitlines()[-1])
    assert ended["type"] == "run.finished" and ended["t"] <= began


def test_thousands_of_runs_list_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = write_run(tmp_path, "sample", layers=2)
    parts = {path.name: path.read_bytes() for path in sample.path.iterdir() if path.is_file()}
    for i in range(400):
        folder = tmp_path / f"run-{i:04}"
        folder.mkdir()
        for name, content in parts.items():
            (folder / name).write_bytes(content)
    index = RunIndex(tmp_path)
    assert len(index.list()) == 401
    reads: list[str] = []
    real = history.load_snapshot
    monkeypatch.setattr(history, "load_snapshot", lambda path: reads.append(str(path)) or real(path))
    assert len(index.list()) == 401 and not reads, "nothing changed: nothing is read"
    assert len(RunIndex(tmp_path).list()) == 401 and not reads, "nor by a new process"
    edit_labels(tmp_path / "run-0007", name="changed")
    names = {run["id"]: run["name"] for run in index.list()}
    assert names["run-0007"] == "changed" and len(reads) == 1
    delete_run(RunDirectory(tmp_path / "run-0008"))
    assert "run-0008" not in {run["id"] for run in index.list()}
    (tmp_path / ".index.json").write_text('{"v": 1, "runs": {"run-0009": 3}}')
    assert len(RunIndex(tmp_path).list()) == 400, "a damaged index is made anew"
