"""The training loop: distillation into ternary codes, resumable bit for bit after a kill at any moment."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from tritpress.allocator import keep_freed_memory
from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.evaluate.perplexity import batches_of, device_of, logits_of
from tritpress.finetune.checkpoints import load_checkpoint, remove_others, save_checkpoint
from tritpress.finetune.fast_modules import faster_modules
from tritpress.finetune.losses import distillation_loss
from tritpress.finetune.mugrokfast import MuGrokfast
from tritpress.finetune.number_formats import measure_number_formats
from tritpress.finetune.recipe import Recipe, recipe_for
from tritpress.finetune.teacher import TeacherOnDisk, TopTargets, chosen_windows
from tritpress.finetune.training_text import ShuffledWindows, TrainingText
from tritpress.nn.bit_linear import BitLinear

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT_SECONDS = 15.0
TEACHER_CACHE = 64 * 1024 * 1024
"""Teacher logits of the validation windows kept in memory (256 MB in float32), else computed again."""


@dataclass(frozen=True)
class FineTuneResult:
    """What training did. Losses are those of the validation windows (the objective, nats a token)."""

    steps: int
    tokens: int
    loss_first: float
    loss_best: float
    best_step: int
    optimizer: str
    stopped: str
    seconds: float
    tokens_per_s: float
    recipe: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return asdict(self)


@dataclass
class _State:
    """All that a later step depends on beside tensors; saved with every checkpoint."""

    step: int = 0
    loss_first: float = math.nan
    loss_best: float = math.inf
    best_step: int = 0
    stale: int = 0
    rate: float = 1.0
    falls: int = 0
    seconds: float = 0.0
    stopped: str = ""


def fine_tune(
    student: nn.Module,
    teacher: nn.Module | TeacherOnDisk,
    text: TrainingText | np.ndarray,
    validation_windows: np.ndarray,
    config: CompressionConfig,
    work_dir: Path,
    ctx: Any = None,
    *,
    number_formats: dict[str, Any] | None = None,
    recipe: Recipe | None = None,
) -> FineTuneResult:
    """Train the `BitLinear` layers of `student` towards `teacher`; leave them at the best validation loss.

    Args:
        student: the model with its `BitLinear` layers in place; everything else is frozen.
        teacher: the original, same vocabulary, run on the fly, without gradients; or what `teacher_on_disk`
            kept of it for this text and recipe.
        text: the training windows; an array int64 [n, window] is shuffled by the seed.
        validation_windows: int64 [m, window], never trained on; they choose the best checkpoint. No more of
            them are used, evenly spaced, than the recipe says.
        config: budget, optimizer, rate, seed; what it leaves open is the recipe's (`recipe_for`).
        work_dir: holds the checkpoints; a run found there with the same recipe goes on, bit for bit as if it
            had never stopped (budgets in tokens; same machine, same thread count).
        ctx: `emit` gets `finetune.step` events, `check` is called before each step and may raise.
        number_formats: what `measure_number_formats` found when the run began; measured now without it.
        recipe: instead of the one made from `config`.

    Raises `InputError` when the student has no `BitLinear` layer or the checkpoints there belong to another
    recipe. A loss that is not a number goes
    back to the best checkpoint and halves the rate, once; a second one ends the training, as `stopped` says.
    """
    if isinstance(text, np.ndarray):
        text = ShuffledWindows(text, config.seed)
    if recipe is None:
        epoch_tokens = text.epoch_windows() * text.window if config.epochs else None
        formats = number_formats or measure_number_formats(device_of(student))
        layers = [layer for layer in student.modules() if isinstance(layer, BitLinear)]
        planes = float(np.mean([layer.planes for layer in layers])) if layers else 1.0
        recipe = recipe_for(config, text.window, formats, epoch_tokens, planes)
    return _Run(student, teacher, text, validation_windows, recipe, work_dir, ctx).go()


def rest_of(student: nn.Module) -> dict[str, Tensor]:
    """Name -> every parameter outside the `BitLinear` layers (tied ones once) and their biases, but
    those marked `kept`."""
    own = {
        id(p)
        for layer in student.modules()
        if isinstance(layer, BitLinear)
        for p in (layer.latent, layer.gain)
    }
    return {
        name: p
        for name, p in student.named_parameters()
        if id(p) not in own and p.is_floating_point() and not getattr(p, "kept", False)
    }


def size_of(parameter: Tensor) -> float:
    """Root mean square of a tensor's values, what its steps are measured in; 0.01 for a tensor of zeros."""
    return float(parameter.detach().float().square().mean().sqrt()) or 0.01


class _Run:
    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | TeacherOnDisk,
        text: TrainingText,
        validation: np.ndarray,
        recipe: Recipe,
        work_dir: Path,
        ctx: Any,
    ) -> None:
        self.student = student.eval()  # no dropout: no hidden random state
        self.teacher = teacher if isinstance(teacher, TeacherOnDisk) else teacher.eval()
        self.text, self.recipe, self.ctx = text, recipe, ctx
        self.validation = chosen_windows(validation, recipe)
        layers = {path: layer for path, layer in student.named_modules() if isinstance(layer, BitLinear)}
        if not layers:
            raise InputError("the model has no BitLinear layer to train")
        for parameter in student.parameters():
            parameter.requires_grad_(False)
        for layer in layers.values():
            layer.latent.requires_grad_(True)
            layer.gain.requires_grad_(True)
        self.dir, self.device = Path(work_dir), device_of(student)
        self.vocabulary = int(getattr(getattr(student, "config", None), "vocab_size", 0) or 32_768)
        self.layers = list(layers.values())
        self.matrices: dict[str, Tensor] = {f"{name}.latent": layer.latent for name, layer in layers.items()}
        self.scales: dict[str, Tensor] = {f"{name}.gain": layer.gain for name, layer in layers.items()}
        self.rest = rest_of(student) if recipe.rest_lr > 0 else {}
        for trained in self.rest.values():
            trained.requires_grad_(True)
        self.optimizer = MuGrokfast(
            self.matrices,
            self.scales | self.rest,
            units={f"{name}.latent": layer.unit for name, layer in layers.items()},
            kind=recipe.optimizer,
            lr=recipe.lr,
            other_lr=recipe.scale_lr,
            other_rates={name: recipe.rest_lr * size_of(p) for name, p in self.rest.items()},
            weight_decay=recipe.weight_decay,
            grokfast_lambda=recipe.grokfast_lambda,
            grokfast_alpha=recipe.grokfast_alpha,
            muon_format=recipe.muon_format,
        )
        self.state = _State()
        self.saved_at = 0.0
        self.teacher_cache: list[Tensor] = []
        steps = recipe.steps
        self.every = max(1, round(steps / recipe.evaluations)) if steps else None

    def go(self) -> FineTuneResult:
        keep_freed_memory()
        models = [model for model in (self.student, self.teacher) if not isinstance(model, TeacherOnDisk)]
        with faster_modules(*models):
            return self._train()

    def _train(self) -> FineTuneResult:
        self._resume()
        state, recipe = self.state, self.recipe
        self.saved_at = time.perf_counter()
        while not state.stopped:
            if self.ctx is not None:
                self.ctx.check()
            started = time.perf_counter()
            figures = self._step()
            seconds = time.perf_counter() - started
            state.seconds += seconds
            if figures is None:
                self._fall_back()
                continue
            state.step += 1
            done = self._progress() >= 1.0
            due = self.every is not None and state.step % self.every == 0
            if recipe.budget_seconds is not None:  # every evaluation'th part of the time
                before = self._progress(state.seconds - seconds)
                due = int(before * recipe.evaluations) != int(self._progress() * recipe.evaluations)
            if done or due:
                figures["validation_loss"] = self._validate()
            if done:
                state.stopped = state.stopped or "budget spent"
            self._emit(figures, seconds)
            if done or due or time.perf_counter() - self.saved_at > CHECKPOINT_SECONDS:
                self._save_latest()
        if state.step != state.best_step:
            self._load_best()
        tokens = state.step * recipe.batch_tokens
        return FineTuneResult(
            steps=state.step,
            tokens=tokens,
            loss_first=state.loss_first,
            loss_best=state.loss_best,
            best_step=state.best_step,
            optimizer=recipe.optimizer,
            stopped=state.stopped,
            seconds=state.seconds,
            tokens_per_s=tokens / state.seconds if state.seconds else 0.0,
            recipe=recipe.to_json(),
        )

    def _progress(self, seconds: float | None = None) -> float:
        """Share of the budget that is spent."""
        if self.recipe.budget_seconds is not None:
            return (self.state.seconds if seconds is None else seconds) / self.recipe.budget_seconds
        return self.state.step / (self.recipe.steps or 1)

    def _autocast(self) -> Any:
        dtype = torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.recipe.autocast == "bfloat16")

    def _step(self) -> dict[str, float] | None:
        """One optimizer step; None when loss or gradient is not finite (nothing is updated then)."""
        recipe, step = self.recipe, self.state.step
        self.optimizer.zero_grad()
        windows = self.text.take(step * recipe.batch_windows, recipe.batch_windows)
        positions = len(windows) * (recipe.window - 1)
        kl_sum, ce_sum, at = 0.0, 0.0, step * recipe.batch_windows
        for batch in batches_of(windows, self.vocabulary, None):
            ids_BT = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)
            target_N = ids_BT[:, 1:].flatten()
            with self._autocast():
                teacher_NV: Tensor | TopTargets
                if isinstance(self.teacher, TeacherOnDisk):
                    teacher_NV = self.teacher.training.targets(at, len(batch), self.device)
                    at += len(batch)
                else:
                    with torch.no_grad():
                        teacher_NV = logits_of(self.teacher, ids_BT[:, :-1]).flatten(0, 1)
                student_NV = logits_of(self.student, ids_BT[:, :-1]).flatten(0, 1)
            loss, kl, ce = distillation_loss(
                student_NV, teacher_NV, target_N, recipe.ce_share, 1.0 / positions
            )
            loss.backward()
            kl_sum, ce_sum = kl_sum + kl, ce_sum + ce
        kl, ce = kl_sum / positions, ce_sum / positions
        share = (step + 1) / recipe.steps if recipe.steps else self._progress() + 1e-3
        factor = recipe.rate_factor(min(1.0, share)) * self.state.rate
        with record_function("optimizer"):
            norm = float(torch.nn.utils.clip_grad_norm_(self.optimizer.names.values(), recipe.clip))
            if not (math.isfinite(norm) and math.isfinite(kl) and math.isfinite(ce)):
                return None
            self.optimizer.set_rate(factor)
            self.optimizer.step()
            for layer in self.layers:
                if recipe.pull > 0:
                    layer.pull_to_middle(min(1.0, recipe.pull * factor))
                layer.changed()
        loss_value = (1.0 - recipe.ce_share) * kl + recipe.ce_share * ce
        return {"loss": loss_value, "ce": ce, "kl": kl, "lr": recipe.lr * factor, "grad_norm": norm}

    @torch.no_grad()
    def _validate(self) -> float:
        """Validation loss of the current codes, in float32; keeps the best, counts evaluations without."""
        started, recipe, state = time.perf_counter(), self.recipe, self.state
        batches = batches_of(self.validation, self.vocabulary, None)
        cached = self.validation.size * self.vocabulary <= TEACHER_CACHE
        total, done = 0.0, 0
        for number, batch in enumerate(batches):
            if self.ctx is not None:
                asked = time.perf_counter()
                self.ctx.check()
                started += time.perf_counter() - asked  # a pause is no training
            ids_BT = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)
            teacher_NV: Tensor | TopTargets
            if isinstance(self.teacher, TeacherOnDisk):
                teacher_NV = self.teacher.validation.targets(done, len(batch), self.device)
            elif number < len(self.teacher_cache):
                teacher_NV = self.teacher_cache[number]
            else:
                teacher_NV = logits_of(self.teacher, ids_BT[:, :-1]).flatten(0, 1)
                if cached:
                    self.teacher_cache.append(teacher_NV)
            done += len(batch)
            student_NV = logits_of(self.student, ids_BT[:, :-1]).flatten(0, 1)
            _, kl, ce = distillation_loss(
                student_NV, teacher_NV, ids_BT[:, 1:].flatten(), recipe.ce_share, 1.0
            )
            total += (1.0 - recipe.ce_share) * kl + recipe.ce_share * ce
        loss = total / (self.validation.shape[0] * (self.validation.shape[1] - 1))
        if math.isnan(state.loss_first):
            if not math.isfinite(loss):
                raise InputError("the loss on the validation text is not a number before any training")
            state.loss_first = loss
        if loss < state.loss_best:
            state.loss_best, state.best_step, state.stale = loss, state.step, 0
            parameters = self.matrices | self.scales | self.rest
            save_checkpoint(self._best_path(), parameters, {"step": state.step, "loss": loss})
        else:
            state.stale += 1
            if state.stale >= recipe.patience:
                state.stopped = f"no better validation loss in {recipe.patience} evaluations"
        state.seconds += time.perf_counter() - started
        return loss

    def _fall_back(self) -> None:
        """After a loss that is not a number: the best checkpoint and half the rate, once."""
        state = self.state
        state.falls += 1
        self._load_best()
        if state.falls > 1:
            state.stopped = (
                f"the loss was not a number again (step {state.step + 1}), at half the learning rate too; "
                f"the codes of step {state.best_step} are kept: try --learning-rate {self.recipe.lr / 4:g}"
            )
            self._log(state.stopped, not_finite="loss")
        else:
            state.rate *= 0.5
            state.step += 1  # its batch is passed over
            self.optimizer.load_state_tensors({})
            self._log(
                f"no finite loss in step {state.step}: back to step {state.best_step}, at half the rate",
                not_finite="loss",
            )
            if self._progress() >= 1.0:  # the codes gone back to were evaluated when they were kept
                state.stopped = "budget spent"
        self._save_latest()

    def _emit(self, figures: dict[str, float], seconds: float) -> None:
        if self.ctx is None:
            return
        step, size = self.state.step, self.recipe.batch_windows
        self.ctx.emit(
            "finetune.step",
            step=step,
            steps=self.recipe.steps,
            epoch=round(self.text.epoch_at(step * size), 4),
            tokens=step * self.recipe.batch_tokens,
            tokens_per_s=self.recipe.batch_tokens / seconds,
            **figures,
        )

    def _log(self, message: str, **facts: str) -> None:
        if self.ctx is not None:
            self.ctx.emit("log", level="warning", message=message, **facts)

    def _best_path(self) -> Path:
        return self.dir / f"best-{self.state.best_step:08d}.safetensors"

    def _save_latest(self) -> None:
        state = asdict(self.state) | {"recipe": self.recipe.to_json(), "names": sorted(self.matrices)}
        tensors = self.matrices | self.scales | self.rest | self.optimizer.state_tensors()
        save_checkpoint(self.dir / "latest.safetensors", tensors, state)
        remove_others(self.dir, "best-*.safetensors", {self._best_path().name})
        self.saved_at = time.perf_counter()

    def _load_best(self) -> None:
        found = load_checkpoint(self._best_path())
        if found is None:
            raise InputError(f"{self._best_path()} is missing; remove {self.dir} to start the training anew")
        self._fill(found[0])

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in (self.matrices | self.scales | self.rest).items():
            parameter.copy_(tensors[name])

    def _resume(self) -> None:
        """Take up the latest checkpoint, or evaluate the calibrated start."""
        found = load_checkpoint(self.dir / "latest.safetensors")
        if found is None:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._validate()
            self._save_latest()
            return
        tensors, state = found
        if state.pop("recipe") != self.recipe.to_json() or state.pop("names") != sorted(self.matrices):
            raise InputError(
                f"{self.dir} holds a training run with other settings or layers; remove it to start anew"
            )
        self.state = _State(**state)
        parameters = self.matrices | self.scales | self.rest
        self._fill(tensors)
        self.optimizer.load_state_tensors({k: v for k, v in tensors.items() if k not in parameters})
