"""What lies at the output is replaced only on request, or when this very run wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tritpress import pipeline
from tritpress.config import CompressionConfig
from tritpress.errors import InputError, StopRequested
from tritpress.runs.directory import RunDirectory


class At:
    """A context that does something when a step begins."""

    def __init__(self, step: int, action=lambda: None) -> None:
        self.step, self.action = step, action

    def emit(self, type: str, /, **fields) -> None:
        if type == "step.started" and fields["step"] == self.step and not fields["reused"]:
            self.action()

    def check(self) -> None:
        pass


@pytest.fixture
def run(tiny_llama_dir: Path, tmp_path: Path) -> tuple[CompressionConfig, RunDirectory, Path]:
    config = CompressionConfig(method="fast", finetune=False, evaluate=False, planes=1)
    directory = RunDirectory(tmp_path / "runs" / "one")
    directory.create()
    out = tmp_path / "out"
    directory.write_run(
        {"id": "one", "model": str(tiny_llama_dir), "out": str(out), "config": config.model_dump()}
    )
    return config, directory, out


def test_a_resumed_run_does_not_touch_what_others_put_there(run) -> None:
    config, directory, out = run

    def intrude() -> None:
        (out / "packed").mkdir(parents=True, exist_ok=True)
        (out / "packed" / "precious.txt").write_text("mine")

    for context in (At(6, intrude), At(0)):
        with pytest.raises(InputError, match="not empty"):
            pipeline.run(config, directory, context)
        assert (out / "packed" / "precious.txt").read_text() == "mine"


def test_a_run_that_stops_after_writing_goes_on(run) -> None:
    config, directory, out = run

    def stop() -> None:
        raise StopRequested("stopped")

    with pytest.raises(StopRequested):
        pipeline.run(config, directory, At(7, stop))
    before = (out / "packed" / "model.safetensors").read_bytes()
    (directory.work / "step6.json").unlink()  # as if it had been killed between writing and its record
    pipeline.run(config, directory, At(0))
    assert (out / "packed" / "model.safetensors").read_bytes() == before
    assert (out / "report.json").is_file()


@pytest.mark.parametrize("kind", ["packed", "dequantized"])
def test_the_model_that_was_not_asked_for_does_not_stay(run, kind: str) -> None:
    config, directory, out = run
    config = config.model_copy(update={"outputs": kind})
    pipeline.run(config, directory, At(0))
    before = (out / kind / "model.safetensors").read_bytes()
    assert not (directory.work / "unasked").exists()
    (out / "report.json").unlink()  # as if it had been killed before it was known to be finished
    pipeline.run(config, directory, At(0))
    assert (out / "report.json").is_file() and not (directory.work / "unasked").exists()
    assert (out / kind / "model.safetensors").read_bytes() == before


def test_a_kill_between_the_renaming_and_the_note_of_it(run) -> None:
    config, directory, out = run

    def stop() -> None:
        raise StopRequested("stopped")

    with pytest.raises(StopRequested):
        pipeline.run(config, directory, At(7, stop))
    (directory.work / "step6.json").unlink()
    written = directory.work / "written.json"
    written.write_text('{"%s": "begun"}' % (out / "packed"))
    (out / "dequantized").rename(out / "aside")
    pipeline.run(config, directory, At(0))
    assert (out / "dequantized" / "model.safetensors").is_file()


class Paused(At):
    """A context that is paused for 100 seconds at every check, by a clock that moves at no other time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> None:
        super().__init__(stop_at, lambda: setattr(self, "stop", True))
        self.now = self.paused_seconds = 0.0
        self.stop = False
        monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def check(self) -> None:
        self.now += 100
        self.paused_seconds += 100
        if self.stop:
            raise StopRequested("stopped while paused")


def test_the_times_of_the_steps_are_without_pauses(run, monkeypatch: pytest.MonkeyPatch) -> None:
    config, directory, _ = run
    stopped = Paused(monkeypatch, stop_at=4)
    with pytest.raises(StopRequested):
        pipeline.run(config, directory, stopped)
    assert json.loads((directory.work / "step4.partial.json").read_text()) == {"seconds": 0.0}
    context = Paused(monkeypatch)
    pipeline.run(config, directory, context)
    records = [json.loads((directory.work / f"step{n}.json").read_text()) for n in range(1, 8)]
    assert context.paused_seconds > 1000 and [record["seconds"] for record in records] == [0.0] * 7
