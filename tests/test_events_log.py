"""The event log and the snapshot: what a reader sees at any moment, after any crash."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritpress.events import (
    EVENT_TYPES,
    EventReader,
    EventWriter,
    NullContext,
    RunContext,
    StateReader,
    encode,
    fold,
    initial_state,
    load_snapshot,
)
from tritpress.events.snapshot import _HANDLERS, FINETUNE_POINTS, step_worked, worked


def lines(run: Path) -> list[bytes]:
    return (run / "events.jsonl").read_bytes().split(b"\n")[:-1]


def some_events(n: int, seed: int = 0):
    """A long and lively run: all steps, many layers, more training steps than a state keeps."""
    rng = random.Random(seed)
    yield "run.started", {"model": "m", "out": "o", "config": {"seed": 0}, "name": "x", "resumed": False}
    yield "model", {"model": {"path": "m"}, "targets": [{"name": "a", "layer": 0}]}
    for i in range(n):
        yield rng.choice(
            [
                ("step.started", {"step": 1 + i % 7, "name": "s"}),
                ("step.progress", {"step": 4, "done": i, "total": n, "detail": f"t{i}"}),
                ("step.finished", {"step": 1 + i % 7, "name": "s", "seconds": 1.5, "skipped": None}),
                (
                    "layer.finished",
                    {"name": f"t{i}", "layer": i, "histogram": {"before": [1] * 128}, "mse": 0.1},
                ),
                ("finetune.step", {"step": i, "loss": 2.0 / (i + 1)}),
                ("metric", {"name": "m", "value": i}),
                ("log", {"message": f"line {i}"}),
                ("alert", {"message": f"alert {i}"}),
                ("command.ack", {"id": f"c{i}", "command": "pause", "ok": True, "detail": ""}),
                ("run.paused", {}),
                ("run.resumed", {"seconds": 0.1}),
                ("gradient", {"layer": f"t{i}", "norm": 0.5}),
                ("unheard-of", {"anything": [1, {"a": None}]}),
            ]
        )


def replay(run: Path) -> dict:
    state = initial_state(run.name)
    for event, offset in EventReader(run / "events.jsonl").poll_offsets():
        fold(state, event)
        state["offset"] = offset
    return state


def test_every_event_has_the_common_keys_and_a_gapless_number(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, "r1")
    for i in range(5):
        writer.emit("log", message=str(i))
    writer.close()
    events = [json.loads(line) for line in lines(tmp_path)]
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    for event in events:
        assert list(event)[:5] == ["v", "run", "seq", "t", "type"]
        assert event["v"] == 1 and event["run"] == "r1" and isinstance(event["t"], float)


def test_numbers_stay_numbers_and_what_json_lacks_is_null(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.emit(
        "metric",
        name="m",
        value=np.float32(0.5),
        count=np.int64(3),
        list=np.arange(2),
        bad=float("nan"),
        worse=[np.float64("inf")],
        path=Path("a/b"),
    )
    writer.close()
    (event,) = EventReader(tmp_path / "events.jsonl").poll()
    assert event["value"] == 0.5 and event["count"] == 3 and event["list"] == [0, 1]
    assert event["bad"] is None and event["worse"] == [None] and event["path"] == "a/b"


def test_a_field_cannot_take_the_name_of_a_common_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seq"):
        EventWriter(tmp_path).emit("log", seq=4)
    assert lines(tmp_path) == []


def test_a_late_reader_from_the_snapshot_sees_what_a_full_replay_sees(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    moments = 0
    for i, (name, fields) in enumerate(some_events(2600)):
        writer.emit(name, **fields)
        if i % 200 == 0:
            late = StateReader(tmp_path)
            late.poll()
            assert late.state == replay(tmp_path)
            moments += 1
    writer.close()
    late = StateReader(tmp_path)
    assert moments == 14 and late.poll() == []  # the last snapshot holds everything
    assert late.state == replay(tmp_path) == writer.state
    assert '"histogram"' not in (tmp_path / "snapshot.json").read_text()
    assert late.state["layers"] and len(late.state["log"]) <= 200 and len(late.state["acks"]) <= 50


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(0, 1), st.booleans(), st.integers(0, 50))
def test_a_log_cut_anywhere_is_taken_up_again_without_a_gap(
    seed: int, n: int, where: float, tear_snapshot: bool, snapshot_bytes: int
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        writer = EventWriter(run, "r")
        for name, fields in some_events(n, seed):
            writer.emit(name, **fields)
        writer.close()
        log = run / "events.jsonl"
        whole = log.read_bytes()
        cut = round(where * len(whole))
        log.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        if tear_snapshot:
            snapshot = run / "snapshot.json"
            snapshot.write_bytes(snapshot.read_bytes()[:snapshot_bytes])
        again = EventWriter(run, "r")
        again.emit("log", message="on we go")
        again.close()
        events = [json.loads(line) for line in lines(run)]
        assert [event["seq"] for event in events] == list(range(1, kept + 2))
        late = StateReader(run)
        late.poll()
        assert late.state == replay(run)


def test_a_reader_never_hands_out_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.poll() == []  # no file yet
    line = (
        encode({"v": 1, "run": "r", "seq": 1, "t": 1.0, "type": "log", "message": "é" * 50}).encode() + b"\n"
    )
    seen = []
    for i in range(len(line)):
        with open(path, "ab") as file:
            file.write(line[i : i + 1])
        seen += reader.poll()
        assert len(seen) == (i == len(line) - 1)
    assert reader.offset == len(line)


def test_lines_that_are_no_event_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\x00\x00\n\nnull\n[]\n{"type":"log"}\n{"v":1,"run":"r","seq":1,"t":1,"type":"log"}\n')
    assert [event["seq"] for event in EventReader(path).poll()] == [1]


def test_a_snapshot_of_another_log_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "snapshot.json").write_text(json.dumps({**initial_state("r"), "offset": 10**6, "seq": 99}))
    writer = EventWriter(tmp_path, "r")
    writer.emit("log", message="first")
    assert writer.state["seq"] == 1


def test_a_reader_beside_a_writer_sees_every_event_once_in_order(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        reader = EventReader(tmp_path / "events.jsonl")
        while True:
            last = done.is_set()
            seen.extend(event["seq"] for event in reader.poll())
            if last:
                return

    thread = threading.Thread(target=read)
    thread.start()
    threads = [
        threading.Thread(target=lambda: [writer.emit("log", message="x" * 300) for _ in range(200)])
        for _ in range(4)
    ]
    for other in threads:
        other.start()
    for other in threads:
        other.join()
    done.set()
    thread.join()
    assert seen == list(range(1, 801))


def test_a_killed_writer_leaves_whole_lines_and_a_whole_snapshot(tmp_path: Path) -> None:
    code = (
        "import sys; from tritpress.events import EventWriter\n"
        "w = EventWriter(sys.argv[1])\n"
        "i = 0\n"
        "while True:\n"
        "    w.emit('layer.finished', name=f't{i}', mse=0.1, histogram={'before': [1] * 128})\n"
        "    w.emit('step.finished', step=1, name='load', seconds=1.0, skipped=None)\n"
        "    i += 1\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        size = (tmp_path / "events.jsonl").stat().st_size if (tmp_path / "events.jsonl").exists() else 0
        while (
            not (tmp_path / "events.jsonl").exists()
            or (tmp_path / "events.jsonl").stat().st_size < size + 20_000
        ):
            assert process.poll() is None
        process.kill()
        process.wait()
        state = load_snapshot(tmp_path / "snapshot.json")
        assert state is not None and state["seq"] > 0
        late = StateReader(tmp_path)
        late.poll()
        assert late.state == replay(tmp_path)
    events = EventReader(tmp_path / "events.jsonl").poll()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_a_write_that_fails_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EventWriter(tmp_path)
    writer.emit("log", message="first")
    write = os.write

    def full(file: int, data: bytes) -> int:
        write(file, data[:7])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tritpress.events.writer.os.write", full)
        with pytest.raises(OSError, match="No space"):
            writer.emit("log", message="second")
    writer.emit("log", message="third")
    events = EventReader(tmp_path / "events.jsonl").poll()
    assert [(event["seq"], event["message"]) for event in events] == [(1, "first"), (2, "third")]
    assert lines(tmp_path) == (tmp_path / "events.jsonl").read_bytes().split(b"\n")[:-1]


def test_events_that_come_thick_are_written_together_and_all_others_at_once(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, "r", together=0.3)
    for i in range(5):
        writer.emit("layer.started", name=f"t{i}", layer=i, kind="q")
    assert lines(tmp_path) == []
    writer.emit("run.paused")
    events = EventReader(tmp_path / "events.jsonl").poll()
    assert [event["type"] for event in events] == ["layer.started"] * 5 + ["run.paused"]
    assert [event["seq"] for event in events] == list(range(1, 7)) and writer.state["seq"] == 6
    writer.emit("metric", name="m", value=1)
    changing = np.array([1.0])
    writer.emit("metric", name="n", value=changing)  # what may change is written at once, with what waited
    assert len(lines(tmp_path)) == 8
    writer.emit("metric", name="m", value=2)
    wait_for(lambda: len(lines(tmp_path)) == 9)
    writer.emit("metric", name="m", value=3)
    writer.close()
    assert json.loads(lines(tmp_path)[-1])["value"] == 3 and replay(tmp_path) == writer.state
    assert load_snapshot(tmp_path / "snapshot.json") == writer.state


def test_what_went_wrong_with_an_event_that_waited_is_told_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EventWriter(tmp_path, together=0.01)
    append = writer._append

    def full(data: bytes) -> None:
        monkeypatch.setattr(writer, "_append", append)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_append", full)
    writer.emit("metric", name="m", value=1)
    wait_for(lambda: writer._error is not None)
    with pytest.raises(OSError, match="No space"):
        writer.emit("log", message="written all the same")
    writer.emit("metric", name="m", value={"a": object()})
    writer.emit("metric", name="m", value=2)
    with pytest.raises(TypeError, match="object"):
        writer.close()
    events = EventReader(tmp_path / "events.jsonl").poll()
    assert [(event["seq"], event["type"]) for event in events] == [(1, "log"), (2, "metric")]


def wait_for(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("together", [0.0, 0.005])
def test_the_time_spent_on_events_is_all_that_they_take(tmp_path: Path, together: float) -> None:
    """Neither less than the processor's time of emitting nor more than passes meanwhile."""
    writer = EventWriter(tmp_path, together=together)
    started, worked = time.perf_counter(), time.thread_time()
    for i in range(300):
        writer.emit("layer.finished", name=f"t{i}", histogram={"before": [i] * 128, "after": [i] * 128})
    writer.emit("log", message="x" * 1_000_000)
    writer.flush()
    worked, passed = time.thread_time() - worked, time.perf_counter() - started
    assert 0.8 * worked < writer.write_seconds < passed
    before = writer.write_seconds
    time.sleep(0.05)
    assert writer.write_seconds == pytest.approx(before, abs=1e-3), "waiting for events is not counted"
    assert writer.seconds >= passed
    writer.close()


def test_training_points_are_thinned_but_reach_from_the_first_to_the_last(tmp_path: Path) -> None:
    state = initial_state("r")
    total = 3 * FINETUNE_POINTS + 7
    for i in range(1, total + 1):
        fold(
            state,
            {"v": 1, "run": "r", "seq": i, "t": float(i), "type": "finetune.step", "step": i, "loss": 1 / i},
        )
    steps = [point["step"] for point in state["finetune"]]
    assert len(steps) <= FINETUNE_POINTS and steps[0] == 1 and steps[-1] > total - 10
    assert steps == sorted(set(steps)) and state["finetune_last"]["step"] == total


def test_training_taken_up_at_a_checkpoint_replaces_what_lay_beyond_it() -> None:
    state = initial_state("r")
    for seq, (step, loss) in enumerate([(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5)], 1):
        fold(state, {"seq": seq, "t": 0.0, "type": "finetune.step", "step": step, "loss": loss})
    assert [(p["step"], p["loss"]) for p in state["finetune"]] == [(1, 5.0), (2, 4.5), (3, 3.5)]


def test_time_at_work_leaves_out_pauses_and_what_lies_between_two_workers() -> None:
    state, log = initial_state("r"), []
    for t, kind, fields in [
        (100.0, "run.started", {}), (110.0, "run.paused", {}), (150.0, "run.resumed", {}),
        (160.0, "run.finished", {"status": "stopped"}), (1000.0, "run.started", {}),
        (1005.0, "step.started", {"step": 1}), (8999.9, "command.ack", {"id": "1"}),
        (9000.0, "run.started", {}), (9003.0, "run.paused", {}), (9004.0, "log", {}),
    ]:  # fmt: skip
        log.append(t)
        fold(state, {"type": kind, "seq": len(log), "t": t, "run": "r", **fields})
    assert worked(state, 9999.0) == 10 + 10 + 5 + 3, "the second worker was killed after its last word"
    fold(state, {"type": "run.finished", "seq": 10, "t": 9500.0, "run": "r", "status": "stopped"})
    assert worked(state, state["finished"]) == 28
    assert worked(initial_state("r"), 5.0) is None


def test_time_of_a_running_step_leaves_out_its_pauses() -> None:
    state = initial_state("r")
    for seq, (t, kind) in enumerate(
        [(90.0, "run.started"), (91.0, "run.paused"), (95.0, "run.resumed"), (100.0, "step.started"),
         (110.0, "run.paused"), (150.0, "run.resumed"), (160.0, "run.paused")]
    ):  # fmt: skip
        fold(state, {"type": kind, "seq": seq, "t": t, "run": "r", "step": 4})
    step = state["steps"][3]
    assert step_worked(step, 9999.0, state["idle_since"]) == 20
    fold(state, {"type": "run.resumed", "seq": 8, "t": 1160.0, "run": "r"})
    assert step_worked(step, 1165.0, state["idle_since"]) == 25
    fold(state, {"type": "step.started", "seq": 9, "t": 1170.0, "run": "r", "step": 4})
    assert step_worked(step, 1171.0, state["idle_since"]) == 1
    assert step_worked(state["steps"][4], 1171.0) is None


def test_the_state_tells_how_a_run_went() -> None:
    state, seq = initial_state("r"), 0

    def tell(type: str, **fields) -> None:
        nonlocal seq
        seq += 1
        fold(state, {"v": 1, "run": "r", "seq": seq, "t": 100.0 + seq, "type": type, **fields})

    tell("run.started", model="m", out="o", config={"seed": 1}, name="n", resumed=False)
    tell("step.started", step=1, name="load")
    tell("step.finished", step=1, name="load", seconds=0.5, skipped=None)
    tell("step.started", step=2, name="baseline")
    tell("step.finished", step=2, name="baseline", seconds=0.0, skipped="no text")
    tell("step.started", step=4, name="ternarization")
    tell("step.progress", step=4, done=1, total=2, detail="a.weight")
    assert state["status"] == "running" and state["current"] == {"name": "a.weight"}
    tell("run.paused")
    assert state["status"] == "paused"
    tell("run.resumed", seconds=1.0)
    tell("layer.finished", name="a.weight", layer=0, sparsity=0.4, histogram={})
    tell("figures", ratio_file=6.5)
    tell("evaluation", when="before", perplexity=9.0)
    tell("gate", name="ratio", target=6.0, actual=6.5, passed=True, advice=None)
    tell("run.failed", error="the disk is full", exit_code=1, write_seconds=0.1)
    assert state["status"] == "failed" and state["error"] == "the disk is full"
    assert [step["state"] for step in state["steps"]] == ["done", "skipped", "waiting", "failed"] + [
        "waiting"
    ] * 3
    assert state["steps"][1]["reason"] == "no text" and state["started"] == 101.0
    tell("run.started", model="m", out="o", config={"seed": 1}, name="n", resumed=True)
    assert state["status"] == "running" and state["error"] is None
    assert state["steps"][3]["state"] == "waiting" and state["layers"]["a.weight"] == {
        "name": "a.weight", "layer": 0, "sparsity": 0.4,
    }  # fmt: skip
    tell("run.finished", status="finished", exit_code=3, report="o/report.json", write_seconds=0.2)
    assert state["status"] == "finished" and state["exit_code"] == 3 and state["write_seconds"] == 0.2
    assert state["evaluations"]["before"]["perplexity"] == 9.0 and state["gates"]["ratio"]["passed"] is True


ODD = [
    {"type": "layer.finished", "tensor": "x"},
    {"type": "layer.finished", "name": ["x"]},
    {"type": "evaluation"},
    {"type": "gradient"},
    {"type": "gate", "passed": True},
    {"type": "metric", "value": 1.0},
    {"type": "command.ack"},
    {"type": "finetune.step", "step": "one"},
    {"type": "step.started", "step": [4]},
]


def test_events_that_a_later_version_writes_otherwise_are_passed_over(tmp_path: Path) -> None:
    with closing(EventWriter(tmp_path)) as writer:
        writer.emit("run.started", model="m", config={})
        writer.emit("finetune.step", step=1, loss=0.5)
    with open(tmp_path / "events.jsonl", "a") as file:
        for seq, event in enumerate(ODD, 3):
            file.write(json.dumps({"v": 2, "run": "r", "seq": seq, "t": 1.0, **event}) + "\n")
    with closing(EventWriter(tmp_path)) as writer:  # a worker goes on with such a log
        writer.emit("gate", name="ratio", passed=True)
    reader = StateReader(tmp_path)
    reader.poll()
    assert reader.state["seq"] == len(ODD) + 3 and list(reader.state["gates"]) == ["ratio"]
    assert not any(reader.state[key] for key in ("layers", "evaluations", "gradients", "metrics", "acks"))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "run.queued", "after": 7},
        {"type": "run.queued", "after": [7]},
        {"type": "handoff", "items": 5},
        {"type": "handoff", "items": ["loads"]},
        {"type": "handoff", "items": [{"passed": True}]},
        {"type": "model", "model": "m", "targets": []},
        {"type": "model", "model": {}, "targets": {"name": "t"}},
        {"type": "plan", "tensors": ["t"]},
    ],
)
def test_what_is_no_list_of_names_or_parts_is_not_kept(event: dict[str, Any]) -> None:
    state, common = initial_state("r"), {"v": 1, "run": "r", "seq": 1, "t": 1.0}
    for key in ("items", "after", "targets", "tensors", "model"):
        none = {"seq": 1, "type": event["type"], key: None}
        fold(initial_state("r"), {**common, **none}, strict=True)
    fold(state, {**common, **event})
    kept = {"after": [], "handoff": [], "model": None, "targets": [], "plan": None}
    assert {key: state[key] for key in kept} == kept
    with pytest.raises(TypeError, match="must be"):
        fold(initial_state("r"), {**common, **event}, strict=True)


def test_an_event_that_is_passed_over_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(state: dict[str, Any], event: dict[str, Any]) -> None:
        raise KeyError(event["name"])

    monkeypatch.setattr("tritpress.events.snapshot._told", set())
    monkeypatch.setitem(_HANDLERS, "gate", fails)
    state = initial_state("r")
    for seq, name in enumerate(("one", "one", "another"), 1):
        fold(state, {"v": 1, "run": "r", "seq": seq, "t": 1.0, "type": "gate", "name": name})
    assert [record.message for record in caplog.records] == [
        "event 1 of run r (gate) is passed over: KeyError('one')",
        "event 3 of run r (gate) is passed over: KeyError('another')",
    ]


def test_work_without_a_word_of_its_start_is_a_run_at_work() -> None:
    def told(*kinds: str) -> dict[str, Any]:
        state = initial_state("r")
        for seq, kind in enumerate(kinds, 1):
            fields = {"name": "loss", "value": 1.0, "message": "m", "id": "c"}
            fold(state, {"v": 1, "run": "r", "seq": seq, "t": 10.0 * seq, "type": kind, **fields})
        return state

    at_work = told("log", "metric", "metric")
    assert (at_work["status"], at_work["started"]) == ("running", 20.0)
    starting = told("log", "command.ack", "alert", "some.thing")
    assert (starting["status"], starting["started"]) == ("created", None), "its worker may still be starting"
    assert told("run.queued", "log", "alert")["status"] == "queued"
    begun = told("run.queued", "metric")
    assert (begun["status"], begun["started"]) == ("running", 20.0)
    again = told("run.started", "run.failed", "run.queued", "metric")
    assert (again["status"], again["finished"], again["idle"]) == ("running", None, 20.0)
    assert told("metric", "run.started")["started"] == 10.0
    assert told("run.finished", "metric")["status"] == "finished"


def test_progress_is_thinned_but_never_loses_the_end(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for i in range(1, 501):
        writer.emit("step.progress", step=2, done=i, total=500)
    writer.emit("step.progress", step=4, done=1, total=9)
    events = EventReader(tmp_path / "events.jsonl").poll()
    assert len(events) < 100 and [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert (events[0]["done"], events[-2]["done"], events[-1]["step"]) == (1, 500, 4)


def test_the_state_is_plain_json(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for name, fields in some_events(500, seed=3):
        writer.emit(name, **fields)
    assert json.loads(json.dumps(writer.state, allow_nan=False)) == writer.state
    assert not any(isinstance(v, float) and math.isnan(v) for v in writer.state["figures"].values())


def test_the_null_context_is_a_context() -> None:
    context = NullContext()
    assert isinstance(context, RunContext)
    assert context.emit("log", message="x") is None and context.check() is None


def test_events_import_neither_torch_nor_panel() -> None:
    code = (
        "import sys, tritpress.events, tritpress.runs\n"
        "print([m for m in ('torch', 'panel', 'typer') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_all_types_of_the_design_are_known() -> None:
    named = (
        "run.started run.paused run.resumed run.finished run.failed step.started step.progress step.finished "
        "layer.finished evaluation finetune.step gradient gate output metric alert command.ack log "
        "model plan figures handoff"
    )
    assert set(EVENT_TYPES) >= set(named.split())
