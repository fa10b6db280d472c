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
from tritpress.nn.paging import is_paged
from tritpress.ternarize.calibration import Moments, calibrate
from tritpress.ternarize.prediction import losses_of_planes
from tritpress.ternarize.sweep import curvature

SAMPLED_ROWS = 256
"""Rows of a table that are swept to foretell what its planes would cost."""


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

    Nothing is gathered of a paged model, whose passes go block by block.
    """
    seen = EmbeddingsSeen()
    found = cast(Any, model)
    embedding = None if is_paged(model) else found.get_input_embeddings()
    head = None if is_paged(model) else found.get_output_embeddings()

    def add(name: str, value: Tensor) -> None:
        before = getattr(seen, name)
        setattr(seen, name, value if before is None else before + value)

    def read(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        out.requires_grad_(True)
        seen.tokens += args[0].numel()
        add("used", torch.bincount(args[0].flatten(), minlength=len(found.get_input_embeddings().weight)))
        out.register_hook(lambda g: add("stream", g.detach().flatten(0, -2).float().square().sum(0)))

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
) -> dict[str, Moments]:
    """What `calibrate` finds of `modules`, and `embedding_moments` of `tables` from the same passes."""
    with watch_embeddings(model) as seen:
        found = calibrate(model, modules, windows, context, config, folder)
    found.update(cast(Any, embedding_moments(model, tables, seen, config, context)))
    return found


def embedding_moments(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    seen: EmbeddingsSeen,
    config: CompressionConfig,
    context: RunContext,
) -> dict[str, dict[str, np.ndarray]]:
    """Tensor name -> what `Moments` has, and hessian float32 [in, in] (what the rows' errors are weighed by,
    times output_grad_moment of the row) and int8_loss float32 [1] (predicted loss as int8 rows).

    `modules`: tensor name -> the embedding or head that it is; a tied pair once. Names of which nothing was
    gathered are left out.
    """
    owner = cast(Any, model)
    embedding, head = owner.get_input_embeddings(), owner.get_output_embeddings()
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    found = {}
    for name, module in modules.items():
        context.check()
        weight = cast(Tensor, module.weight).detach().float()
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
        at = curvature(hessian, config.base_group_size)
        found[name] = {
            "input_moment": hessian.diagonal().cpu().numpy().astype(np.float32),
            "output_grad_moment": gradient,
            "plane_losses": losses_of_planes(weight, gradient, at, config, SAMPLED_ROWS),
            "hessian": np.ascontiguousarray(hessian.cpu().numpy(), dtype=np.float32),
            "int8_loss": np.asarray([_int8_loss(weight, rows, hessian)], dtype=np.float32),
        }
    return found


def _int8_loss(weight: Tensor, rows: Tensor, hessian: Tensor) -> float:
    """As the packed format rounds rows to int8 and decodes them again."""
    total = 0.0
    for start in range(0, len(weight), 8192):
        piece = weight[start : start + 8192]
        scales = (piece.abs().amax(1, keepdim=True) / 127.0).half().float()
        q = torch.where(scales > 0, piece / scales, 0.0).round().clamp(-127, 127)
        error = piece - (q * scales).half().float()
        total += float((rows[start : start + 8192] * ((error @ hessian) * error).sum(1)).sum())
    return 0.5 * total
