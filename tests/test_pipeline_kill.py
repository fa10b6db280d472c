"""A worker that is killed in any of the seven steps is resumed and ends with the same packed bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STEPS = ("load", "baseline", "calibration", "ternarization", "fine-tuning", "outputs", "validation")


def _command(model: Path, text: Path, out: Path, runs: Path) -> list[str]:
    return [
        sys.executable, "-m", "tritpress", "compress", str(model), "-o", str(out), "--runs", str(runs),
        "--text", str(text), "--threads", "1", "--planes", "2", "--finetune",
        "--tokens", "8192", "--seed", "3", "--json",
    ]  # fmt: skip


def _bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _events(run: Path) -> list[dict]:
    path = run / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(
    tiny_llama_dir: Path, text_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    base = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(
        _command(tiny_llama_dir, text_dir, base / "out", base / "runs"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode in (0, 3), done.stderr
    return _bytes_of(base / "out" / "packed")


@pytest.mark.parametrize("step", range(1, 8), ids=STEPS)
def test_kill_and_resume(
    step: int, undisturbed: dict[str, str], tiny_llama_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    client = subprocess.Popen(
        _command(tiny_llama_dir, text_dir, tmp_path / "out", runs),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run = _wait_for_run(runs)
    wanted = {4: "layer.finished", 5: "finetune.step"}.get(step, "step.started")
    _wait_for(
        run, lambda event: event["type"] == wanted and (wanted != "step.started" or event["step"] == step)
    )
    os.kill(json.loads((run / "run.json").read_text())["pid"], signal.SIGKILL)
    _, error = client.communicate(timeout=60)
    assert client.returncode == 1
    assert b"Traceback" not in error and run.name.encode() in error
    before = len(_events(run))

    again = subprocess.run(
        [sys.executable, "-m", "tritpress", "compress", "--resume", run.name, "--runs", str(runs), "--json"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert again.returncode in (0, 3), again.stderr
    assert _bytes_of(tmp_path / "out" / "packed") == undisturbed
    assert json.loads(again.stdout) == json.loads((tmp_path / "out" / "report.json").read_text())
    finished_before = {e["step"] for e in _events(run)[:before] if e["type"] == "step.finished"}
    redone = [e for e in _events(run)[before:] if e["type"] == "step.started" and not e.get("reused")]
    assert not {e["step"] for e in redone} & (finished_before - {1, 7})
    assert [e["seq"] for e in _events(run)] == list(range(1, len(_events(run)) + 1))


def _wait_for_run(runs: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = list(runs.glob("*/events.jsonl"))
        if found:
            return found[0].parent
        time.sleep(0.02)
    raise AssertionError("no run appeared")


def _wait_for(run: Path, matches) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(matches(event) for event in _events(run)):
            return
        time.sleep(0.01)
    raise AssertionError("the run never came to that step")
