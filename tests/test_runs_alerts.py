"""Alerts: rules that fire once for each cause, and deliveries that survive crashes and deaf receivers."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import alerts_helper
import pytest
from tritpress.config import UNSAFE_OVER_API, CompressionConfig, make_config
from tritpress.errors import UsageError
from tritpress.events import EventReader, StateReader
from tritpress.events.rules import DEFAULT_RULES, parse_rule, parse_rules
from tritpress.runs.alerts import Watch
from tritpress.runs.directory import RunDirectory
from tritpress.runs.follow import WorkerDied, follow
from tritpress.runs.launch import resume
from tritpress.runs.outbox import SECRET, Courier, Entry, Outbox, call, post


class Receiver:
    """A web server that answers what `answers` says (200 once they are used up) and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes, int]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = outer.answers.pop(0) if outer.answers else 200
                outer.got.append((dict(self.headers), body, code))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", f"{outer.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def run_cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tritpress", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def watch(*rules: str) -> tuple[Watch, list[dict[str, Any]], list[float]]:
    told: list[dict[str, Any]] = []
    now = [0.0]
    return Watch(parse_rules(rules), told.append, clock=lambda: now[0]), told, now


def alerts_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [event for event in EventReader(run.events_path).poll() if event["type"] == "alert"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("gate", "gate"),
        ("gate:ratio", "gate"),
        (" nan ", "nan"),
        ("stalled:0.5", "stalled"),
        ("sparsity", "sparsity"),
        ("sparsity:0.3-0.4", "sparsity"),
        ("metric:a b/c > -1e3", "metric"),
        ("metric:x<=2", "metric"),
    ],
)
def test_rules_are_read(text: str, kind: str) -> None:
    assert parse_rule(text).kind == kind


@pytest.mark.parametrize(
    "text",
    ["", "boom", "nan:3", "gate:", "stalled", "stalled:0", "stalled:nan", "sparsity:0.4-0.3", "sparsity:1-2",
     "metric:x", "metric:>3", "metric:x>y", "metric:x>inf"],
)  # fmt: skip
def test_what_is_no_rule_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"rule|needs"):
        parse_rule(text)
    with pytest.raises(UsageError, match=r"^alerts .*given"):
        make_config({"alerts": [text]})


def test_the_configuration_of_alerts() -> None:
    assert CompressionConfig().alerts == list(DEFAULT_RULES)
    assert make_config({"alerts": ["default", "metric:x>1", "gate"]}).alerts == [*DEFAULT_RULES, "metric:x>1"]
    assert make_config({"alerts": ["none"]}).alerts == [] == make_config({"alerts": []}).alerts
    for bad in ("ftp://host/x", "file:///etc/passwd", "host/x", "http://", "https://user:pw@host/"):
        with pytest.raises(UsageError, match="alert_webhook"):
            make_config({"alert_webhook": bad})
    for bad in ("", "a 'b"):
        with pytest.raises(UsageError, match="alert_command"):
            make_config({"alert_command": bad})
    assert "alert_command" in UNSAFE_OVER_API and set(CompressionConfig.model_fields) >= UNSAFE_OVER_API


def test_a_rule_fires_once_and_is_armed_again() -> None:
    seen, told, _ = watch("metric:queue>0.5")
    for value in (0.4, 0.6, 0.7, 0.5, 0.9):
        seen.see("metric", {"name": "queue", "value": value})
    seen.see("metric", {"name": "other", "value": 9})
    assert [(alert["value"], alert["limit"], alert["name"]) for alert in told] == [
        (0.6, 0.5, "queue"),
        (0.9, 0.5, "queue"),
    ]
    assert told[0]["message"] == "queue is 0.6, above 0.5" and told[0]["level"] == "warning"


def test_gates_and_numbers_that_are_none() -> None:
    seen, told, _ = watch("gate:ratio", "nan")
    seen.see("step.started", {"step": 5, "name": "fine-tuning"})
    seen.see("gate", {"name": "accuracy", "passed": False, "actual": 0.5, "target": 0.95})
    seen.see("gate", {"name": "ratio", "passed": None, "actual": None, "target": 6.0})
    seen.see("gate", {"name": "ratio", "passed": False, "actual": 5.0, "target": 6.0})
    seen.see("finetune.step", {"step": 1, "loss": 2.0, "kl": 1.0})
    seen.see("finetune.step", {"step": 2, "loss": float("nan"), "kl": float("inf")})
    seen.see("finetune.step", {"step": 3, "loss": float("nan"), "kl": 1.0})
    seen.see("log", {"message": "no finite loss in step 4", "not_finite": "loss"})
    assert [(alert["rule"], alert["name"], alert["step"]) for alert in told] == [
        ("gate:ratio", "ratio", 5),
        ("nan", "loss", 5),
        ("nan", "kl", 5),
    ]
    assert told[0]["message"] == "The gate ratio failed: 5, asked for 6"
    assert {alert["level"] for alert in told} == {"critical"}


def test_sparsity_is_judged_over_what_is_pressed() -> None:
    seen, told, _ = watch("sparsity:0.3-0.4")
    seen.see("model", {"targets": [{}] * 16})
    tensor = {"rows": 10, "cols": 10, "planes": 1}
    seen.see("layer.finished", {"name": "a", "sparsity": 0.9, **tensor})
    assert not told  # one of sixteen says nothing yet
    seen.see("layer.finished", {"name": "b", "sparsity": 0.1, **tensor})
    assert told[-1]["value"] == 0.5 and "outside 30 % to 40 %" in told[-1]["message"]
    for name in "cd":
        seen.see("layer.finished", {"name": name, "sparsity": 0.1, **tensor})
    assert len(told) == 1  # 0.3 is inside
    seen.see("figures", {"sparsity": 0.29})
    assert len(told) == 2 and told[-1]["name"] == "low"


def test_sparsity_counts_every_expert_of_a_stack() -> None:
    seen, told, _ = watch("sparsity:0.3-0.6")
    tensor = {"rows": 10, "cols": 10, "planes": 1}
    seen.see("layer.finished", {"name": "q", "sparsity": 0.5, **tensor})
    seen.see("layer.finished", {"name": "experts", "sparsity": 0.1, **tensor, "weights": 1500})
    assert [alert["value"] for alert in told] == [pytest.approx((50 + 150) / 1600)]


def test_no_progress_and_pauses() -> None:
    seen, told, now = watch("stalled:10")
    now[0] = 599
    seen.tick()
    seen.see("log", {"message": "still here"})
    assert not told
    now[0] = 601
    seen.tick()
    seen.tick()
    assert len(told) == 1 and told[0]["limit"] == 10 and told[0]["message"] == "No progress for 10 minutes"
    seen.see("step.progress", {"step": 4, "done": 1, "total": 9})
    seen.see("run.paused", {})
    now[0] = 5000
    seen.tick()
    seen.see("run.resumed", {"seconds": 4399})
    now[0] = 5599
    seen.tick()
    assert len(told) == 1  # a paused run does not stall
    now[0] = 5601
    seen.tick()
    assert len(told) == 2


def test_a_run_that_waits_in_the_queue_does_not_stall() -> None:
    seen, told, now = watch("stalled:10")
    seen.see("run.queued", {"after": ["a"]})
    now[0] = 5000
    seen.tick()
    seen.see("run.started", {"config": {}})
    now[0] = 5599
    seen.tick()
    assert not told
    now[0] = 5601
    seen.tick()
    assert len(told) == 1


def test_a_broken_rule_or_receiver_never_reaches_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise RuntimeError("of all things")

    seen = Watch(parse_rules(["metric:x>0"]), fail)
    seen.see("metric", {"name": "x", "value": 1})
    assert "of all things" in capfd.readouterr().err


def test_alerts_of_a_worker_are_events_and_are_told_once_over_a_resume(tmp_path, monkeypatch) -> None:
    script = [
        ["step.started", {"step": 5, "name": "fine-tuning"}, 0],
        ["metric", {"name": "x", "value": 2.0}, 0],
        ["finetune.step", {"step": 1, "loss": "NaN"}, 0],
        ["metric", {"name": "y", "value": 2.0}, 0],
        ["metric", {"name": "y", "value": 0.0}, 0.5],  # long enough for events that wait for each other
        ["kill", {}, 0],
    ]
    rules = ["default", "metric:x>1", "metric:y>1"]
    run = alerts_helper.play(monkeypatch, tmp_path, script, alerts=rules)
    with pytest.raises(WorkerDied):
        list(follow(run))
    assert [alert["rule"] for alert in alerts_of(run)] == ["metric:x>1", "nan", "metric:y>1"]
    again = [
        ["metric", {"name": "x", "value": 3.0}, 0],  # was told, and is as it was
        ["metric", {"name": "y", "value": 3.0}, 0],  # was gone, and is back
        ["gate", {"name": "ratio", "passed": False, "actual": 5.0, "target": 6.0, "advice": None}, 0],
    ]
    monkeypatch.setenv("TRITPRESS_SCRIPT", json.dumps(again))
    offset = run.events_path.stat().st_size
    resume(run)
    list(follow(run, offset))
    assert [alert["rule"] for alert in alerts_of(run)][3:] == ["metric:y>1", "gate"]
    state = StateReader(run.path).state
    assert [alert["rule"] for alert in state["alerts"]][-1] == "gate" and state["exit_code"] == 3


def test_a_stalled_run_is_told_by_the_clock_of_its_worker(tmp_path, monkeypatch) -> None:
    script = [["step.started", {"step": 4, "name": "ternarization"}, 3.0]]
    run = alerts_helper.play(monkeypatch, tmp_path, script, alerts=["stalled:0.01"])
    list(follow(run))
    (alert,) = alerts_of(run)
    assert alert["rule"] == "stalled:0.01" and alert["step"] == 4 and alert["level"] == "warning"


def failing(wait: float = 0.0) -> list[list[Any]]:
    return [["gate", {"name": "ratio", "passed": False, "actual": 5.0, "target": 6.0, "advice": None}, wait]]


def test_a_webhook_that_fails_twice_gets_it_signed_at_the_third_time(tmp_path, monkeypatch, receiver) -> None:
    receiver.answers = [500, 302]
    monkeypatch.setenv(SECRET, "a secret")
    run = alerts_helper.play(monkeypatch, tmp_path, failing(5.0), alert_webhook=receiver.url)
    list(follow(run))
    assert [code for _, _, code in receiver.got] == [500, 302, 200]
    assert len({body for _, body, _ in receiver.got}) == 1  # and nothing was sent where the redirect points
    assert len({headers["Tritpress-Delivery"] for headers, _, _ in receiver.got}) == 1
    for headers, body, _ in receiver.got:
        stamp = headers["Tritpress-Timestamp"]
        wanted = hmac.new(b"a secret", f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        assert headers["Tritpress-Signature"] == f"sha256={wanted}" and abs(time.time() - int(stamp)) < 60
    sent = json.loads(receiver.got[0][1])
    assert (sent["run"], sent["rule"], sent["name"]) == (run.id, "gate", "ratio")
    assert Outbox(run).entries() == []
    logs = [e["message"] for e in EventReader(run.events_path).poll() if e["type"] == "log"]
    assert [("waits in the outbox" in text, "takes alerts again" in text) for text in logs] == [
        (True, False),
        (False, True),
    ]
    assert "a secret" not in "".join(p.read_text(errors="replace") for p in run.path.iterdir() if p.is_file())


def test_nobody_there_does_not_stop_the_run_and_send_delivers_later(tmp_path, monkeypatch, receiver) -> None:
    receiver.answers = [503] * 20
    run = alerts_helper.play(monkeypatch, tmp_path, failing(), alert_webhook=receiver.url)
    started = time.monotonic()
    assert list(follow(run))[-1]["type"] == "run.finished" and time.monotonic() - started < 20
    (entry,) = Outbox(run).entries()
    assert entry.tries >= 1 and entry.error == "the webhook answered 503"
    shown = run_cli("runs", "alerts", str(run.path))
    assert "The gate ratio failed" in shown.stdout and "answered 503" in shown.stdout
    answer = run_cli("runs", "alerts", str(run.path), "--send", "--json")
    assert answer.returncode == 1 and json.loads(answer.stdout)["failed"] == 1
    receiver.answers = []
    answer = run_cli("runs", "alerts", str(run.path), "--send", "--json")
    found = json.loads(answer.stdout)
    assert answer.returncode == 0 and (found["taken"], found["outbox"]) == (1, [])
    assert "Tritpress-Signature" not in receiver.got[-1][0]  # no secret was given
    assert json.loads(receiver.got[-1][1])["rule"] == "gate"


def test_a_crash_between_writing_and_sending_loses_nothing(tmp_path, monkeypatch, receiver) -> None:
    """Killed as soon as the alert lies in the outbox; the resumed worker sends it."""
    receiver.answers = [503] * 100
    script = [*failing(), ["kill", {}, 0]]
    run = alerts_helper.play(monkeypatch, tmp_path, script, alert_webhook=receiver.url)
    with pytest.raises(WorkerDied):
        list(follow(run))
    (entry,) = Outbox(run).entries()
    (run.path / "outbox" / "torn.json").write_text('{"id": "to')  # what no rename ever finished
    (run.path / "outbox" / "torn.tmp").write_text("")
    receiver.answers, receiver.got[:] = [], []
    monkeypatch.setenv("TRITPRESS_SCRIPT", json.dumps([["log", {"message": "on"}, 0.5]]))
    offset = run.events_path.stat().st_size
    resume(run)
    list(follow(run, offset))
    assert [headers["Tritpress-Delivery"] for headers, _, _ in receiver.got] == [entry.id]
    assert receiver.got[0][1] == entry.body.encode() and Outbox(run).entries() == []


def test_an_entry_is_whole_on_the_disk_before_put_returns(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from tritpress.runs.directory import RunDirectory;"
        "from tritpress.runs.outbox import Outbox;"
        "Outbox(RunDirectory(sys.argv[1])).put('webhook', {'rule': 'nan', 'message': 'm'});"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (entry,) = Outbox(RunDirectory(tmp_path)).entries()
    assert json.loads(entry.body)["rule"] == "nan" and entry.tries == 0


def test_a_command_gets_the_alert_on_its_stdin_and_no_shell(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SECRET, "hidden")
    script = tmp_path / "take it"
    out = tmp_path / "out"
    script.write_text(f'#!/bin/sh\n{{ echo "$1"; echo "${SECRET}"; cat; }} > "{out}"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    entry = Entry("1", "command", '{"rule":"nan"}', 0.0)
    assert call(f"'{script}' '$HOME; echo no'", entry) is None
    assert out.read_text().splitlines() == ["$HOME; echo no", "", '{"rule":"nan"}']
    assert call("false", entry) == "the command ended with 1"
    assert "cannot be started" in str(call(str(tmp_path / "nothing"), entry))
    started = time.monotonic()
    assert "more than" in str(call("sh -c 'sleep 30 & sleep 30'", entry, timeout=0.3))
    assert time.monotonic() - started < 5


def test_one_receiver_that_fails_does_not_keep_the_other_waiting(tmp_path, monkeypatch, receiver) -> None:
    receiver.answers = [500] * 50
    out = tmp_path / "taken"
    config = CompressionConfig(alert_webhook=receiver.url, alert_command=f"tee {out}")
    run = RunDirectory(tmp_path / "r")
    run.path.mkdir()
    courier = Courier(run, config)
    courier.take({"rule": "nan", "message": "m"})
    assert courier.send() == (1, 1)
    assert json.loads(out.read_text())["message"] == "m"
    (left,) = Outbox(run).entries()
    assert left.to == "webhook" and 0.5 < left.next_try - time.time() <= 1.0
    courier.send(everything=True)
    (left,) = Outbox(run).entries()
    assert left.tries == 2 and 1.5 < left.next_try - time.time() <= 2.0  # later and later
    assert courier.send() == (0, 0)  # not due


def test_addresses_where_nobody_listens_are_words_not_errors() -> None:
    entry = Entry("1", "webhook", "{}", 0.0)
    assert "cannot be reached" in str(post("http://127.0.0.1:9/x", entry, None))
    assert "cannot be reached" in str(post("http://no\u00ffhost.invalid/x", entry, None))


def test_alerts_from_the_command_line(tmp_path: Path) -> None:
    answer = run_cli("compress", str(tmp_path), "-o", "out", "--alert", "boom", "--json")
    assert answer.returncode == 2 and "--alert" in answer.stderr and "is no rule" in answer.stderr
    answer = run_cli("compress", str(tmp_path), "-o", "out", "--alert-webhook", "ftp://x", "--json")
    assert answer.returncode == 2 and "--alert-webhook must be an http" in answer.stderr
    assert "--alert-command" in run_cli("compress", "--help").stdout
    assert "--send" in run_cli("runs", "alerts", "--help").stdout


def test_watching_costs_little() -> None:
    """At most a millisecond of an event on any machine: a guard against work that grows with the model."""
    seen, _, _ = watch(*DEFAULT_RULES, "metric:x>1")
    seen.see("model", {"targets": [{}] * 882})
    fields = {"name": "t", "sparsity": 0.4, "rows": 10, "cols": 10, "planes": 2}
    for i in range(882):
        seen.see("layer.finished", {**fields, "name": f"t{i}"})
    started = time.process_time()
    for i in range(200):
        seen.see("layer.finished", {**fields, "name": f"t{i}"})
    assert (time.process_time() - started) / 200 < 0.001

