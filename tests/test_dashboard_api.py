"""The API through its client, on a real server process: see, follow, steer, start and push runs."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs_helper
from dashboard_log import make_run, write_run
from hypothesis import given
from hypothesis import strategies as st
from runs_helper import SLOW, tiny_model
from server_helper import TOKEN, ask, refusal
from tritpress.client import Client
from tritpress.client.http import ClientError, Server
from tritpress.client.websocket import masked
from tritpress.dashboard.api.handlers import error_answer, start
from tritpress.dashboard.api.seek import offset_after, read_lines
from tritpress.errors import TritpressError, UsageError
from tritpress.events import EventWriter, StateReader
from tritpress.events.reader import EventReader
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import list_runs

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
    assert list(client.follow("long", after=len(events))) == [], "a run that is over is not waited for"


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
    run.update_run(status="finished")  # as a worker does
    writer.emit("run.finished", status="finished", exit_code=0, report=None)
    assert [event["type"] for event in stream] == ["run.finished"]
    writer.close()


def test_following_goes_on_over_the_end_of_an_earlier_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://127.0.0.1:1")
    log = [{"seq": seq, "type": kind} for seq, kind in enumerate(
        ["run.started", "run.finished", "run.started", "metric", "run.failed"], 1
    )]  # fmt: skip
    monkeypatch.setattr("tritpress.client.client.RETRY", 0.0)

    def follow(ends: list[Any], **options: Any) -> list[Any]:
        """What is followed when the stream ends so after each connection's events."""
        told = iter(ends)

        def stream(run_id: str, after: int) -> Iterator[dict[str, Any]]:
            yield from log[after:]
            end = next(told)
            if isinstance(end, Exception):
                raise end
            yield {"standing": end}

        client._stream = stream  # type: ignore[method-assign]
        return list(client.follow("r", **options))

    broken = ClientError(0, "broken off")
    assert follow(["over"]) == log and follow(["over"], after=4) == log[4:]
    assert follow(["gone"]) == log, "the last that was heard is an end"
    assert follow([broken, broken, broken], retries=2) == log
    assert follow([broken, "over"]) == log
    log.pop()
    for end in ("gone", broken):
        with pytest.raises(TritpressError):
            follow([end], retries=0)


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
    finished = refusal(lambda: client.command(run_id, "resume"))
    assert finished.status == 409 and "is finished" in str(finished)
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
        {"model": "~nobody-here/x"},
        {"model": model, "config": {"text": ["~nobody-here/x"]}},
        {"model": model, "config": {"plan": "~nobody-here/x"}},
    ):
        status, _, answer = ask(port, "/api/v1/runs", "POST", json.dumps(body).encode(), **JSON)
        assert status == 400 and json.loads(answer)["error"], body
    assert sorted(path.name for path in runs.iterdir()) == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(tiny_model(tmp_path / "model"))

    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def status_of_start() -> int:
        try:
            start(tmp_path / "runs", {"model": model})
        except Exception:
            body, status = error_answer(500, sys.exc_info())
            assert "the disk is full" in body["error"]
            return status
        return 201

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        assert status_of_start() == 507, "no room for its folder"
    monkeypatch.setattr("tritpress.runs.directory.write_json", full)
    assert status_of_start() == 507, "no room for its run.json"


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


def test_the_examples_of_the_documentation(port: int, client: Client, runs: Path, tmp_path: Path) -> None:
    """Every command line and the Python of docs/api.md, as they stand there."""
    text = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    model = tiny_model(tmp_path / "model")
    url = f"http://127.0.0.1:{port}"
    if shutil.which("curl"):
        script = "set -e\n" + "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
        assert script.count("curl") >= 8 and "http://127.0.0.1:5006" in script
        env = {**os.environ, "TRITPRESS_TOKEN": TOKEN, "MODEL": str(model)}
        done = subprocess.run(
            ["bash", "-c", script.replace("http://127.0.0.1:5006", url)],
            capture_output=True, text=True, env=env, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and not done.stderr, done
        assert '"ack":{' in done.stdout and "101 Switching" in done.stdout and '"accepted":3' in done.stdout
        assert client.run("my-run")["status"] == "finished"
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    code = code.replace("http://127.0.0.1:5006", url).replace('"..."', repr(TOKEN))
    code = code.replace('"model-dir"', repr(str(model))).replace("print(", "said(")
    said: list[Any] = []
    exec(code, {"said": lambda *words: said.append(words)})
    assert said[0] == (1, "run.started") and said[-2][1] == "run.finished" and said[-1][1]
    assert any(entry["name"] == "my controller" and entry["origin"] == "remote" for entry in client.runs())
