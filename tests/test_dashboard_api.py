"""The API through its client, on a real server process: see, follow, steer, start and push runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs_helper
from dashboard_log import make_run, write_run
from hypothesis import given
from hypothesis import strategies as st
from runs_helper import SLOW, tiny_model
from server_helper import TOKEN, ask, port_and_log, serve_command, serving
from tritpress.client import Client, ClientError, Pusher, progress_callback
from tritpress.client.http import Server
from tritpress.client.websocket import masked
from tritpress.config import CompressionConfig
from tritpress.errors import TritpressError, UsageError
from tritpress.events import EventWriter, StateReader, initial_state, load_snapshot
from tritpress.events.reader import EventReader
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import list_runs

pytest.importorskip("panel", reason="the dashboard's packages are not installed")

from tritpress.dashboard.api.checks import check_characters, check_event, matches
from tritpress.dashboard.api.seek import offset_after, read_lines

BEARER = {"authorization": f"Bearer {TOKEN}"}
JSON = {**BEARER, "content_type": "application/json"}


# Parts


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 80), st.booleans(), st.integers(1, 400))
def test_finding_a_place_in_a_log(gaps: list[int], seq: int, torn: bool, width: int) -> None:
    """Halving finds what reading from the start finds, over lines that are no events and a torn end."""
    import tempfile
    from unittest import mock

    lines = []
    for number, gap in enumerate(gaps, 1):
        lines += [b"not an event"] * (gap == 3) + [b'{"seq": "x"}'] * (gap == 2)
        event = {"seq": number, "t": 1.0, "type": "log", "message": "x" * (width * gap)}
        lines.append(json.dumps(event).encode())
    data = b"".join(line + b"\n" for line in lines) + (b'{"seq": 999, "t"' if torn else b"")
    with tempfile.NamedTemporaryFile() as file, mock.patch("tritpress.dashboard.api.seek.NEAR", 40):
        Path(file.name).write_bytes(data)
        found = offset_after(Path(file.name), seq)
        after = [event["seq"] for event in EventReader(file.name, found).poll()]
        assert after == [number for number in range(1, len(gaps) + 1) if number > seq]
        if seq < len(gaps):
            assert json.loads(data[found:].split(b"\n")[0])["seq"] == seq + 1
        lines, behind = read_lines(Path(file.name), found, 5, 10**9)
        assert [json.loads(line)["seq"] for line in lines] == after[:5]
        assert len(after) > 5 or behind == data.rfind(b"\n") + 1


def test_a_long_log_is_not_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with open(path, "wb") as file:
        for number in range(1, 300_001):
            file.write(b'{"v":1,"run":"r","seq":%d,"t":1.5,"type":"metric","name":"x","value":1}\n' % number)
    started = time.perf_counter()
    for seq in (0, 1, 150_000, 299_999, 300_000, 10**9):
        lines, _ = read_lines(path, offset_after(path, seq), 3, 1 << 20)
        wanted = list(range(seq + 1, min(seq + 4, 300_001))) if seq < 300_000 else []
        assert [json.loads(line)["seq"] for line in lines] == wanted
    # Reading all of it six times takes some three seconds: not a speed test, only one of how it is done.
    assert time.perf_counter() - started < 1.0
    assert offset_after(tmp_path / "none", 5) == 0


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_masking(data: bytes, mask: bytes) -> None:
    assert masked(data, mask) == bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "Layer Finished"},
        {"type": "../../etc"},
        {"type": "x" * 101},
        {"type": "layer.finished", "name": "t", "kind": "q", "rows": 4},
        {"type": "layer.finished", "name": 5, "kind": "q", "rows": 4, "cols": 4},
        {"type": "layer.finished", "name": "x" * 301, "kind": "q", "rows": 4, "cols": 4},
        {"type": "layer.finished", "name": "t", "kind": "q", "rows": True, "cols": 4},
        {"type": "metric", "name": "loss", "value": "low"},
        {"type": "gate", "name": "no such gate"},
        {"type": "step.started"},
        {"type": "step.started", "step": "4"},
        {"type": "finetune.step", "step": 1.5},
        {"type": "model", "model": {}, "targets": [{"name": "t"}]},
        {"type": "model", "model": {}, "targets": {"name": "t"}},
        {"type": "plan", "tensors": [5]},
        {"type": "evaluation", "when": "yesterday"},
        {"type": "run.started", "config": {"planes": 9}},
    ],
)
def test_what_is_no_event(event: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_event({"seq": 1, "t": 1.0, **event}, initial_state())


def test_what_is_an_event() -> None:
    state = initial_state()
    assert check_event({"seq": 1, "type": "metric", "name": "loss", "value": None}, state)[0] == "metric"
    kind, fields = check_event({"seq": 1, "type": "of.my_own", "anything": [1, {"a": None}]}, state)
    assert (kind, fields) == ("of.my_own", {"anything": [1, {"a": None}]})
    _, fields = check_event({"seq": 1, "type": "run.started", "out": "/etc", "report": "/etc/passwd"}, state)
    assert fields == {"remote_out": "/etc", "remote_report": "/etc/passwd"}, "no file of this machine"
    _, fields = check_event({"seq": 1, "type": "run.started", "config": {"planes": 2, "new": 1}}, state)
    assert fields["config"] == CompressionConfig(planes=2).model_dump()
    assert matches(3, float) and matches(None, float) and not matches(True, int) and not matches(1.0, int)
    with pytest.raises(UsageError, match="surrogate"):
        check_characters({"events": [{"message": "half \ud83d"}]})
    check_characters({"events": [{"message": "whole \U0001f600"}]})


def test_the_client_needs_the_base_install_alone() -> None:
    code = (
        "import sys, tritpress.client\n"
        "heavy = {'torch', 'transformers', 'panel', 'bokeh', 'tornado', 'websockets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_addresses_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITPRESS_TOKEN", raising=False)
    server = Server("http://127.0.0.1:5006/dashboard?run=r&token=abc")
    assert (server.address, server.token) == ("http://127.0.0.1:5006", "abc")
    assert server.path("runs", "a/../b", after=3) == "/api/v1/runs/a%2F..%2Fb?after=3"
    assert Server("host:80", "t").token == "t" and "abc" not in repr(server)
    behind = Server("https://press.example/tools/dashboard")
    assert behind.path("runs") == "/tools/api/v1/runs" and behind.port == 443
    monkeypatch.setenv("TRITPRESS_TOKEN", "from outside")
    assert Server("http://[::1]:5006").token == "from outside"
    assert Server("http://[::1]:5006").address == "http://[::1]:5006"
    for wrong in ("ftp://x", "http://", "http://x:99999"):
        with pytest.raises(UsageError):
            Server(wrong)


# A server of its own


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def port(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number, log = port_and_log(tmp_path_factory.mktemp("log"))
    with serving(serve_command(runs, number), number, log):
        yield number


@pytest.fixture(scope="module")
def client(port: int) -> Client:
    return Client(f"http://127.0.0.1:{port}", TOKEN)


def refusal(action: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        action()
    return caught.value


def test_seeing_runs(client: Client, runs: Path) -> None:
    run = write_run(runs, "seen", name="<b>bold</b>")
    (run.path / "report.json").write_text('{"run": "seen"}')
    entry = next(entry for entry in client.runs() if entry["id"] == "seen")
    here = next(entry for entry in list_runs(runs) if entry["id"] == "seen")
    assert entry == json.loads(json.dumps(here)) and entry["origin"] == "local"
    reader = StateReader(run.path)
    reader.poll()
    state = client.run("seen")
    assert {key: state[key] for key in reader.state} == json.loads(json.dumps(reader.state))
    assert state["name"] == "<b>bold</b>" and state["alive"] is False
    assert client.report("seen") == {"run": "seen"}


def test_events_from_a_number_on(client: Client, runs: Path) -> None:
    run = write_run(runs, "long", layers=30)
    events = EventReader(run.events_path).poll()
    assert client.events("long") == events
    assert client.events("long", after=17, limit=5) == events[17:22]
    assert client.events("long", after=len(events)) == []
    assert list(client.follow("long", after=len(events) - 4)) == events[-4:]


def test_following_a_run_as_it_goes(client: Client, runs: Path) -> None:
    run = make_run(runs, "going")
    writer = EventWriter(run.path)
    writer.emit("run.started", model="m", out="o", config={}, name="going")
    stream = client.follow("going")
    assert next(stream)["type"] == "run.started"
    for value in range(3):
        writer.emit("metric", name="x", value=value)
        written = time.monotonic()
        assert next(stream)["value"] == value
        assert time.monotonic() - written < 5
    writer.emit("run.finished", status="finished", exit_code=0, report=None)
    assert [event["type"] for event in stream] == ["run.finished"]
    writer.close()


def test_a_worker_that_is_gone(client: Client, runs: Path) -> None:
    run = make_run(runs, "gone")
    writer = EventWriter(run.path)
    writer.emit("run.started", model="m", out="o", config={}, name="gone")
    writer.close()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    run.update_run(pid=process.pid, process_start="1")
    assert client.run("gone")["status"] == "died"
    with pytest.raises(TritpressError, match="gone"):
        list(client.follow("gone"))
    run.update_run(status="stopped")


def test_steering_a_run(
    client: Client, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_helper.use(monkeypatch)
    model = tiny_model(tmp_path / "model")
    run_id = client.start(str(model), {"seed": SLOW, "planes": 2}, name="from afar")
    run = RunDirectory(runs / run_id)
    assert run.config.planes == 2 and run.read_run()["name"] == "from afar"
    assert run.out_path == run.path / "out", "what the API starts is written into the run's own folder"
    answer = client.command(run_id, "pause")
    assert answer["ack"]["ok"] is True and answer["ack"]["command"] == "pause"
    deadline = time.monotonic() + 10
    while client.run(run_id)["status"] != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.command(run_id, "set", name="renamed")["ack"]["detail"] == "renamed"
    refused = client.command(run_id, "set", planes=3)
    assert refused["ack"]["ok"] is False
    sent = client.command(run_id, "resume", wait=False)
    assert sent["ack"] is None and sent["id"]
    client.command(run_id, "stop")
    assert list(client.follow(run_id))[-1]["status"] == "stopped"
    assert refusal(lambda: client.command(run_id, "pause")).status == 409
    again = client.command(run_id, "resume")
    assert again["resumed"] is True and again["id"] is None
    seen = client.run(run_id)["seq"]
    assert list(client.follow(run_id, after=seen))[-1]["status"] == "finished"
    assert client.report(run_id)["run"] == run_id
    for wrong in ("dance", "", "x" * 5000):
        assert refusal(lambda name=wrong: client.command(run_id, name)).status == 400


def test_what_cannot_be_started(client: Client, port: int, runs: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in runs.iterdir())
    model = str(tiny_model(tmp_path / "model"))
    said = refusal(lambda: client.start("/no/such/model"))
    assert said.status == 400 and "/no/such/model" in str(said)
    assert "planes must be at most 3" in str(refusal(lambda: client.start(model, {"planes": 9})))
    assert "unknown key out" in str(refusal(lambda: client.start(model, {"out": "/tmp/elsewhere"})))
    for body in (
        {},
        {"model": 5},
        {"model": model, "out": "/tmp/x"},
        {"model": model, "config": []},
        {"model": model, "name": "x" * 201},
        {"model": "a\0b"},
        {"model": "x" * 5000},
    ):
        status, _, answer = ask(port, "/api/v1/runs", "POST", json.dumps(body).encode(), **JSON)
        assert status == 400 and json.loads(answer)["error"], body
    assert sorted(path.name for path in runs.iterdir()) == before


def test_ids_and_paths(port: int, runs: Path) -> None:
    secret = runs.parent / "secret"
    secret.mkdir(exist_ok=True)
    for name in ("run.json", "events.jsonl", "report.json"):
        (secret / name).write_text('{"secret": true}')
    for wrong in (
        "..%2fsecret", "%2e%2e%2fsecret", "..%5csecret", ".", "..", "%00", "a%0ab", "x" * 101, "-a", "%ff",
    ):  # fmt: skip
        for end in ("", "/events", "/report", "/stream"):
            status, _, body = ask(port, f"/api/v1/runs/{wrong}{end}", **BEARER)
            assert status in (400, 404) and b"secret" not in body.replace(wrong.encode(), b""), (wrong, end)
        for end in ("/commands", "/events"):
            status, _, _ = ask(port, f"/api/v1/runs/{wrong}{end}", "POST", b'{"command": "stop"}', **JSON)
            assert status in (400, 404), (wrong, end)
    assert ask(port, "/api/v1/runs/../../secret/report", **BEARER)[0] == 404
    assert ask(port, "/api/v1/runs/nope", **BEARER)[0] == 404
    assert ask(port, "/api/v2/runs", **BEARER)[0] == 404
    for wrong in ("after=-1", "after=x", "after=1e9", "limit=0", "limit=99999999", "after=" + "9" * 30):
        assert ask(port, f"/api/v1/runs/seen/events?{wrong}", **BEARER)[0] in (400, 404)
    assert ask(port, "/api/v1/runs", "DELETE", **BEARER)[0] == 405


def test_bodies(port: int) -> None:
    at = "/api/v1/runs/bodies/events"
    for body in (b"", b"[]", b"{", b"\xff\xfe", b'"x"', b"[" * 100_000, b'{"no": 1}', b'{"source": "s"}'):
        status, _, answer = ask(port, at, "POST", body, **JSON)
        assert status == 400 and json.loads(answer)["error"], body[:20]
    status, _, answer = ask(port, at, "POST", b"{}", **BEARER, content_type="text/plain")
    assert status == 415
    status, _, answer = ask(port, at, "POST", b" " * (9 << 20), **JSON)
    assert status == 413 and "at most" in json.loads(answer)["error"]
    assert ask(port, at, "POST", b" " * (9 << 20), content_type="application/json")[0] in (401, 413)
    big = {"source": "s" * 16, "events": [{"seq": 1, "type": "log", "message": "x" * (2 << 20)}]}
    status, _, answer = ask(port, at, "POST", json.dumps(big).encode(), **JSON)
    assert status == 400 and "1,048,576" in json.loads(answer)["error"]


def test_no_token(port: int) -> None:
    stranger = Client(f"http://127.0.0.1:{port}", "not the token")
    for action in (
        stranger.runs,
        lambda: stranger.run("seen"),
        lambda: stranger.events("seen"),
        lambda: list(stranger.follow("seen")),
        lambda: stranger.command("seen", "stop"),
        lambda: stranger.start("m"),
        lambda: stranger.report("seen"),
    ):
        assert refusal(action).status == 401
    pusher = stranger.push("mine")
    with pusher:
        pusher.emit("metric", name="x", value=1)
    assert pusher.error is not None and pusher.error.status == 401


# Pushed runs


def push(port: int, run_id: str, events: list[Any], source: str = "the first sender", **more: Any) -> Any:
    body = json.dumps({"source": source, "events": events, **more}).encode()
    status, _, answer = ask(port, f"/api/v1/runs/{run_id}/events", "POST", body, **JSON)
    return status, json.loads(answer)


def metric(seq: int, value: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"seq": seq, "type": "metric", "name": "loss", "value": value, **more}


def test_a_pushed_run(client: Client, runs: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    with client.push(hostile, model="elsewhere/model", config={"planes": 2}) as pusher:
        for i in range(5000):
            pusher.emit("metric", name="loss", value=np.float32(1 / (i + 1)))
        pusher.report({"run": "elsewhere"})
        assert pusher.flush()
        state = client.run(pusher.run_id)
        assert (state["alive"], state["status"], state["origin"]) == (True, "running", "remote")
        assert refusal(lambda: client.command(pusher.run_id, "stop")).status == 409
    assert pusher.error is None and pusher.dropped == 0
    events = client.events(pusher.run_id)
    assert [event["seq"] for event in events] == list(range(1, 5003))
    assert [event["type"] for event in events[::5001]] == ["run.started", "run.finished"]
    assert {event["run"] for event in events} == {pusher.run_id}
    state = client.run(pusher.run_id)
    assert state["status"] == "finished" and state["name"] == hostile
    assert state["config"]["planes"] == 2 and client.report(pusher.run_id) == {"run": "elsewhere"}
    # What the folder holds is a run like any other to every reader.
    folded = StateReader(runs / pusher.run_id)
    folded.poll()
    assert len(folded.state["metrics"]["loss"]) > 1000
    snapshot = load_snapshot(runs / pusher.run_id / "snapshot.json")
    size = (runs / pusher.run_id / "events.jsonl").stat().st_size
    assert snapshot is not None and snapshot["offset"] == size
    entry = next(entry for entry in list_runs(runs) if entry["id"] == pusher.run_id)
    assert (entry["status"], entry["origin"], entry["name"]) == ("finished", "remote", hostile)


def test_a_controller_that_fails(client: Client) -> None:
    with pytest.raises(ZeroDivisionError), client.push("failing") as pusher:
        pusher.emit("step.started", step=4, name="ternarization")
        raise ZeroDivisionError("of all things")
    state = client.run(pusher.run_id)
    assert state["status"] == "failed" and state["error"] == "ZeroDivisionError: of all things"
    assert state["steps"][3]["state"] == "failed"


def test_pushing_again_and_gaps(port: int, client: Client) -> None:
    assert push(port, "again", [metric(1), metric(2)]) == (
        200, {"run": "again", "seq": 2, "accepted": 2, "ignored": 0}
    )  # fmt: skip
    assert push(port, "again", [metric(1, 9.0), metric(2, 9.0), metric(3)])[1] == {
        "run": "again", "seq": 3, "accepted": 1, "ignored": 2
    }  # fmt: skip
    assert [event["value"] for event in client.events("again")] == [0.5] * 3
    status, answer = push(port, "again", [metric(5)])
    assert status == 409 and answer["expected"] == 4
    # A push counts whole or not at all.
    status, _ = push(port, "again", [metric(4), {"seq": 5, "type": "metric", "name": "loss", "value": "x"}])
    assert status == 400 and client.run("again")["seq"] == 3
    status, answer = push(port, "again", [metric(4)], source="another sender")
    assert status == 409 and "another controller" in answer["error"]
    assert push(port, "again", [])[1]["seq"] == 3
    assert push(port, "again", [{"seq": 4, "type": "run.finished"}])[0] == 200
    assert client.run("again")["status"] == "finished"
    assert push(port, "again", [{"seq": 5, "type": "run.started"}], source="another sender")[0] == 200
    assert client.run("again")["status"] == "running"


def test_a_run_worked_on_here_takes_no_pushes(port: int, runs: Path) -> None:
    run = write_run(runs, "mine")
    before = run.events_path.read_bytes()
    assert push(port, "mine", [metric(10**6)])[0] == 409
    assert run.events_path.read_bytes() == before


def test_a_controller_that_is_silent(port: int, client: Client, runs: Path) -> None:
    assert push(port, "silent", [metric(1)])[0] == 200
    assert client.run("silent")["alive"] is True
    RunDirectory(runs / "silent").update_run(heartbeat=time.time() - 31)
    state = client.run("silent")
    assert (state["alive"], state["status"]) == (False, "died")
    assert push(port, "silent", [metric(2)], source="after a restart")[0] == 200
    assert client.run("silent")["alive"] is True


def test_a_torn_log_and_a_new_server(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for begin in (1, 3):
        number, log = port_and_log(tmp_path)
        with serving(serve_command(folder, number), number, log):
            status, answer = push(number, "torn", [metric(begin), metric(begin + 1)])
            assert status == 200 and answer["seq"] == begin + 1
        with open(folder / "torn" / "events.jsonl", "ab") as file:
            file.write(b'{"v": 1, "seq": 99')
    reader = EventReader(folder / "torn" / "events.jsonl")
    assert [event["seq"] for event in reader.poll()] == [1, 2, 3, 4]


def test_pushing_before_the_server_is_there(tmp_path: Path) -> None:
    number, log = port_and_log(tmp_path)
    pusher = Pusher(Server(f"http://127.0.0.1:{number}", TOKEN), "early")
    with pusher:
        pusher.emit("metric", name="loss", value=1.0)
        assert not pusher.flush(0.2), "nobody is there yet"
        with serving(serve_command(tmp_path / "runs", number), number, log):
            for _ in range(50):
                pusher.emit("metric", name="loss", value=random.random())
            assert pusher.flush(20)
        # Gone again: what is emitted now waits for the next one.
        pusher.emit("metric", name="loss", value=2.0)
        assert not pusher.flush(0.5)
        with serving(serve_command(tmp_path / "runs", number), number, log):
            assert pusher.flush(20)
            pusher.emit("run.finished", status="finished")
            assert pusher.close()
    events = EventReader(tmp_path / "runs" / pusher.run_id / "events.jsonl").poll()
    assert [event["seq"] for event in events] == list(range(1, 55))
    assert events[-2]["value"] == 2.0 and events[-1]["type"] == "run.finished"


def test_a_run_here_shown_there(
    client: Client, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ready callback, as `tritpress.compress` and the older interface take it."""
    from tritpress.phase4 import Phase4Config, Phase4Controller

    runs_helper.use(monkeypatch)
    model = tiny_model(tmp_path / "model")
    show = progress_callback(f"http://127.0.0.1:{port}/dashboard?token={TOKEN}", name="shown there")
    from tritpress.api import compress

    compress(model, tmp_path / "out", CompressionConfig(seed=runs_helper.FAST), on_event=show,
             runs_dir=tmp_path / "runs")  # fmt: skip
    run_id = show.pusher.run_id  # type: ignore[attr-defined]
    mine = EventReader(next((tmp_path / "runs").glob("*/events.jsonl"))).poll()
    there = client.events(run_id)

    def short(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [tuple(event.get(key) for key in ("seq", "t", "type", "layer", "step")) for event in events]

    assert short(there) == short(mine) and there[0]["name"] == "shown there"
    assert client.run(run_id)["status"] == "finished" and client.report(run_id)["gates"]
    older = progress_callback(f"http://127.0.0.1:{port}", TOKEN, name="older")
    config = Phase4Config(model_path=model, output_path=tmp_path / "out2", seed=runs_helper.FAILS,
                          runs_dir=tmp_path / "runs")  # fmt: skip
    assert Phase4Controller(config).execute(progress_callback=older)["success"] is False
    assert client.run(older.pusher.run_id)["status"] == "failed"  # type: ignore[attr-defined]


@pytest.mark.browser
def test_a_pushed_run_in_the_page(browser: Any, client: Client, port: int) -> None:
    """Sparse events of a controller that is not tritpress: every tab stands, figures arrive live."""
    from browser_helpers import open_page, show, wait_until

    page = browser.new_page()
    page.set_default_timeout(15_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"a script ran: {dialog.message}"))
    with client.push("<img src=x onerror=alert(1)>") as pusher:
        pusher.emit("step.started", step=4)
        pusher.emit("layer.finished", name="a.weight", layer=0, kind="q", rows=8, cols=8)
        pusher.emit("evaluation", when="before", perplexity=9.5)
        pusher.emit("gate", name="ratio", actual=7.0)
        pusher.emit("metric", name="<b>mine</b>", value=1.0)
        pusher.emit("output", path="/etc/passwd", bytes=5)
        pusher.emit("log", message="<img src=x onerror=alert(2)>")
        pusher.emit("finetune.step", step=1, loss=0.5)
        assert pusher.flush()
        open_page(page, f"http://127.0.0.1:{port}/dashboard?run={pusher.run_id}&token={TOKEN}")
        page.get_by_text("<img src=x onerror=alert(1)>").first.wait_for()
        for tab in ("Progress", "Metrics", "Quality", "Outputs", "Overview"):
            show(page, tab)
            page.wait_for_timeout(300)
        pusher.emit("alert", message="told from afar", level="warning")
        page.get_by_text("told from afar").first.wait_for()
    wait_until(
        page,
        lambda: page.locator("[data-status]").first.get_attribute("data-status") == "finished",
        "the end of the pushed run",
    )
    assert not problems, problems
    page.close()
