"""Threads, device and kernels of a run: equal for all that is timed; a resumed run has those of its start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_paged_models import Folder
from tritpress import steps
from tritpress.config import CompressionConfig
from tritpress.errors import InputError, UsageError
from tritpress.evaluate.directory import evaluate_directory
from tritpress.events.context import NullContext
from tritpress.ops.linear import get_threads, set_threads
from tritpress.report import machine


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads(), get_threads()
    yield
    torch.set_num_threads(before[0])
    set_threads(before[1])


class Begun(Folder):
    """The folder of a run that has `chosen` already."""

    def __init__(self, path: Path, model: Path, **chosen: Any) -> None:
        super().__init__(path, model)
        self.chosen = chosen
        path.mkdir()

    def read_run(self) -> dict[str, Any]:
        return {**super().read_run(), "chosen": self.chosen}

    def choose(self, **measured: Any) -> dict[str, Any]:
        return json.loads(json.dumps({**measured, **self.chosen}))


class Told(NullContext):
    def __init__(self) -> None:
        self.said: list[str] = []

    def emit(self, type: str, /, **fields: Any) -> None:
        if type == "log":
            self.said.append(fields["message"])


def load(folder: Folder, text: Path, **options: Any) -> tuple[steps.Work, list[str]]:
    options = {"window": 64, "evaluation_tokens": 512, "calibration_tokens": 512, **options}
    context = Told()
    work = steps.Work(CompressionConfig(text=[str(text)], **options), folder, context)
    steps.load(work)
    return work, context.said


@pytest.mark.parametrize("asked", [3, None])
def test_torch_and_the_kernels_have_the_same_threads(
    asked: int | None, tiny_qwen3_dir: Path, text_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("TRITPRESS_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    set_threads(None)
    work, _ = load(Begun(tmp_path / "run", tiny_qwen3_dir), text_dir, threads=asked)
    assert torch.get_num_threads() == get_threads() == work.chosen["threads"] == (asked or 2)


def test_the_kernels_threads_can_be_set_from_outside(
    tiny_qwen3_dir: Path, text_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TRITPRESS_NUM_THREADS", "1")
    set_threads(None)
    load(Begun(tmp_path / "run", tiny_qwen3_dir), text_dir)
    assert get_threads() is None


def test_eval_gives_both_the_threads_that_were_asked_for(tiny_qwen3_dir: Path, text_dir: Path) -> None:
    evaluate_directory(tiny_qwen3_dir, [str(text_dir)], window=64, tokens=64, threads=1)
    assert torch.get_num_threads() == get_threads() == 1


def test_a_resumed_run_has_the_threads_of_its_start(
    tiny_qwen3_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    work, _ = load(Begun(tmp_path / "run", tiny_qwen3_dir, threads=2, device="cpu"), text_dir)
    assert torch.get_num_threads() == get_threads() == machine(work)["threads"] == 2


def test_a_resumed_run_says_by_which_kernels_it_goes_on(
    tiny_qwen3_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    from tritpress import _core

    work, said = load(Begun(tmp_path / "run", tiny_qwen3_dir, kernel="of another machine"), text_dir)
    assert machine(work)["kernel"] == _core.isa()
    assert machine(work)["kernel_at_start"] == "of another machine"
    assert any("of another machine" in line for line in said)
    same, said = load(Begun(tmp_path / "same", tiny_qwen3_dir, kernel=_core.isa()), text_dir)
    assert "kernel_at_start" not in machine(same) and not said


def test_a_resumed_run_stays_on_its_device(
    tiny_qwen3_dir: Path, text_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"run gpu began on a CUDA device, and torch finds none here"):
        load(Begun(tmp_path / "gpu", tiny_qwen3_dir, device="cuda"), text_dir)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there is one now: it stays with the CPU
    work = steps.Work(CompressionConfig(), Begun(tmp_path / "cpu", tiny_qwen3_dir, device="cpu"), Told())
    assert work.device == "cpu"


def test_a_value_beyond_float16_is_found_in_the_first_step(
    tiny_gpt2_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    model = shutil.copytree(tiny_gpt2_dir, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("ln_f.weight"))
    tensors[name] = np.full_like(tensors[name], 1e5)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor .*ln_f\.weight holds 100000, which float16 cannot"):
        load(Begun(tmp_path / "run", model), text_dir)
