"""`set` on a run at work: which tensors it touches, and that a killed run ends as one that never was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tritpress.config import CompressionConfig
from tritpress.plan import Plan
from tritpress.runs.directory import RunDirectory
from tritpress.runs.settings import TensorSettings

NAMES = ["a", "b", "c", "d"]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "r")
    run.create()
    run.write_run({"id": "r", "config": {}})
    return run


def state(done: list[str]) -> dict:
    return {"targets": [{"name": name} for name in NAMES], "layers": {name: {} for name in done}}


def test_only_tensors_not_begun_are_touched(run: RunDirectory) -> None:
    settings = TensorSettings(run, state(["a"]))
    assert settings.begin("b") == {}
    ok, detail = settings.take({"tensors": "all", "threshold": 0.5})
    assert ok and "2 tensors" in detail and "threshold 0.5" in detail and "2 pressed already" in detail
    half = {"threshold": 0.5, "sparsity": None}
    assert run.read_run()["settings"] == {"c": half, "d": half}
    ok, detail = settings.take({"tensors": ["d"], "sparsity": 0.25})
    assert ok and "1 tensor will" in detail
    quarter = {"threshold": None, "sparsity": 0.25}
    assert settings.begin("c") == {"c": half, "d": quarter}
    assert settings.begin("d") == {}
    assert settings.take({"tensors": "all", "threshold": 1})[0] is False
    # another worker takes all of it up
    assert TensorSettings(run, state(["a", "b"])).begin("c") == {"c": half, "d": quarter}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "new name"),
        ({"tensors": "all"}, "new name"),
        ({"tensors": "all", "threshold": 1, "sparsity": 0.3}, "new name"),
        ({"tensors": "all", "planes": 2}, "new name"),
        ({"tensors": "all", "threshold": "x"}, "number"),
        ({"tensors": "all", "threshold": True}, "number"),
        ({"tensors": "all", "threshold": float("nan")}, "number"),
        ({"tensors": "all", "threshold": 4.5}, "from 0 to 4"),
        ({"tensors": "all", "sparsity": 1.0}, "below 1"),
        ({"tensors": ["a", "z"], "sparsity": 0.3}, "z is no tensor"),
        ({"tensors": [], "sparsity": 0.3}, "names"),
        ({"tensors": "some", "sparsity": 0.3}, "names"),
    ],
)
def test_nonsense_is_refused(run: RunDirectory, arguments: dict, said: str) -> None:
    settings = TensorSettings(run, state([]))
    ok, detail = settings.take(arguments)
    assert not ok and said in detail
    assert "settings" not in run.read_run() and settings.begin("a") == {}


def test_zeros_of_bitnets_fit_cannot_be_set(run: RunDirectory) -> None:
    bitnet = state([]) | {"config": {"fit": "bitnet"}}
    ok, detail = TensorSettings(run, bitnet).take({"tensors": "all", "threshold": 0.5})
    assert not ok and "bitnet sets its own zeros" in detail and "settings" not in run.read_run()


def test_before_the_model_is_read_there_is_nothing_to_set(run: RunDirectory) -> None:
    ok, detail = TensorSettings(run, {"targets": [], "layers": {}}).take({"tensors": "all", "threshold": 1})
    assert not ok and "step 1" in detail


WORKER = """
import os, signal, sys
from tritpress.pipeline import run as pipeline
from tritpress.runs.directory import RunDirectory
from tritpress.runs.worker import work

kill = sys.argv[2] == "kill"

def steered(config, run, context):
    emit, seen = context.emit, []
    def tell(type, /, **fields):
        emit(type, **fields)
        if type == "layer.started":
            seen.append(fields["name"])
            if len(seen) == 3 and not run.read_run().get("settings"):
                context.obey({"id": "x", "command": "set", "args": {"tensors": "all", "threshold": 0.25}})
            if len(seen) == 5 and kill:
                os.kill(os.getpid(), signal.SIGKILL)
    context.emit = tell
    return pipeline(config, run, context)

sys.exit(work(RunDirectory(sys.argv[1]), steered))
"""


def start(folder: Path, model: Path, method: str, text: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.create()
    config = CompressionConfig(
        method=method, planes=1, text=[str(text)], evaluate=False, finetune=False, outputs="packed",
        calibration_tokens=512, window=64,
    )  # fmt: skip
    run.write_run(
        {
            "id": run.id, "model": str(model), "out": str(folder / "out"), "config": config.model_dump(),
            "chosen": {},
        }
    )
    return run


@pytest.mark.parametrize("method", ["fast", "gptq"])
def test_a_killed_run_goes_on_with_what_was_set(
    method: str, tiny_llama_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    plain = start(tmp_path / "plain", tiny_llama_dir, method, text_dir)
    killed = start(tmp_path / "killed", tiny_llama_dir, method, text_dir)

    def work(run: RunDirectory, how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", WORKER, str(run.path), how], capture_output=True, text=True, timeout=120
        )
        assert done.returncode in (0, 3, -9), done.stderr
        return done.returncode

    assert work(plain, "go on") != -9
    assert work(killed, "kill") == -9
    assert work(killed, "go on") != -9
    events = [json.loads(line) for line in plain.events_path.read_text().splitlines()]
    (answer,) = [event for event in events if event["type"] == "command.ack"]
    finished = [event for event in events if event["type"] == "layer.finished"]
    assert answer["ok"] and f"{len(finished) - 3} tensors" in answer["detail"]
    begun = [event["name"] for event in events if event["type"] == "layer.started"]
    plan = Plan.load(plain.work / "plan.json")
    for name, planned in plan.tensors.items():
        assert planned.threshold == (None if name in begun[:3] else 0.25)
    zeros = {event["name"]: event["sparsity"] for event in finished}
    assert max(zeros[name] for name in begun[3:]) < 0.25 < min(zeros[name] for name in begun[:3])
    for path in sorted((plain.path / "out" / "packed").iterdir()):
        assert path.read_bytes() == (killed.path / "out" / "packed" / path.name).read_bytes(), path.name
