"""The original's likeliest tokens on disk: the same loss, whole after a kill, taken where memory is short."""

from __future__ import annotations

import errno
import json
import math
import resource

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tritpress import pipeline
from tritpress.config import CompressionConfig
from tritpress.errors import InputError, StopRequested, UsageError
from tritpress.evaluate.perplexity import logits_of
from tritpress.events.context import NullContext
from tritpress.finetune import teacher as teachers
from tritpress.finetune.checkpoints import save_checkpoint
from tritpress.finetune.losses import distillation_loss
from tritpress.finetune.recipe import recipe_for
from tritpress.finetune.teacher import CachedTeacher, TopTargets, cache_teacher, teacher_on_disk
from tritpress.finetune.training_text import ShuffledWindows
from tritpress.formats.source import open_source
from tritpress.formats.targets import find_targets
from tritpress.runs.worker import describe
from tritpress.steps import training_memory
from tritpress.ternarize.calibration import save_calibration

FLOAT32 = {"muon": "float32", "autocast": "float32"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 97, (40, 16))


def loss_and_gradient(student, teacher, target, share=0.1):
    student = student.clone().requires_grad_()
    loss, kl, ce = distillation_loss(student, teacher, target, share, 1 / len(target))
    loss.backward()
    return loss.item(), kl, ce, student.grad


def test_all_tokens_kept_are_the_whole_distribution():
    generator = torch.Generator().manual_seed(1)
    student, teacher = (2.0 * torch.randn(9, 13, generator=generator) for _ in range(2))
    target = torch.randint(0, 13, (9,), generator=generator)
    top = TopTargets(*teacher.log_softmax(dim=-1).topk(13, dim=-1))
    whole, kept = (loss_and_gradient(student, given, target) for given in (teacher, top))
    assert kept[:3] == pytest.approx(whole[:3], rel=1e-5)
    torch.testing.assert_close(kept[3], whole[3], rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_few_tokens_is_that_of_them_and_the_rest_as_one():
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(7, 20, generator=generator)
    target = torch.randint(0, 20, (7,), generator=generator)
    logp, ids = (2.0 * torch.randn(7, 20, generator=generator)).log_softmax(dim=-1).topk(4, dim=-1)
    _, kl, _, grad = loss_and_gradient(student, TopTargets(logp, ids), target, share=0.0)

    plain = student.clone().requires_grad_()
    own = plain.log_softmax(dim=-1)
    inside = own.gather(-1, ids)
    rest = (1 - inside.exp().sum(dim=-1)).log()
    left = 1 - logp.exp().sum(dim=-1)
    expected = F.kl_div(inside, logp, log_target=True, reduction="sum") + (left * (left.log() - rest)).sum()
    (expected / 7).backward()
    assert kl == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(grad, plain.grad, rtol=1e-3, atol=1e-6)


class StopAfter(NullContext):
    def __init__(self, checks: int) -> None:
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StopRequested("stopped")


def test_what_is_kept_is_what_the_original_says_and_a_stop_loses_nothing(
    teacher, windows, tmp_path, monkeypatch
):
    monkeypatch.setattr(teachers, "batches_of", lambda given, vocabulary, size: [given[:2]])
    text = ShuffledWindows(windows, seed=5)
    with pytest.raises(StopRequested):
        cache_teacher(teacher, text.take, 40, tmp_path, top=6, ctx=StopAfter(17))
    assert int((tmp_path / "done").read_text()) == 32  # flushed every sixteen batches of two
    asked = []
    made = cache_teacher(
        teacher, lambda at, n: asked.append(at) or text.take(at, n), 40, tmp_path, top=6
    )
    assert min(at for at in asked if at) == 32
    with torch.no_grad():
        ids = torch.from_numpy(text.take(30, 5))
        expected = logits_of(teacher, ids)[:, :-1].log_softmax(dim=-1).flatten(0, 1).topk(6, dim=-1)
    found = made.targets(30, 5, torch.device("cpu"))
    torch.testing.assert_close(found.logp, expected.values, rtol=1e-3, atol=1e-3)
    assert float((found.ids == expected.indices).float().mean()) > 0.99
    again = cache_teacher(None, None, 40, tmp_path)  # finished: nothing is asked of the model
    assert (again.windows, again.top) == (40, 6)
    with pytest.raises(InputError, match="40 windows, not for 41"):
        again.targets(38, 3, torch.device("cpu"))


def test_a_damaged_cache_and_a_full_disk_are_one_sentence(teacher, windows, tmp_path, monkeypatch):
    written, write = [], teachers.write_atomically
    keep = lambda path, text: written.append(path) or write(path, text)  # noqa: E731
    monkeypatch.setattr(teachers, "write_atomically", keep)
    cache_teacher(teacher, ShuffledWindows(windows).take, 4, tmp_path / "whole")
    assert tmp_path / "whole" / "facts.json" in written
    (tmp_path / "whole" / "ids.npy").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read"):
        CachedTeacher(tmp_path / "whole")

    class Disk:
        f_bavail, f_frsize = 10, 100

    monkeypatch.setattr(teachers.os, "statvfs", lambda folder: Disk)
    with pytest.raises(InputError, match="fewer --tokens"):
        cache_teacher(teacher, ShuffledWindows(windows).take, 40, tmp_path / "new")


def test_the_room_of_the_cache_is_taken_before_it_is_filled(teacher, windows, tmp_path, monkeypatch):
    text = ShuffledWindows(windows, seed=5)
    with pytest.raises(StopRequested):
        cache_teacher(teacher, text.take, 4000, tmp_path / "begun", ctx=StopAfter(2))
    for name in ("logp.npy", "ids.npy"):
        told = (tmp_path / "begun" / name).stat()
        assert 512 * told.st_blocks >= told.st_size > 1 << 20
    ask, asked = teachers.os.statvfs, []
    with monkeypatch.context() as disk, pytest.raises(StopRequested):  # what was taken counts as free again
        disk.setattr(teachers.os, "statvfs", lambda f: asked.append((f / "logp.npy").exists()) or ask(f))
        cache_teacher(teacher, text.take, 4000, tmp_path / "begun", ctx=StopAfter(0))
    assert asked == [False]

    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(teachers.os, "posix_fallocate", full)
    with pytest.raises(OSError) as caught:
        cache_teacher(teacher, text.take, 4000, tmp_path / "full", ctx=StopAfter(0))
    assert describe(caught.value).startswith("the disk is full (writing ") and "logp.npy" in str(caught.value)
    assert not (tmp_path / "full" / "logp.npy").exists()


@pytest.mark.parametrize("which", ["checkpoint", "calibration"])
def test_a_disk_that_takes_no_more_is_told_as_one(which, tmp_path):
    def save() -> None:
        if which == "checkpoint":
            save_checkpoint(tmp_path / "x.safetensors", {"x": torch.ones(1 << 18)}, {})
        else:
            ones = np.ones(1 << 18, np.float32)
            save_calibration({"x": {"input_moment": ones, "output_grad_moment": ones}}, tmp_path / "x")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # in place of a disk that is full
    try:
        with pytest.raises(OSError) as caught:
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and str(tmp_path) in caught.value.filename
    assert not list(tmp_path.iterdir())
    save()


def test_a_budget_in_minutes_cannot_be_run_ahead(teacher, windows, tmp_path):
    recipe = recipe_for(CompressionConfig(minutes=1.0), 16, FLOAT32)
    with pytest.raises(InputError, match="--tokens, not --minutes"):
        teacher_on_disk(teacher, ShuffledWindows(windows), windows, recipe, tmp_path)


class Folder:
    """A run's folder as the pipeline needs one."""

    def __init__(self, path, model) -> None:
        self.path, self.id, self.model = path, path.name, str(model)
        self.work = path / "work"
        self.work.mkdir(parents=True)

    def read_run(self) -> dict:
        return {"model": self.model, "out": str(self.path / "out")}

    def choose(self, **measured) -> dict:
        return measured


def test_where_memory_is_short_the_run_keeps_the_original_on_disk(
    tiny_llama_dir, text_dir, tmp_path, monkeypatch
):
    config = CompressionConfig(
        planes=1, text=[str(text_dir)], tokens=2048, finetune=True, calibration_tokens=1024,
        evaluation_tokens=2048, window=64, outputs="packed", threads=1,
    )  # fmt: skip
    source = open_source(tiny_llama_dir)
    weights = sum(math.prod(target.shape) for target in find_targets(source))
    rest = training_memory.REST_BYTES * (source.parameters - weights)
    training = training_memory.STATE_BYTES * weights + rest + training_memory.ACTIVATION_BYTES
    monkeypatch.setattr(training_memory, "free_memory", lambda device: training + source.parameters)
    folder = Folder(tmp_path / "disk", tiny_llama_dir)
    report = pipeline.run(config, folder, NullContext())
    assert json.loads((folder.work / "teacher.json").read_text()) == {"place": "disk"}
    assert (folder.work / "fine-tuning" / "teacher" / "training" / "facts.json").is_file()
    assert report["fine_tuning"]["loss_best"] < report["fine_tuning"]["loss_first"]
    # what comes after compares with the original read anew, not with the student made of it
    assert report["after"]["packed"]["kl"] > 0.0 and report["after"]["packed"]["agreement"] < 1.0

    # what has no room is refused before any work
    late = config.model_copy(update={"tokens": None, "minutes": 1.0})
    with pytest.raises(InputError, match="--tokens, not --minutes"):
        pipeline.run(late, Folder(tmp_path / "minutes", tiny_llama_dir), NullContext())
    monkeypatch.setattr(training_memory, "free_memory", lambda device: 1_000_000)
    with pytest.raises(InputError, match=r"0\.0 GB are free.*--no-finetune"):
        pipeline.run(config, Folder(tmp_path / "none", tiny_llama_dir), NullContext())
    for name in ("minutes", "none"):
        assert not (tmp_path / name / "work" / "baseline.json").exists()
        assert not (tmp_path / name / "work" / "teacher.json").exists()


def test_a_model_whose_experts_are_stacked_is_refused_before_any_work(tiny_moe_dir, text_dir, tmp_path):
    config = CompressionConfig(
        planes=1, text=[str(text_dir)], tokens=1024, finetune=True, calibration_tokens=1024,
        evaluation_tokens=2048, window=64, threads=1,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"--finetune: \d+ tensors are no linear module"):
        pipeline.run(config, Folder(tmp_path / "moe", tiny_moe_dir), NullContext())
    assert not (tmp_path / "moe" / "work" / "baseline.json").exists()
