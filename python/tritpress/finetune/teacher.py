"""The targets of distillation without the original beside the student: its likeliest tokens on disk.

The original in memory doubles the weights that training holds. Where memory is short it runs once before the
training instead, over the very windows that will be trained on, and the log-probabilities of its likeliest
tokens are kept on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tritpress.errors import InputError
from tritpress.evaluate.perplexity import batches_of, check_windows, device_of, logits_of
from tritpress.finetune.fast_modules import faster_modules
from tritpress.finetune.recipe import Recipe
from tritpress.finetune.training_text import TrainingText
from tritpress.formats.output import claim, write_atomically

TOP = 64
"""Tokens whose log-probabilities are kept of every position; the rest is one probability."""

FILES = ("logp.npy", "ids.npy")
"""Of a folder of cached logits."""

NOT_IN_MINUTES = (
    "memory is short, so that the original has to be run before the training: give the budget of "
    "fine-tuning as --tokens, not --minutes"
)


@dataclass(frozen=True)
class TopTargets:
    """The original's distribution at N positions: `logp` float32 [N, top] of the tokens `ids` int64 [N, top];
    what is missing to 1 is spread over the other tokens as the student spreads it."""

    logp: Tensor
    ids: Tensor


@dataclass(frozen=True)
class TeacherOnDisk:
    """What a training takes in place of the original: its targets over the training windows of the whole
    budget and over the validation windows that the recipe uses."""

    training: CachedTeacher
    validation: CachedTeacher


class CachedTeacher:
    """The original's likeliest tokens over a fixed list of windows, read from disk as they are needed.

    A folder of `logp.npy` float16 and `ids.npy` (uint16, or int32 for large vocabularies), both
    [windows, window - 1, top].
    """

    def __init__(self, folder: Path) -> None:
        try:
            facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
            self.windows, self.top = int(facts["windows"]), int(facts["top"])
            self._logp, self._ids = (np.load(folder / name, mmap_mode="r") for name in FILES)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"the original's cached logits in {folder} cannot be read ({error}); remove the folder and "
                "resume the run to make them again"
            ) from None

    def targets(self, start: int, count: int, device: torch.device) -> TopTargets:
        """Of all positions of windows start .. start + count - 1."""
        if start + count > self.windows:
            raise InputError(
                f"the original's logits are cached for {self.windows} windows, not for {start + count}"
            )
        logp = torch.from_numpy(self._logp[start : start + count].astype(np.float32)).flatten(0, 1)
        ids = torch.from_numpy(self._ids[start : start + count].astype(np.int64)).flatten(0, 1)
        return TopTargets(logp.to(device), ids.to(device))


@torch.no_grad()
def cache_teacher(
    teacher: nn.Module,
    take: Callable[[int, int], np.ndarray],
    windows: int,
    folder: Path,
    *,
    autocast: bool = False,
    top: int = TOP,
    ctx: Any = None,
) -> CachedTeacher:
    """Run `teacher` over windows 0 .. `windows` - 1 of `take(start, count)` and keep its likeliest tokens.

    Goes on where a killed call stopped, and reads what an earlier one finished. `ctx.check` is called before
    every batch, `ctx.emit` gets the progress. Raises `InputError` when the disk does not hold it, `OSError`
    when it is found full.
    """
    if (folder / "facts.json").is_file():
        found = CachedTeacher(folder)
        if found.windows >= windows:
            return found
    folder.mkdir(parents=True, exist_ok=True)
    device, vocabulary = device_of(teacher), int(getattr(teacher.config, "vocab_size", 0) or 32_768)
    top = min(top, vocabulary)
    shape = (windows, take(0, 1).shape[1] - 1, top)
    ids_type = np.uint16 if vocabulary <= 1 << 16 else np.int32
    needed = int(np.prod(shape, dtype=np.int64)) * (2 + np.dtype(ids_type).itemsize)
    done_path = folder / "done"
    done = int(done_path.read_text()) if done_path.is_file() else 0
    if not done:  # a call that was stopped before it wrote anything has taken their room
        _forget(folder)
    free = os.statvfs(folder)
    if not done and needed > free.f_bavail * free.f_frsize:
        raise InputError(
            f"the original's logits for {windows} windows take {needed / 1e9:.1f} GB in {folder}, where "
            f"{free.f_bavail * free.f_frsize / 1e9:.1f} GB are free: give fewer --tokens, or a runs "
            "folder on another disk (--runs)"
        )
    opened = [
        np.lib.format.open_memmap(
            folder / name, mode="r+" if done else "w+", dtype=None if done else kind, shape=shape
        )
        for name, kind in zip(FILES, (np.float16, ids_type), strict=True)
    ]
    check = ctx.check if ctx is not None else lambda: None
    try:
        for name in FILES:
            _claim(folder / name, check)
    except OSError:
        if not done:  # nothing is in them: they go, for whatever is written next
            _forget(folder)
        raise
    size = len(batches_of(np.zeros((64, shape[1] + 1)), vocabulary, None)[0])
    with faster_modules(teacher):
        while done < windows:
            if ctx is not None:
                ctx.check()
            count = min(size, windows - done)
            ids_BT = torch.from_numpy(np.ascontiguousarray(take(done, count)[:, :-1])).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                logits = logits_of(teacher, ids_BT)
            logp, ids = logits.float().log_softmax(dim=-1).topk(top, dim=-1)
            opened[0][done : done + count] = logp.cpu().numpy()
            opened[1][done : done + count] = ids.cpu().numpy()
            done += count
            if done % (16 * size) < size or done == windows:
                for array in opened:
                    array.flush()
                write_atomically(done_path, str(done))
            if ctx is not None:
                ctx.emit("step.progress", step=5, done=done, total=windows, detail="the original's logits")
    write_atomically(folder / "facts.json", json.dumps({"windows": windows, "top": top}))
    return CachedTeacher(folder)


def _forget(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _claim(path: Path, check: Callable[[], None]) -> None:
    """Take the disk space of a file that was made with holes: a write into a hole of a full disk is no error
    but the process's end (SIGBUS). Raises `OSError` when there is no room.
    """
    with open(path, "r+b") as file:
        told = os.fstat(file.fileno())
        if 512 * told.st_blocks >= told.st_size:
            return
        try:
            claim(file.fileno(), told.st_size, check)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def teacher_on_disk(
    teacher: nn.Module,
    text: TrainingText,
    validation_windows: np.ndarray,
    recipe: Recipe,
    folder: Path,
    ctx: Any = None,
) -> TeacherOnDisk:
    """Run the original once over all that `recipe` trains and validates on, so that it need not stay in
    memory. Raises `InputError` for a budget in minutes, whose windows cannot be foretold."""
    if recipe.steps is None:
        raise InputError(NOT_IN_MINUTES)
    windows, chosen = recipe.steps * recipe.batch_windows, chosen_windows(validation_windows, recipe)
    bfloat16 = recipe.autocast == "bfloat16"
    return TeacherOnDisk(
        cache_teacher(teacher, text.take, windows, folder / "training", autocast=bfloat16, ctx=ctx),
        cache_teacher(
            teacher, lambda at, count: chosen[at : at + count], len(chosen), folder / "validation", ctx=ctx
        ),
    )


def chosen_windows(validation: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The validation windows that `recipe` evaluates, evenly spaced."""
    validation = check_windows(validation)
    chosen = np.linspace(0, len(validation) - 1, min(len(validation), recipe.validation_windows))
    return validation[chosen.round().astype(int)]
