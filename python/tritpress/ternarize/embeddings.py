"""What errors in the token embedding and the output head cost: the ground for keeping or pressing them.

A row o of a head is a layer's output like any other: 1/2 E[g_o^2] e_o^T H e_o with H the second moments of
the head's input. A row of an embedding is what a token puts into the residual stream: an error e_o costs
1/2 p_o sum_c E[g_c^2] e_oc^2, p_o the share of the tokens, g the loss's gradient at the stream. A tied pair
pays for both; its rows' shares of the two are taken to be proportional, so that one matrix stands for all
rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tritpress.config import CompressionConfig
from tritpress.events.context import RunContext
from tritpress.nn.paging import same_weight, weight_rows
from tritpress.ternarize.calibration import Moments, calibrate, zeros_of
from tritpress.ternarize.prediction import losses_of_sample, power_of, sampled
from tritpress.ternarize.sweep import curvature

SAMPLED_ROWS = 256
"""Rows of a table that are swept to foretell what its planes would cost."""

PIECE = 1 << 22
"""Weights of a table that are looked at together."""


@dataclass
class EmbeddingsSeen:
    """Sums over tokens, gathered while a model is calibrated (`watch_embeddings`)."""

    tokens: int = 0
    used: Tensor | None = None  # times that each token was read [V]
    stream: Tensor | None = None  # squared gradients at the embedding's output [C]
    inputs: Tensor | None = None  # second moments of the head's input [C, C]
    outputs: Tensor | None = None  # squared gradients at the head's output [V]


@contextlib.contextmanager
def watch_embeddings(model: nn.Module) -> Iterator[EmbeddingsSeen]:
    """Gather what the embedding and the head are given and get back in the passes made meanwhile.

    A token counts when its gradient arrives: a paged model's passes go block by block, and more than one of
    them looks tokens up.
    """
    seen = EmbeddingsSeen()
    found = cast(Any, model)
    embedding, head = found.get_input_embeddings(), found.get_output_embeddings()

    def add(name: str, value: Tensor) -> None:
        before = getattr(seen, name)
        setattr(seen, name, value if before is None else before + value)

    def read(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        ids, rows = args[0].flatten(), len(cast(Tensor, module.weight))

        def arrived(g: Tensor) -> None:
            seen.tokens += ids.numel()
            add("used", torch.bincount(ids, minlength=rows))
            add("stream", g.detach().flatten(0, -2).float().square().sum(0))

        out.requires_grad_(True)
        out.register_hook(arrived)

    def project(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if not out.requires_grad:
            return
        x = args[0].detach().flatten(0, -2).float()
        add("inputs", x.T @ x)
        out.register_hook(lambda g: add("outputs", g.detach().flatten(0, -2).float().square().sum(0)))

    handles = []
    if isinstance(embedding, nn.Embedding):
        handles.append(embedding.register_forward_hook(read))
    if isinstance(head, nn.Linear):
        handles.append(head.register_forward_hook(project))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def calibrate_with_embeddings(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    tables: Mapping[str, nn.Module],
    windows: np.ndarray,
    context: RunContext,
    config: CompressionConfig,
    folder: str | Path | None = None,
    own: Mapping[str, CompressionConfig] | None = None,
) -> dict[str, Moments]:
    """What `calibrate` finds of `modules`, and `embedding_moments` of `tables` from the same passes; `own` as
    there."""
    with watch_embeddings(model) as seen:
        found = calibrate(model, modules, windows, context, config, folder, own)
    found.update(cast(Any, embedding_moments(model, tables, seen, config, context, own)))
    return found


def embedding_moments(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    seen: EmbeddingsSeen,
    config: CompressionConfig,
    context: RunContext,
    own: Mapping[str, CompressionConfig] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Tensor name -> what `Moments` has, and hessian float32 [in, in] (what the rows' errors are weighed by,
    times output_grad_moment of the row) and int8_loss float32 [1] (predicted loss as int8 rows).

    `modules`: tensor name -> the embedding or head that it is; a tied pair once. Names of which nothing was
    gathered are left out.
    """
    owner = cast(Any, model)
    embedding, head = owner.get_input_embeddings(), owner.get_output_embeddings()
    tied = head is not None and embedding is not None and same_weight(head, embedding)
    found = {}
    for name, module in modules.items():
        context.check()
        weight = cast(Tensor, module.weight)
        reads = (tied or module is embedding) and seen.stream is not None
        writes = (tied or module is head) and seen.outputs is not None and seen.inputs is not None
        if not (reads or writes) or not seen.tokens:
            continue
        hessian = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)
        if writes:
            assert seen.inputs is not None and seen.outputs is not None
            hessian += seen.inputs / seen.tokens
            rows = seen.outputs / seen.tokens
        else:  # a token that the text has not is one that other text may have
            assert seen.used is not None
            rows = (seen.used.float() + 1.0) / (seen.tokens + len(weight))
        if reads:
            assert seen.stream is not None
            hessian += torch.diag(seen.stream / seen.tokens) / (rows.sum() if writes else 1.0)
        gradient = rows.cpu().numpy().astype(np.float32)
        asked = (own or {}).get(name, config)
        planes, int8 = _losses(module, rows, hessian, asked)
        found[name] = {
            "input_moment": hessian.diagonal().cpu().numpy().astype(np.float32),
            "output_grad_moment": gradient,
            "plane_losses": planes,
            "hessian": np.ascontiguousarray(hessian.cpu().numpy(), dtype=np.float32),
            "int8_loss": np.asarray([int8], dtype=np.float32),
        }
        if asked is not config:
            found[name]["swept_zeros"] = zeros_of(asked)
    return found


def _losses(
    module: nn.Module, rows: Tensor, hessian: Tensor, config: CompressionConfig
) -> tuple[np.ndarray, float]:
    """(losses at 1, 2 and 3 planes float32 [3], loss as int8 rows) of a table [V, C] whose errors are weighed
    by rows [V] and hessian [C, C]; of one on disk some rows at a time are in memory."""
    count, cols = cast(Tensor, module.weight).shape
    at = curvature(hessian, config.base_group_size)
    sample = sampled(count, SAMPLED_ROWS).to(hessian.device)
    step = max(1, PIECE // cols)
    int8, whole, taken, powers = 0.0, 0.0, [], []
    for start in range(0, count, step):
        stop = min(count, start + step)
        piece, weighed = weight_rows(module, start, stop), rows[start:stop].float()
        power = power_of(piece, weighed, at)
        inside = sample[(sample >= start) & (sample < stop)] - start
        whole += float(power.sum())
        taken.append(piece[inside])
        powers.append(power[inside])
        int8 += _int8_loss(piece, weighed, hessian)
    share = whole / max(float(torch.cat(powers).sum()), torch.finfo(torch.float32).tiny)
    return losses_of_sample(torch.cat(taken), rows[sample].float(), share, at, config), int8


def _int8_loss(weight: Tensor, rows: Tensor, hessian: Tensor) -> float:
    """As the packed format rounds rows to int8 and decodes them again."""
    scales = (weight.abs().amax(1, keepdim=True) / 127.0).half().float()
    q = torch.where(scales > 0, weight / scales, 0.0).round().clamp(-127, 127)
    error = weight - (q * scales).half().float()
    return 0.5 * float((rows * ((error @ hessian) * error).sum(1)).sum())
