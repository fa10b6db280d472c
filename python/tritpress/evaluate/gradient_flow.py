"""Do gradients still reach every pressed tensor? Norms of one real backward pass, and the sound share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from tritpress.evaluate.perplexity import batches_of, check_windows, device_of, logits_of
from tritpress.nn.paging import holding, same_weight

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tritpress.events.context import RunContext

LOWEST, HIGHEST = 0.01, 100.0
"""A gradient norm is sound between these multiples of the norm in the original."""

PORTION, PORTIONS = 2**28, 8
"""Weights of stacked tensors whose gradients are held at once, at least, and about as many passes at most."""

NAMED = 3
"""Tensors named in a sentence."""

Apart = Callable[[dict[str, "Tensor"]], Mapping[str, "Tensor"]]

Places = Mapping[str, tuple["nn.Module", str]]
"""Name of a tensor -> the module that has it as a parameter, and that parameter's name there."""


@dataclass(frozen=True)
class GradientFlow:
    """`share` of the tensors that are sound, for each other one (name, what is wrong with it), and the names
    of those that have no gradient of their own to measure."""

    share: float
    tensors: int
    failing: list[tuple[str, str]]
    unmeasured: list[str] = field(default_factory=list)

    @property
    def measured_share(self) -> float | None:
        """`share`; None where nothing fails and something was not measured, which may be sound or not."""
        return None if self.unmeasured and not self.failing else self.share

    @property
    def unmeasured_words(self) -> str:
        """What was not measured; nothing where all was."""
        more = len(self.unmeasured) - NAMED
        names = ", ".join(self.unmeasured[:NAMED]) + (f" and {more} more" if more > 0 else "")
        some = f"{len(self.unmeasured)} of {self.tensors} pressed tensors have"
        return f"{some} no gradient of their own in the loaded model: {names}" if names else ""


def gradient_norms(
    model: nn.Module,
    windows: np.ndarray,
    parameters: Mapping[str, Tensor],
    *,
    stacked: Mapping[str, Tensor] | None = None,
    apart: Apart | None = None,
    batch_size: int | None = None,
    ctx: Any = None,
) -> dict[str, float | None]:
    """Euclidean norm of the mean language-model loss's gradient, for each of `parameters`.

    `parameters` maps names to tensors of `model`. `stacked` are tensors of it that hold several: `apart`
    turns the gradient of one into those of its parts by name.
    One backward pass over int64 windows [n, window], added up batch by batch; where `stacked` is large, one
    for each portion of it, whose gradients alone are held. Only those tensors get a gradient; gradients,
    `requires_grad` flags and the training flag are put back afterwards. A norm that is not finite is None,
    one of a tensor that the loss does not reach is 0.
    """
    windows = check_windows(windows)
    training = model.training
    flags = [(p, p.requires_grad) for p in model.parameters()]
    norms: dict[str, float | None] = {}
    held = dict(parameters)  # those of one pass; `parameters` go with the first portion
    try:
        model.eval()
        for other, _ in flags:
            other.requires_grad_(False)
        portions = _portions(stacked or {})
        for number, portion in enumerate(portions):
            held |= portion
            for parameter in held.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            _run_backward(model, windows, batch_size, ctx)
            for name, parameter in held.items():
                if name not in portion:
                    norms[name] = _norm(parameter.grad)
                else:
                    assert apart is not None
                    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    norms |= {part: _norm(value) for part, value in apart({name: gradient}).items()}
                    del gradient
                    parameter.grad = None
            for parameter in held.values():
                parameter.grad = None
                parameter.requires_grad_(False)
            held = {}
            if ctx is not None and len(portions) > 1:
                detail = "gradients of experts"
                ctx.emit("step.progress", step=7, done=number + 1, total=len(portions), detail=detail)
        return norms
    finally:
        for parameter in held.values():
            parameter.grad = None
        for other, flag in flags:
            other.requires_grad_(flag)
        model.train(training)


def _portions(stacked: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """`stacked` in its order, in pieces of few weights each; one empty piece where there is none."""
    most = max(PORTION, sum(parameter.numel() for parameter in stacked.values()) // PORTIONS)
    pieces: list[dict[str, Tensor]] = [{}]
    for name, parameter in stacked.items():
        size = sum(other.numel() for other in pieces[-1].values())
        if pieces[-1] and size + parameter.numel() > most:
            pieces.append({})
        pieces[-1][name] = parameter
    return pieces


def _run_backward(model: nn.Module, windows: np.ndarray, batch_size: int | None, ctx: Any) -> None:
    """Add up the gradients of the mean loss of all windows in whatever parameters ask for one."""
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 0) or 32_768)
    targets = windows.shape[0] * (windows.shape[1] - 1)
    for batch in batches_of(windows, vocabulary, batch_size):
        if ctx is not None:
            ctx.check()
        ids_BT = torch.from_numpy(np.ascontiguousarray(batch)).to(device_of(model))
        with torch.enable_grad():
            logits_BTV = logits_of(model, ids_BT)[:, :-1].float()
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")
            if loss.requires_grad:  # it may reach none of them
                (loss / targets).backward()


def gradient_norms_by_block(
    model: nn.Module,
    windows: np.ndarray,
    places: Places,
    *,
    folder: str | Path | None = None,
    ctx: RunContext | None = None,
) -> dict[str, float | None]:
    """The same of a paged model, for the parameters at `places`, with one block and its gradients in memory.

    `folder`: where the blocks' inputs are put aside. A table that the model reads in front of its blocks (and
    maybe behind them too, as its head) has its gradient in memory throughout.
    """
    from tritpress.events.context import NullContext
    from tritpress.nn.surgery import find_blocks
    from tritpress.ternarize.backward import backward
    from tritpress.ternarize.blocks import BlockRunner

    windows = check_windows(windows)
    targets = windows.shape[0] * (windows.shape[1] - 1)
    _, blocks = find_blocks(model)
    inside = {id(module) for module in blocks.modules()}
    norms: dict[str, float | None] = dict.fromkeys(places, 0.0)
    outside = {name: place for name, place in places.items() if id(place[0]) not in inside}
    in_front = {name: place for name, place in outside.items() if not _is_head_alone(model, place[0])}
    kept: dict[str, Tensor] = {}  # what arrives in the head of those that are read in front as well

    @contextlib.contextmanager
    def around(part: nn.Module | None) -> Iterator[None]:
        if part is None:  # a head's weights come and go with it: held for as long as they gather gradients
            with holding(model, without=blocks):
                yield from _gather(outside, norms, targets, kept)
                for name in kept.keys() - in_front.keys():
                    del kept[name]
        else:
            members = {id(m) for m in part.modules()}
            yield from _gather({n: p for n, p in places.items() if id(p[0]) in members}, norms, targets)

    context = ctx or NullContext()
    runner = BlockRunner(model, blocks, windows, context)
    gradients = backward(runner, around, context, folder)
    if in_front:
        with holding(model, without=blocks):
            for _ in _gather(in_front, norms, targets, kept):
                runner.leave(gradients)
    return norms


def _is_head_alone(model: nn.Module, module: nn.Module) -> bool:
    """Whether a module is the output head and no embedding has its weight."""
    owner = cast(Any, model)
    head, embedding = owner.get_output_embeddings(), owner.get_input_embeddings()
    return module is head and not (embedding is not None and same_weight(head, embedding))


def _gather(
    places: Places, norms: dict[str, float | None], targets: int, sums: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """Norms of the gradients that arrive meanwhile, those in `sums` counted in and left there."""
    found = ((name, owner._parameters[key]) for name, (owner, key) in places.items())
    weights = {name: weight.requires_grad_(True) for name, weight in found if weight is not None}
    try:
        for name, weight in weights.items():
            weight.grad = (sums or {}).pop(name, None)
        yield
        for name, weight in weights.items():
            if weight.grad is not None:
                norms[name] = _norm(weight.grad / targets)
                if sums is not None:
                    sums[name] = weight.grad
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def gradient_flow(
    norms: Mapping[str, float | None], original: Mapping[str, float | None], pressed: Iterable[str] = ()
) -> GradientFlow:
    """Compare the dequantized model's norms with the original's (same names, same windows).

    A tensor is sound when its norm is finite, above 0 and within 0.01 to 100 times the original's. Of
    `pressed` those without a norm were not measured, which is not sound.
    """
    failing = [(name, why) for name, norm in norms.items() if (why := _fault(norm, original.get(name)))]
    unmeasured = [name for name in pressed if name not in norms]
    tensors = len(norms) + len(unmeasured)
    share = 1.0 - (len(failing) + len(unmeasured)) / tensors if tensors else 0.0
    return GradientFlow(share=share, tensors=tensors, failing=failing, unmeasured=unmeasured)


def _fault(norm: float | None, original: float | None) -> str:
    if norm is None or not math.isfinite(norm):
        return "the gradient is not finite"
    if norm <= 0.0:
        return "no gradient arrives"
    if original is None or not math.isfinite(original) or original <= 0.0:
        return "the original's own gradient is 0 or not finite, so there is nothing to compare with"
    ratio = norm / original
    if LOWEST <= ratio <= HIGHEST:
        return ""
    return f"the gradient is {ratio:.3g} times the original's (allowed {LOWEST:g} to {HIGHEST:g})"


def _norm(grad: Tensor | None) -> float | None:
    if grad is None:
        return 0.0
    norm = float(torch.linalg.vector_norm(grad, dtype=torch.float64))
    return norm if math.isfinite(norm) else None
