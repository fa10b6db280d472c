"""What each way of keeping a tensor would cost: the planner's estimates. Needs no torch.

With a calibration these start from the losses that it foretold by sweeping a sample at one group size
(`ternarize.prediction`); another group size changes them as it changes the error of a plain fit, weighted by
inputs and outputs (on the reference model within 2 % at one plane and 4 to 10 % at three of what sweeping at
that size foretells), and so do other zeros that a plan asks of a tensor. Where it has the diagonal moments
alone, the loss is 1/2 sum_o E[g_o^2] sum_c dW_oc^2 E[x_c^2]: the error of each weight by how much its input
carries and how much its output moves the loss (nats a token). Without a calibration it is the squared error
of the weights relative to the tensor's own, times the tensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.formats.source import SourceModel, read_rows, read_tensor
from tritpress.formats.targets import Target, find_embeddings

_SAMPLE = 1 << 18
"""Weights of a tensor that the estimate looks at: larger tensors are sampled by rows."""

_SMALL_SAMPLE = 1 << 16
"""As many are enough to tell how the error changes with the group size."""

_PIECES = 16
"""Places in a tensor from which sampled rows are taken."""


@dataclass(frozen=True)
class Cost:
    """loss: what the planner adds up; relative: squared error of the weights over their squared norm."""

    loss: float
    relative: float


Choice = tuple[int, int]
"""(planes, group size)."""

KEPT: Choice = (0, 0)
"""Of an embedding: not pressed."""

Zeros = tuple[float | None, float | None]
"""(threshold, sparsity): what was asked of a tensor's zeros, where anything was."""


def choice_costs(
    targets: list[Target],
    config: CompressionConfig,
    calibration: Mapping[str, Any] | None,
    choices: Mapping[str, Sequence[Choice]],
    zeros: Mapping[str, Zeros] | None = None,
) -> dict[str, dict[Choice, Cost]]:
    """Tensor name -> cost of each of the choices asked for.

    `zeros`: what a tensor's own plan asks of its zeros, by its name; the others go by `config`, as the
    calibration's sweeps did where it does not say otherwise.

    Raises `InputError` naming the tensor where a weight is not finite.
    """
    total = sum(_weights(target) for target in targets if target.layer is not None)
    usual = (config.threshold, config.target_sparsity)
    out = {}
    for target in targets:
        moments = None if calibration is None else calibration.get(target.name)
        rule = usual if zeros is None else zeros.get(target.name, usual)
        swept_by = swept_zeros(moments) or usual
        asked = list(choices[target.name])
        swept = None if moments is None else moments.get("plane_losses")
        base = config.base_group_size
        if swept is not None and rule == swept_by and all(group == base for _, group in asked):
            out[target.name] = {c: Cost(float(swept[c[0] - 1]), TYPICAL_ERROR[c[0] - 1]) for c in asked}
            continue
        also = [] if swept is None else [(planes, base) for planes, _ in asked]
        fitted = _fitted(target, config, moments, [*asked, *also], total, rule)
        if swept is None:
            out[target.name] = {choice: fitted[choice] for choice in asked}
            continue
        as_swept = fitted if rule == swept_by else _fitted(target, config, moments, also, total, swept_by)
        out[target.name] = {}
        for planes, group in asked:
            own, plain = fitted[planes, group], as_swept[planes, base]
            grown = own.loss / plain.loss if plain.loss > 0 else 1.0
            out[target.name][planes, group] = Cost(float(swept[planes - 1]) * grown, own.relative)
    if calibration is not None:
        _fill_unseen(targets, calibration, out)
    return out


def swept_zeros(moments: Mapping[str, Any] | None) -> Zeros | None:
    """What was asked of a tensor's zeros when its losses were foretold, where that is its own."""
    found = None if moments is None else moments.get("swept_zeros")
    if found is None:
        return None
    threshold, sparsity = (None if math.isnan(value) else float(value) for value in found)
    return threshold, sparsity


TABLE_WEIGHT = 6.0
"""How much more an error in embeddings and head costs than as large a share of it in the linear layers, where
only weights are known: on the reference model 13 against 2.4 nats for an error as large as the weights."""

TYPICAL_ERROR = (0.19, 0.04, 0.01)
"""Squared error of normally distributed weights over their squared norm, at 1, 2 and 3 planes in groups of
64."""


def _fitted(
    target: Target, config: CompressionConfig, moments: Any, asked: list[Choice], total: int, zeros: Zeros
) -> dict[Choice, Cost]:
    """Costs by a plain fit of sampled rows, one fit a group size."""
    from tritpress import _core

    swept = moments is not None and "plane_losses" in moments
    rows, weight = _sample(target, _SMALL_SAMPLE if swept or moments is None else _SAMPLE)
    importance = None if moments is None else np.ascontiguousarray(moments["input_moment"], dtype=np.float32)
    norm = float(np.square(weight, dtype=np.float64).sum())
    found: dict[Choice, Cost] = {}
    for group in dict.fromkeys(group for _, group in asked):
        counts = sorted({planes for planes, other in asked if other == group})
        try:
            codes, scales = _core.ternarize(
                weight,
                fit="absmean" if config.fit == "bitnet" else config.fit,  # a row or group near enough
                group_size=group,
                planes=counts[-1],
                threshold=zeros[0],
                sparsity=zeros[1],  # the ceiling on zeros hardly changes the error: left out
                importance=importance,
                threads=config.threads,
            )
        except ValueError as error:
            raise InputError(f"{target.entry.file}: {target.name}: {error}") from None
        for count in counts:  # planes are residual: the first ones are those of a smaller number
            wrong = weight - _core.dequantize(codes[:count], scales[:count], target.cols, group)
            squares = np.square(wrong, out=wrong)
            relative = float(squares.sum(dtype=np.float64)) / norm if norm else 0.0
            if moments is None:
                loss = relative * _weights(target) / total * _prior(target)
            else:
                per_row = squares.astype(np.float64) @ np.asarray(moments["input_moment"], dtype=np.float64)
                gradient = np.asarray(moments["output_grad_moment"], dtype=np.float64)[rows]
                loss = 0.5 * float(per_row @ gradient) * (target.rows / len(rows))
            found[count, group] = Cost(loss, relative)
    return found


def _fill_unseen(
    targets: list[Target], calibration: Mapping[str, Any], costs: dict[str, dict[Choice, Cost]]
) -> None:
    """Tensors that calibration did not reach take the mean sensitivity of those that it did, by their
    size."""
    seen = [t for t in targets if t.name in calibration and t.layer is not None]
    sensitivity = _sensitivity(seen, costs)
    for target in targets:
        if target.name not in calibration:
            scale = sensitivity * _weights(target) * _prior(target)
            costs[target.name] = {
                choice: Cost(c.relative * scale, c.relative) for choice, c in costs[target.name].items()
            }


def _sensitivity(targets: list[Target], costs: Mapping[str, Mapping[Choice, Cost]]) -> float:
    """Mean loss per unit of relative error and weight, of the roughest choice of each tensor."""
    roughest = [(t, max(costs[t.name].values(), key=lambda cost: cost.relative)) for t in targets]
    loss = sum(cost.loss for _, cost in roughest)
    error = sum(cost.relative * _weights(t) for t, cost in roughest)
    return loss / error if error else 0.0


def int8_losses(
    source: SourceModel,
    targets: list[Target],
    costs: Mapping[str, Mapping[Choice, Cost]],
    calibration: Mapping[str, Any] | None,
) -> dict[str, float]:
    """Name of an embedding or head -> estimated loss of storing it as int8 rows: the calibration's where it
    has one, else at the mean sensitivity of the pressed `targets`."""
    sensitivity = _sensitivity(targets, costs)
    losses = {}
    for name in find_embeddings(source):
        weighed = (calibration or {}).get(name, {}).get("int8_loss")
        if weighed is not None:
            losses[name] = float(np.asarray(weighed).reshape(-1)[0])
            continue
        entry = source.tensors[name]
        rows, cols = entry.rows_cols
        count = min(rows, max(1, _SAMPLE // cols))
        weight = read_rows(entry, 0, count).astype(np.float64)
        step = np.abs(weight).max(axis=1) / 127.0
        norm = np.square(weight).sum()
        relative = float(np.square(step).sum() * cols / 12.0 / norm) if norm else 0.0
        losses[name] = relative * sensitivity * TABLE_WEIGHT * rows * cols
    return losses


def _prior(target: Target) -> float:
    """Embeddings and heads are the targets outside the blocks."""
    return TABLE_WEIGHT if target.layer is None else 1.0


def _weights(target: Target) -> int:
    count = target.rows * target.cols
    for experts in target.experts:
        count *= experts
    return count


def _sample(target: Target, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, weight [rows, in]) of about `wanted` weights of a tensor, spread evenly; of stacked experts rows
    of the first one or of all."""
    entry = target.entry
    if target.transposed:
        if target.experts:
            size = target.rows * target.cols
            entry = replace(entry, shape=(target.cols, target.rows), nbytes=entry.nbytes // entry.size * size)
        weight = read_tensor(entry).T
        rows = _spread(weight.shape[0], target.cols, wanted)
        return rows, np.ascontiguousarray(weight[rows])
    count = entry.rows_cols[0]
    rows = _spread(count, target.cols, wanted)
    if len(rows) == count:
        return rows, read_tensor(entry).reshape(-1, target.cols)
    pieces = [read_rows(entry, int(part[0]), int(part[-1]) + 1) for part in np.split(rows, _PIECES)]
    return rows, np.concatenate(pieces)


def _spread(rows: int, cols: int, wanted: int) -> np.ndarray:
    """Indices of sampled rows: all of them, or `_PIECES` runs of equal length spread over the tensor."""
    run = max(1, wanted // cols // _PIECES)
    if rows <= run * _PIECES:
        return np.arange(rows)
    starts = np.linspace(0, rows - run, _PIECES).astype(np.int64)
    return (starts[:, None] + np.arange(run)).ravel()
