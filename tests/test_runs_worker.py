"""Worker processes: started, obeyed, killed, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import runs_helper as helper
from tritpress.config import CompressionConfig
from tritpress.console.progress import finding
from tritpress.dashboard.views.runs import state_group
from tritpress.dashboard.views.status import status_of
from tritpress.errors import InputError, TritpressError, UsageError
from tritpress.events import EventReader, EventWriter, StateReader
from tritpress.runs import follow as following
from tritpress.runs.commands import send, wait_ack
from tritpress.runs.directory import RunDirectory, find_run
from tritpress.runs.follow import WorkerDied, follow
from tritpress.runs.history import list_runs, run_state
from tritpress.runs.launch import launch, resume, worker_process
from tritpress.runs.liveness import is_alive, is_alive_record, process_start, this_host


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    helper.use(monkeypatch)
    model = helper.tiny_model(tmp_path / "model")
    started: list[RunDirectory] = []

    def start(kind: int, **options) -> RunDirectory:
        run = launch(model, None, CompressionConfig(seed=kind), tmp_path / "runs", **options)
        started.append(run)
        return run

    yield start
    for run in started:
        if is_alive(run):
            os.kill(run.read_run()["pid"], signal.SIGKILL)


def types(run: RunDirectory) -> list[str]:
    return [event["type"] for event in EventReader(run.events_path).poll()]


def wait_until(condition, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def test_a_run_from_start_to_end(start) -> None:
    run = start(helper.FAST, name="first")
    events = list(follow(run))
    assert events[0]["type"] == "run.started" and events[-1]["type"] == "run.finished"
    progress = [event for event in events if event["type"] == "step.progress"]
    assert progress and {(event["step"], event["name"]) for event in progress} == {(4, "ternarization")}
    record = run.read_run()
    assert record["status"] == "finished" and record["exit_code"] == 0 and record["name"] == "first"
    assert record["chosen"] == {"threads": 2, "number_format": "float32"}
    end = events[-1]
    assert end["exit_code"] == 0 and end["report"] == str(run.path / "out" / "report.json")
    # One lock holds all writing, so its share cannot exceed the whole, however busy the machine is.
    assert 0 < end["write_seconds"] < end["seconds"]
    assert run_state(run)["write_seconds"] == end["write_seconds"]
    assert json.loads(run.report_path.read_text())["run"] == run.id
    assert run_state(run) == StateReader(run.path).state
    assert not is_alive(run)


def test_a_failed_gate_is_exit_code_3(start) -> None:
    run = start(helper.GATE_FAILS)
    assert list(follow(run))[-1]["exit_code"] == 3 and run.read_run()["exit_code"] == 3


@pytest.mark.parametrize("kind, code", [(helper.UNJUDGED, 0), (helper.CHECK_FAILS, 3)])
def test_a_failed_check_counts_and_what_was_not_judged_does_not(start, kind, code) -> None:
    run = start(kind)
    assert list(follow(run))[-1]["exit_code"] == code and run.read_run()["exit_code"] == code
    (listed,) = list_runs(run.path.parent)
    assert state_group(listed) == ("gates" if code else "passed")
    state = run_state(run)
    told = status_of(state).sentence
    assert ("1 check of the handoff failed: tokenizer round trips." in told) == bool(code)
    assert finding(state, 7) == "0 of 1 gates pass, 1 not judged"


@pytest.mark.parametrize(
    ("kind", "sentence", "code"),
    [
        (helper.FAILS, "the tensor a.weight holds a NaN: give a model without", 1),
        (helper.CRASHES, "ZeroDivisionError: of all things", 1),
        (helper.WRONG_OPTION, "--device cuda: there is no CUDA device", 2),
        (
            helper.FULL_DISK,
            "the disk is full (writing out/model.safetensors): make room and resume the run",
            1,
        ),
    ],
)
def test_an_error_is_one_sentence_in_the_event_and_a_traceback_in_the_log(
    start, kind, sentence, code
) -> None:
    run = start(kind)
    end = list(follow(run))[-1]
    assert (end["type"], end["error"], end["exit_code"]) == ("run.failed", sentence, code)
    assert run.read_run()["status"] == "failed" and run.read_run()["error"] == sentence
    assert "Traceback" in run.log_path.read_text()
    assert run_state(run)["status"] == "failed"


def test_pause_resume_and_stop_are_acknowledged_and_obeyed(start) -> None:
    run = start(helper.SLOW)
    asked = time.monotonic()
    ack = wait_ack(run, send(run, "pause"))
    assert ack and ack["ok"] and ack["command"] == "pause" and time.monotonic() - asked < 0.5
    wait_until(lambda: types(run)[-1] == "run.paused")
    assert run.read_run()["status"] == "paused" and is_alive(run) and run_state(run)["status"] == "paused"
    done = types(run).count("layer.finished")
    time.sleep(0.4)
    assert types(run).count("layer.finished") == done < 10
    assert wait_ack(run, send(run, "resume"))["ok"]
    wait_until(lambda: types(run).count("layer.finished") > done)
    assert run.read_run()["status"] == "running"
    assert wait_ack(run, send(run, "stop"))["ok"]
    end = list(follow(run))[-1]
    assert (end["type"], end["status"], end["exit_code"]) == ("run.finished", "stopped", None)
    assert run.read_run()["status"] == "stopped" and not is_alive(run)
    with pytest.raises(TritpressError, match=rf"{run.id} is not at work.*stopped"):
        send(run, "pause")

    before = types(run).count("layer.finished")
    resume(run)
    list(follow(run, run.events_path.stat().st_size))
    assert types(run).count("layer.finished") == 10 and before < 10
    commands = run.commands_path.read_text().splitlines()
    assert [json.loads(line)["command"] for line in commands] == ["pause", "resume", "stop"]
    assert types(run).count("run.started") == 2 and types(run)[-1] == "run.finished"
    assert run.read_run()["chosen"]["number_format"] == "float32"
    seqs = [event["seq"] for event in EventReader(run.events_path).poll()]
    assert seqs == list(range(1, len(seqs) + 1))
    with pytest.raises(UsageError, match="is finished"):
        resume(run)


def test_a_paused_run_can_be_stopped(start) -> None:
    run = start(helper.SLOW)
    send(run, "pause")
    wait_until(lambda: "run.paused" in types(run))
    send(run, "stop")
    assert list(follow(run))[-1]["status"] == "stopped"
    assert "run.resumed" not in types(run)


def test_set_renames_and_says_what_it_cannot(start) -> None:
    run = start(helper.SLOW)
    assert wait_ack(run, send(run, "set", name="<b>a & b</b>"))["ok"]
    assert run.read_run()["name"] == "<b>a & b</b>"
    answer = wait_ack(run, send(run, "set", group_size=32))
    assert not answer["ok"] and "fixed" in answer["detail"]
    with pytest.raises(UsageError, match="pause, resume, stop, set"):
        send(run, "explode")


def test_commands_torn_or_foreign_do_not_disturb(start) -> None:
    run = start(helper.SLOW)
    with open(run.commands_path, "ab") as file:
        file.write(b'nonsense\n{"id": 4}\n[]\n{"id": "x", "command": "dance"}\n{"id": "torn", "comm')
    first = wait_ack(run, send(run, "pause"))
    assert first and first["ok"]
    lines = run.commands_path.read_text().splitlines()
    assert "" not in lines and lines[-2].endswith('"comm') and json.loads(lines[-1])["command"] == "pause"
    answer = wait_ack(run, "x")
    assert answer and not answer["ok"] and "dance" in answer["detail"]
    send(run, "stop")
    assert list(follow(run))[-1]["status"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_run_so_that_it_can_be_resumed(start, number) -> None:
    run = start(helper.SLOW)
    wait_until(lambda: "layer.finished" in types(run))
    os.kill(run.read_run()["pid"], number)
    assert list(follow(run))[-1]["status"] == "stopped"
    assert worker_process(run).wait(10) == 1


def test_a_killed_worker_is_seen_as_dead_and_the_run_is_resumed(start) -> None:
    run = start(helper.SLOW)
    wait_until(lambda: types(run).count("layer.finished") >= 2)
    assert is_alive(run) and list_runs(run.path.parent)[0]["status"] == "running"
    os.kill(run.read_run()["pid"], signal.SIGKILL)
    with pytest.raises(WorkerDied, match=run.id):
        list(follow(run))
    assert not is_alive(run) and run.read_run()["status"] == "running"
    assert list_runs(run.path.parent)[0]["status"] == "died" and run_state(run)["status"] == "died"
    with open(run.events_path, "ab") as file:
        file.write(b'{"v":1,"run":"torn')
    resume(run)
    assert list(follow(run, 0))[-1]["type"] == "run.finished"
    names = [e["name"] for e in EventReader(run.events_path).poll() if e["type"] == "layer.finished"]
    assert len(names) in (9, 10) and len(set(names)) == len(names)  # none was done twice


def test_a_run_at_work_is_not_started_twice(start) -> None:
    run = start(helper.SLOWER)  # not over before the second has come up on a busy machine
    with pytest.raises(UsageError, match="at work already"):
        resume(run)
    second = subprocess.run(
        [sys.executable, helper.__file__, str(run.path)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 1 and "worker already" in second.stderr
    send(run, "stop")
    assert list(follow(run))[-1]["status"] == "stopped"


def test_the_worker_outlives_who_started_it(tmp_path: Path) -> None:
    model = helper.tiny_model(tmp_path / "model")
    code = (
        "import sys, os, signal; sys.path.insert(0, sys.argv[3])\n"
        "import runs_helper as helper, tritpress.runs.launch as launch\n"
        "from tritpress.config import CompressionConfig\n"
        "launch.worker_command = lambda run: [sys.executable, helper.__file__, str(run.path)]\n"
        "run = launch.launch(sys.argv[1], None, CompressionConfig(seed=helper.SLOW), sys.argv[2])\n"
        "print(run.path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code, str(model), str(tmp_path / "runs"), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert parent.returncode == -signal.SIGKILL
    run = RunDirectory(parent.stdout.strip())
    assert is_alive(run) and os.getpgid(run.read_run()["pid"]) == run.read_run()["pid"]
    assert list(follow(run))[-1]["type"] == "run.finished"


def test_a_worker_that_cannot_start_is_said_in_one_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "tritpress.runs.launch.worker_command", lambda run: [sys.executable, "-c", "raise SystemExit('no')"]
    )
    model = helper.tiny_model(tmp_path / "model")
    with pytest.raises(TritpressError, match=r"did not start.*worker\.log"):
        launch(model, None, CompressionConfig(), tmp_path / "runs")
    assert list_runs(tmp_path / "runs")[0]["status"] == "failed"


def test_process_ids_used_again_do_not_count_as_alive() -> None:
    me = os.getpid()
    record = {"status": "running", "pid": me, "host": this_host(), "process_start": process_start(me)}
    assert is_alive_record(record)
    assert not is_alive_record({**record, "process_start": "1"})
    assert not is_alive_record({**record, "pid": 2**22 - 1, "process_start": None})  # of another program
    assert not is_alive_record({**record, "status": "finished"})
    elsewhere = {**record, "host": "another"}
    assert is_alive_record({**elsewhere, "heartbeat": time.time() - 5})
    assert not is_alive_record({**elsewhere, "heartbeat": time.time() - 60})


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    began = process_start(process.pid)
    wait_until(lambda: process_start(process.pid) is None)  # ended, not yet waited for
    assert process.returncode is None and began is not None
    process.wait()


def test_what_cannot_end_well_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = helper.tiny_model(tmp_path / "model")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    a_file = tmp_path / "file"
    a_file.write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()

    def refused(error, match: str, model=model, out=tmp_path / "out", **config) -> None:
        with pytest.raises(error, match=match):
            launch(model, out, CompressionConfig(**config), tmp_path / "runs")

    refused(InputError, "no model at .*nowhere", model=tmp_path / "nowhere")
    refused(InputError, "file.* is a file", model=a_file)
    refused(InputError, r"empty has no config\.json", model=empty)
    refused(UsageError, "full is not empty.*--overwrite", out=full)
    refused(UsageError, "file is a file", out=a_file)
    refused(UsageError, "model's own directory", out=model / "out")
    refused(UsageError, "model's own directory", out=model, overwrite=True)
    refused(UsageError, "contains the model", out=tmp_path, overwrite=True)
    refused(UsageError, "not a folder", out=a_file / "out")
    (full / "packed").write_text("")
    (full / "dequantized").symlink_to(empty)
    refused(UsageError, "cannot write .*full/packed: a file", out=full, overwrite=True)
    refused(UsageError, "full/dequantized: a file or link", out=full, overwrite=True, outputs="dequantized")
    (full / "packed").unlink()
    (full / "report.json").mkdir()
    refused(UsageError, r"report\.json: it is a folder", out=full, overwrite=True, outputs="packed")
    refused(UsageError, "no text at .*missing", text=[str(tmp_path / "missing")])
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()
    assert (full / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="run id"):
        launch(model, None, CompressionConfig(), tmp_path / "runs", run_id="../escape")


def test_runs_are_found_by_id_beginning_and_path(tmp_path: Path) -> None:
    for i, name in enumerate(["20260101-aa", "20260101-ab", "20260202-cc"]):
        run = RunDirectory(tmp_path / name)
        run.create()
        run.write_run({"id": name, "status": "stopped", "created": float(i)})
    assert find_run("20260202", tmp_path).id == "20260202-cc"
    assert find_run("20260101-aa", tmp_path).id == "20260101-aa"
    assert find_run(tmp_path / "20260101-ab").id == "20260101-ab"
    with pytest.raises(InputError, match=r"2 runs .* begin with '20260101'"):
        find_run("20260101", tmp_path)
    with pytest.raises(InputError, match=r"no run '\.\./x'"):
        find_run("../x", tmp_path)
    assert [run["id"] for run in list_runs(tmp_path)] == ["20260202-cc", "20260101-ab", "20260101-aa"]
    assert list_runs(tmp_path / "none") == []


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    for name, content in [("good", '{"id": "good", "status": "stopped"}'), ("bad", '{"id":'), ("odd", "[]")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
        (tmp_path / name / "snapshot.json").write_text("{")
    assert [run["id"] for run in list_runs(tmp_path)] == ["good"]
    with pytest.raises(InputError, match=r"cannot read .*run\.json"):
        find_run("bad", tmp_path).read_run()


def test_what_was_chosen_first_is_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r")
    run.create()
    run.write_run({"status": "created"})
    assert run.choose(threads=2) == {"threads": 2}
    assert run.choose(threads=8, kernel="avx2") == {"threads": 2, "kernel": "avx2"}
    assert RunDirectory(run.path).chosen == {"threads": 2, "kernel": "avx2"}


def test_the_last_event_may_come_after_the_end_in_run_json(tmp_path: Path, monkeypatch) -> None:
    run = RunDirectory(tmp_path / "ended")
    run.create()
    run.write_run({"id": "ended", "status": "finished", "pid": None, "host": "here", "launched": 0.0})
    writer = EventWriter(run.path)
    writer.emit("log", message="the one before the last")
    monkeypatch.setattr(following, "LIVENESS_EVERY", 0.0)
    found = []
    for event in follow(run, interval=0.01):
        found.append(event["type"])
        if len(found) == 1:
            later = threading.Timer(0.3, lambda: writer.emit("run.finished", status="finished", exit_code=0))
            later.start()
    assert found == ["log", "run.finished"]
    writer.close()

    monkeypatch.setattr(following, "LAST_WORD", 0.1)
    (silent := RunDirectory(tmp_path / "silent")).create()
    silent.write_run({"id": "silent", "status": "finished", "pid": None, "host": "here", "launched": 0.0})
    with pytest.raises(WorkerDied, match="without a word"):
        list(follow(silent, interval=0.01))
