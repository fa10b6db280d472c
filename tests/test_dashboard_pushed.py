"""Runs that are worked on elsewhere: what a push may hold, and how it becomes a run like any other."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs_helper
from dashboard_log import write_run
from runs_helper import tiny_model
from server_helper import TOKEN, ask, port_and_log, refusal, serve_command, serving
from tritpress.client import Client, Pusher, progress_callback
from tritpress.client.http import ClientError, Server
from tritpress.config import CompressionConfig, make_config
from tritpress.dashboard.api.checks import check_config, check_event, check_values, matches
from tritpress.dashboard.api.pushed import _changes
from tritpress.dashboard.api.pushed import push as take_push
from tritpress.errors import UsageError
from tritpress.events import StateReader, fold, initial_state, load_snapshot
from tritpress.events.reader import EventReader
from tritpress.events.snapshot import _HANDLERS
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import list_runs

BEARER = {"authorization": f"Bearer {TOKEN}"}
JSON = {**BEARER, "content_type": "application/json"}


def test_what_workers_write_is_taken(tmp_path: Path) -> None:
    state = initial_state()
    events = EventReader(write_run(tmp_path, "r").events_path).poll()
    assert len({event["type"] for event in events}) > 12
    for event in events:
        check_event(event, state)
        fold(state, event)


def test_pushed_settings_without_effect_are_left_out() -> None:
    pushed = {"tasks": ["boolq"], "task_limit": 9, "finetune": False, "tokens": 5000, "seed": 3}
    assert check_config(pushed) == make_config({"finetune": False, "seed": 3}).model_dump()


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
        {"type": "model", "model": {"path": 5}, "targets": []},
        {"type": "model", "model": {"parameters": "many"}, "targets": []},
        {"type": "plan", "tensors": [5]},
        {"type": "plan", "tensors": [{"name": "t", "planes": "two"}]},
        {"type": "plan", "tensors": [{"name": "t", "planes": 2, "plane_losses": 0.1}]},
        {"type": "evaluation", "when": "yesterday"},
        {"type": "gate", "name": "sparsity", "target": "a third"},
        {"type": "gate", "name": "sparsity", "target": [0.25, "0.45"]},
        {"type": "handoff", "items": 5},
        {"type": "handoff", "items": [{"name": "opens", "passed": "n/a"}]},
        {"type": "handoff", "items": [{"name": "opens", "passed": None, "detail": ["why"]}]},
        {"type": "figures", "perplexity_interval": 0.1},
        {"type": "run.started", "config": {"planes": 9}},
    ],
)
def test_what_is_no_event(event: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_event({"seq": 1, "t": 1.0, **event}, initial_state())


def test_a_refusal_names_the_field_of_the_entry() -> None:
    target = {"name": "t", "kind": "q", "rows": 4, "cols": 4, "layer": "x"}
    with pytest.raises(UsageError, match=r"event 3 .*'layer' in 'targets' is 'x', which the schema"):
        check_event({"seq": 3, "type": "model", "model": {}, "targets": [target]}, initial_state())
    planned = {"name": "t", "planes": None, "rows": 4}
    with pytest.raises(UsageError, match=r"'planes' in 'tensors' is None"):
        check_event({"seq": 3, "type": "plan", "tensors": [planned]}, initial_state())
    planned |= {"planes": 2, "rows": None}
    check_event({"seq": 3, "type": "plan", "tensors": [planned]}, initial_state())
    target["layer"] = None
    check_event({"seq": 3, "type": "model", "model": {"mine": 1}, "targets": [target]}, initial_state())


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
        check_values({"events": [{"message": "half \ud83d"}]})
    check_values({"events": [{"message": "whole \U0001f600"}]})


def test_the_output_folder_of_another_machine_is_a_text() -> None:
    state = initial_state("r")
    kind, fields = check_event({"seq": 1, "type": "run.started", "out": "/there/out"}, state)
    fold(state, {"seq": 1, "t": 1.0, "type": kind, **fields})
    assert (state["out"], state["remote_out"]) == (None, "/there/out")
    with pytest.raises(UsageError, match="remote_out"):
        check_event({"seq": 2, "type": "run.started", "out": {"a": 1}}, state)


def test_numbers_that_are_none() -> None:
    for number in (10**400, 1 << 63, -(1 << 63)):
        with pytest.raises(UsageError, match="beyond 64 bits"):
            check_values({"events": [{"figures": {"ratio_file": [number]}}]})
    check_values({"events": [{"name": "1" * 400, "value": (1 << 63) - 1}]})


def test_a_run_keeps_no_more_of_a_kind_whatever_the_number_of_pushes() -> None:
    state, coming = initial_state(), {}
    for i in range(1000):
        check_event({"seq": i + 1, "type": "metric", "name": f"m{i}", "value": 1.0}, state, coming)
    check_event({"seq": 1001, "type": "metric", "name": "m7", "value": 1.0}, state, coming)
    with pytest.raises(UsageError, match="at most 1,000"):
        check_event({"seq": 1002, "type": "metric", "name": "one more", "value": 1.0}, state, coming)


def push(port: int, run_id: str, events: list[Any], source: str = "the first sender", **more: Any) -> Any:
    body = json.dumps({"source": source, "events": events, **more}).encode()
    status, _, answer = ask(port, f"/api/v1/runs/{run_id}/events", "POST", body, **JSON)
    return status, json.loads(answer)


def test_a_queued_run_is_listed_as_queued_until_it_begins() -> None:
    assert _changes("run.queued", {"after": ["another"]}) == {"status": "queued", "after": ["another"]}
    assert _changes("run.queued", {})["after"] == []
    assert _changes("run.started", {"name": "r"})["status"] == "running"


def test_a_queued_run_that_works_has_begun(tmp_path: Path) -> None:
    def status_after(*events: dict[str, Any]) -> str:
        take_push(tmp_path, "r", {"source": "the first sender", "events": list(events)})
        reader = StateReader(tmp_path / "r")
        reader.poll()
        (listed,) = list_runs(tmp_path)
        assert listed["status"] == reader.state["status"]
        return str(listed["status"])

    queued = {"type": "run.queued", "after": []}
    assert status_after({"seq": 1, **queued}) == "queued"
    assert status_after({"seq": 2, "type": "log", "message": "m", "level": "info"}) == "queued"
    assert status_after({"seq": 3, "type": "step.started", "step": 1, "name": "load"}) == "running"
    assert status_after({"seq": 4, **queued}, metric(5)) == "running"
    assert status_after({"seq": 6, **queued}, metric(7), {"seq": 8, **queued}) == "queued"


def test_a_push_that_cannot_be_folded_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(state: dict[str, Any], event: dict[str, Any]) -> None:
        raise KeyError("a fault of this version")

    def pushed(*events: dict[str, Any]) -> dict[str, Any]:
        return take_push(tmp_path, "r", {"source": "the first sender", "events": list(events)})

    gate = {"seq": 2, "type": "gate", "name": "ratio", "passed": True}
    assert pushed(metric(1))["seq"] == 1
    with monkeypatch.context() as broken:
        broken.setitem(_HANDLERS, "gate", fails)
        with pytest.raises(UsageError, match="cannot be folded into a run's state: KeyError"):
            pushed(gate)
    assert pushed(gate) == {"run": "r", "seq": 2, "accepted": 1, "ignored": 0}


def metric(seq: int, value: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"seq": seq, "type": "metric", "name": "loss", "value": value, **more}


def test_nothing_stays_of_a_run_whose_first_push_is_refused(port: int, runs: Path) -> None:
    for name, events, more, expected in (
        ("gap", [metric(2)], {}, 409),
        ("config", [metric(1)], {"config": {"planes": 77}}, 400),
        ("event", [metric(1), {"seq": 2, "type": "gate"}], {}, 400),
        ("number", [metric(1, value=10**30)], {}, 400),
    ):
        assert push(port, name, events, **more)[0] == expected, name
        assert not (runs / name).exists(), name
        assert push(port, name, [metric(1)])[0] == 200, "the name is free"
        assert push(port, name, [metric(3)])[0] == 409 and (runs / name / "run.json").is_file()


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


def test_a_controller_that_was_restarted_is_shown_again(
    port: int, client: Client, runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tritpress.client.push.RETRY_MOST", 0.1)
    assert push(port, "restarted", [metric(1)], source="before the restart")[0] == 200
    status, answer = push(port, "restarted", [], source="after the restart")
    assert status == 409 and answer["until_silent"] == 30
    with client.push("again", run_id="restarted") as pusher:
        deadline = time.monotonic() + 10
        while "until that one is silent" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert push(port, "restarted", [metric(2)], source="before the restart")[0] == 200
        assert pusher.error is None and not pusher.flush(0.5)
        RunDirectory(runs / "restarted").update_run(heartbeat=time.time() - 31)
        assert pusher.flush(20)
    assert pusher.error is None
    events = client.events("restarted")
    assert [(e["seq"], e["type"]) for e in events] == list(
        enumerate(["metric", "metric", "run.started", "run.finished"], 1)
    )


def test_a_second_controller_beside_a_living_one_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    server, asked = Server("http://127.0.0.1:1", TOKEN), []

    def ask(method: str, *_: Any, **__: Any) -> dict[str, Any]:
        asked.append(method)
        if method == "GET":
            return {"seq": 7}
        raise ClientError(409, "another controller is pushing", {"until_silent": 0.05})

    monkeypatch.setattr(server, "ask", ask)
    monkeypatch.setattr("tritpress.client.push.RETRY_FIRST", 0.01)
    pusher = Pusher(server, "second", run_id="r")
    pusher.emit("metric", name="loss", value=1.0)
    assert not pusher.flush(20) and pusher.error is not None and asked[:4] == ["GET", "POST"] * 2


class Kept(Server):
    """A server of no address; `asked` keeps what is asked of it. `silent`: another sender has the run."""

    def __init__(self, silent: float | None = None) -> None:
        super().__init__("http://127.0.0.1:1", TOKEN)
        self.silent, self.asked, self.seq = silent, [], 0  # type: ignore[var-annotated]

    def ask(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
        self.asked.append((time.monotonic(), body))
        if method == "POST":
            if self.silent is not None:
                raise ClientError(409, "another controller is pushing", {"until_silent": self.silent})
            self.seq += len(body["events"])
        return {"seq": self.seq}


def test_close_waits_for_the_announced_silence_and_says_why_it_gave_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tritpress.client.push.RETRY_FIRST", 0.05)
    monkeypatch.setattr("tritpress.client.push.KEPT_OUT_RETRY", 0.1)
    monkeypatch.setattr("tritpress.client.push.PATIENCE", 0.2)
    server = Kept(silent=0.8)
    pusher = Pusher(server, "second", run_id="r")
    begun = time.monotonic()
    pusher.emit("metric", name="loss", value=1.0)
    assert not pusher.close(), "it lives on"
    assert time.monotonic() - begun > 0.9
    assert pusher.error is not None and "another controller" in str(pusher.error)
    assert pusher.error.body == {"until_silent": 0.8}
    tries = [when for when, body in server.asked if body]
    assert len(tries) >= 5, "the pauses do not grow"
    freed = Kept(silent=30)
    pusher = Pusher(freed, "after the first", run_id="r")
    pusher.emit("metric", name="loss", value=1.0)
    assert not pusher.flush(0.3) and pusher.error is None, "a time that is given is kept to"
    freed.silent = None
    assert pusher.close() and pusher.error is None and freed.seq == 1


def test_a_report_alone_is_sent_and_after_the_end_nothing_is_waited_for() -> None:
    server = Kept()
    pusher = Pusher(server, "a report", run_id="r")
    pusher.report({"gates": []})
    assert pusher.flush(20)
    assert [body["report"] for _, body in server.asked if body] == [{"gates": []}]
    assert pusher.close()
    pusher.report({"gates": [1]})
    begun = time.monotonic()
    assert pusher.flush() and time.monotonic() - begun < 5
    server = Kept(silent=30)
    pusher = Pusher(server, "kept out", run_id="r")
    pusher.emit("metric", name="loss", value=1.0)
    pusher.close(0.3)
    begun = time.monotonic()
    assert not pusher.flush() and time.monotonic() - begun < 5


def test_a_failure_that_is_too_large_is_shortened() -> None:
    server = Kept()
    with pytest.raises(ValueError, match="x"), Pusher(server, "fails", run_id="r"):
        raise ValueError("x" * (2 << 20))
    (last,) = [body["events"] for _, body in server.asked if body and body["events"]][-1][-1:]
    assert (last["type"], last["exit_code"]) == ("run.failed", 1)
    assert last["error"].startswith("ValueError: xxx") and last["error"].endswith("x (and so on)")
    pusher = Pusher(server, "fails", run_id="r")
    pusher.emit("run.failed", error="of all things", exit_code=2, trace="x" * (2 << 20))
    assert pusher.close() and pusher.oversize == 0
    assert server.asked[-1][1]["events"][-1]["error"] == "of all things"


def test_a_model_of_many_experts_and_an_event_that_is_too_large(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"model.layers.{i // 384}.mlp.experts.{i % 384}.gate_proj.weight" for i in range(48 * 384)]
    one = {"layer": 7, "kind": "gate", "rows": 768, "cols": 2048}
    planned = {**one, "planes": 2, "group_size": 64, "bits": 4.5, "threshold": 0.5, "sparsity": None}
    planned |= {"error": 0.012345678901234567, "importance": 0.012345678901234567, "max_sparsity": 0.44}
    with client.push("experts") as pusher:
        pusher.emit("model", model={"path": "m"}, targets=[{"name": name, **one} for name in names])
        pusher.emit("plan", tensors=[{"name": name, **planned} for name in names], predicted_ratio=7.0)
        for size in (1 << 20, 2 << 20):
            pusher.emit("metric", name="loss", value=1.0, note="x" * size)
        pusher.emit("metric", name="loss", value=0.5)
        pusher.report({"text": "x" * (8 << 20)})
        pusher.report({"text": "x" * (5 << 20)})
    assert pusher.error is None and pusher.oversize == 3
    events = client.events(pusher.run_id)
    kinds = ["run.started", "model", "plan", "log", "metric", "run.finished"]
    assert [event["type"] for event in events] == kinds
    assert [len(events[1]["targets"]), len(events[2]["tensors"])] == [len(names)] * 2
    assert len(json.dumps(events[2])) > 4 << 20 and len(json.dumps(events[1])) > 1 << 20
    assert re.search(r"The event 'metric' of 1,048,\d+ bytes .* is left out", events[3]["message"])
    assert caplog.text.count("is left out") == 1
    assert len(client.report(pusher.run_id)["text"]) == 5 << 20


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


