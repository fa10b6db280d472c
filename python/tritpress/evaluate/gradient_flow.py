"""Do gradients still reach every pressed tensor? Norms of one real backward pass, and the sound share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from tritpress.evaluate.perplexity import batches_of, check_windows, device_of, logits_of
from tritpress.nn.paging import holding

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tritpress.events.context import RunContext

LOWEST, HIGHEST = 0.01, 100.0
"""A gradient norm is sound between these multiples of the norm in the original."""


@dataclass(frozen=True)
class GradientFlow:
    """`share` of the tensors that are sound, and for each other one (name, what is wrong with it)."""

    share: float
    tensors: int
    failing: list[tuple[str, str]]


def gradient_norms(
    model: nn.Module,
    windows: np.ndarray,
    parameters: Mapping[str, Tensor],
    *,
    batch_size: int | None = None,
    ctx: Any = None,
) -> dict[str, float | None]:
    """Euclidean norm of the mean language-model loss's gradient, for each of `parameters`.

    `parameters` maps names to tensors of `model`.
    One backward pass over int64 windows [n, window], added up batch by batch. Only those tensors get a
    gradient; gradients, `requires_grad` flags and the training flag are put back afterwards. A norm that is
    not finite is None, one of a tensor that the loss does not reach is 0.
    """
    windows = check_windows(windows)
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 0) or 32_768)
    device, training = device_of(model), model.training
    flags = [(p, p.requires_grad) for p in model.parameters()]
    targets = windows.shape[0] * (windows.shape[1] - 1)
    try:
        model.eval()
        for other, _ in flags:
            other.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        for batch in batches_of(windows, vocabulary, batch_size):
            if ctx is not None:
                ctx.check()
            ids_BT = torch.from_numpy(np.ascontiguousarray(batch)).to(device)
            with torch.enable_grad():
                logits_BTV = logits_of(model, ids_BT)[:, :-1].float()
                loss = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")
                (loss / targets).backward()
        return {name: _norm(parameter.grad) for name, parameter in parameters.items()}
    finally:
        for parameter in parameters.values():
            parameter.grad = None
        for other, flag in flags:
            other.requires_grad_(flag)
        model.train(training)


def gradient_norms_by_block(
    model: nn.Module,
    windows: np.ndarray,
    modules: Mapping[str, nn.Module],
    *,
    folder: str | Path | None = None,
    ctx: RunContext | None = None,
) -> dict[str, float | None]:
    """The same of a paged model, for the weights of `modules`, with one block and its gradients in memory.

    `folder`: where the blocks' inputs are put aside.
    """
    from tritpress.events.context import NullContext
    from tritpress.nn.surgery import find_blocks
    from tritpress.ternarize.backward import backward
    from tritpress.ternarize.blocks import BlockRunner

    windows = check_windows(windows)
    targets = windows.shape[0] * (windows.shape[1] - 1)
    _, blocks = find_blocks(model)
    inside = {id(module) for module in blocks.modules()}
    norms: dict[str, float | None] = dict.fromkeys(modules, 0.0)

    @contextlib.contextmanager
    def around(part: nn.Module | None) -> Iterator[None]:
        if part is None:  # a head's weights come and go with it: held for as long as they gather gradients
            with holding(model, without=blocks):
                chosen = {name: m for name, m in modules.items() if id(m) not in inside}
                yield from _gather(chosen, norms, targets)
        else:
            members = {id(m) for m in part.modules()}
            yield from _gather({n: m for n, m in modules.items() if id(m) in members}, norms, targets)

    context = ctx or NullContext()
    backward(BlockRunner(model, blocks, windows, context), around, context, folder)
    return norms


def _gather(
    modules: Mapping[str, nn.Module], norms: dict[str, float | None], targets: int
) -> Iterator[None]:
    weights = {name: cast("Tensor", module.weight).requires_grad_(True) for name, module in modules.items()}
    try:
        yield
        for name, weight in weights.items():
            if weight.grad is not None:
                norms[name] = _norm(weight.grad / targets)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def gradient_flow(
    norms: Mapping[str, float | None], original: Mapping[str, float | None]
) -> GradientFlow:
    """Compare the dequantized model's norms with the original's (same names, same windows).

    A tensor is sound when its norm is finite, above 0 and within 0.01 to 100 times the original's.
    """
    failing = [(name, why) for name, norm in norms.items() if (why := _fault(norm, original.get(name)))]
    share = 1.0 - len(failing) / len(norms) if norms else 0.0
    return GradientFlow(share=share, tensors=len(norms), failing=failing)


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
