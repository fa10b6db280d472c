"""The calibrated method: every tensor by a second-order sweep, block by block on the compressed model's own
inputs.

Within a block the layers are fitted in the order they are called (q, k, v on one input, then o, then gate
and up, then down), each on activations that have passed through everything fitted before it. What a layer
should give is the original's output on the *original's* activations: with X the original's inputs and Z the
compressed model's, the least-squares target (W X^T Z)(Z^T Z)^-1 takes W's place in the sweep, so that later
layers make up for earlier errors (as in GPTAQ, arXiv 2504.02692). Layers that write to the residual stream
are asked for the stream's drift as well: what they should add is what brings the compressed stream back
towards the original one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tritpress.allocator import give_back_freed
from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.events.context import RunContext
from tritpress.formats.huggingface import model_name, modules_of
from tritpress.formats.source import SourceModel, read_rows, read_some_rows
from tritpress.formats.targets import Target
from tritpress.nn.paging import ReadRows, holding, is_paged, is_placeholder, weights_instead
from tritpress.nn.surgery import find_blocks, is_linear, set_weight, weight_out_in
from tritpress.ops import reference
from tritpress.plan import Plan, TensorPlan
from tritpress.press.fast import press_tensor
from tritpress.ternarize.blocks import BlockRunner, Stage
from tritpress.ternarize.points import FitSpec
from tritpress.ternarize.stats import add, layer_statistics, summary
from tritpress.ternarize.sweep import Curvature, curvature, damped, sweep

CORRECTION = 1.0
"""How much of the way from W to the least-squares target is gone; 0 ignores that the inputs have changed."""

STREAM_CORRECTION = 0.5
"""How much of the residual stream's own drift the layers that write to it are asked to take back."""

TABLE_ROWS = 1024
"""Rows of an embedding that are swept at once: with 1,024 columns 8,192 take 28 % longer and 400 MB more."""

SHRINKAGE = 2.0
"""Inputs times this, in tokens, is the text at which half of a correction is trusted."""


@dataclass
class _Moments:
    """Second moments over tokens: hessian Z^T Z / n [in, in], cross X^T Z / n [in, in] with X the original's
    inputs, drift D^T Z / n [out, in] with D what the compressed residual stream lacks (only for layers that
    write to it).
    """

    hessian: Tensor
    cross: Tensor | None = None
    drift: Tensor | None = None
    tokens: int = 0


@dataclass
class _Layer:
    target: Target
    path: str  # within the block
    module: nn.Module


def spec_of(planned: TensorPlan, config: CompressionConfig) -> FitSpec:
    """How a planned tensor is fitted."""
    return FitSpec(
        planes=planned.planes,
        group_size=planned.group_size,
        fit=config.fit,
        threshold=planned.threshold,
        sparsity=planned.sparsity,
        max_sparsity=planned.max_sparsity,
    )


def gptq_tensors(
    model: nn.Module,
    source: SourceModel,
    targets: list[Target],
    plan: Plan,
    windows: np.ndarray | Tensor,
    config: CompressionConfig,
    store: Any,
    context: RunContext,
    calibration: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, float]]:
    """Press every target and put it into `store`; yields (name, seconds) as each one is done.

    `model` is the original in float32 and is changed: pressed layers take their dequantized weights (of a
    paged model only the block at work is in memory, and it is dropped when it is done). Tensors that the
    store has already are taken from it, and since the activations are computed anew in the same order, a
    resumed run makes the same bytes as one that was never interrupted. Targets that are no linear module of
    a block, or that no window reaches, are fitted from their weights alone; embeddings and heads by the
    `hessian` that `calibration` has for them, before the blocks, which then see what became of them.

    Raises `InputError` naming the tensor where weights or activations are not finite or a scale leaves
    float16.
    """
    block_path, blocks = find_blocks(model)
    modules = modules_of(model, [target.name for target in targets])
    by_block: dict[int, list[_Layer]] = {}
    alone: dict[int | None, list[Target]] = {}
    for target in targets:
        path, module = modules.get(target.name, ("", None))
        block, _, inside = path.removeprefix(block_path + ".").partition(".")
        if module is not None and is_linear(module) and path.startswith(block_path + ".") and inside:
            by_block.setdefault(int(block), []).append(_Layer(target, inside, module))
        else:
            alone.setdefault(target.layer, []).append(target)

    def press_alone(target: Target) -> tuple[str, float]:
        context.check()
        seconds = 0.0
        if not store.has(target.name):
            _started(target, context)
            seconds = press_tensor(target, plan.tensors[target.name], config, store)
        _write_parameter(model, target, plan.tensors[target.name], store)
        return target.name, seconds

    runner = BlockRunner(model, blocks, windows, context)
    known = calibration or {}
    tables = [target for target in alone.get(None, []) if "hessian" in known.get(target.name, {})]
    for target in tables:
        alone[None].remove(target)
        if store.has(target.name):
            seconds = 0.0
        else:
            context.check()
            _started(target, context)
            planned = plan.tensors[target.name]
            seconds = press_table(target, planned, known[target.name]["hessian"], config, store)
        yield target.name, seconds
    if tables:
        with _tables_as_pressed(model, tables, modules, plan, store):
            runner.enter_again()
    for number, module in enumerate(blocks):
        with holding(module):  # of a paged model one block at a time is in memory
            for target in alone.pop(number, []):
                yield press_alone(target)
            layers = {layer.path: layer for layer in by_block.get(number, [])}
            twin = runner.twin(number) if CORRECTION else None
            for stage in runner.stages(number, list(layers)):
                yield from _press_stage(runner, number, twin, stage, layers, plan, config, store, context)
            for layer in layers.values():
                if not store.has(layer.target.name):
                    yield press_alone(layer.target)
            runner.advance(number, twin)
        del twin
        give_back_freed()
    for rest in alone.values():
        for target in rest:
            yield press_alone(target)


def _press_stage(
    runner: BlockRunner,
    number: int,
    twin: nn.Module | None,
    stage: Stage,
    layers: dict[str, _Layer],
    plan: Plan,
    config: CompressionConfig,
    store: Any,
    context: RunContext,
) -> Iterator[tuple[str, float]]:
    """Fit the layers of one stage, or take them from the store when all of them are there."""
    started = time.perf_counter()
    members = [layers[path] for group in stage.groups for path in group]
    missing = [layer for layer in members if not store.has(layer.target.name)]
    if missing:  # the inputs' moments that the stage shares are the first tensor's work
        _started(missing[0].target, context)
    moments = _moments(runner, number, twin, stage, context) if missing else {}
    shared = (time.perf_counter() - started) / max(1, len(missing))
    for group in stage.groups:
        if all(store.has(layers[path].target.name) for path in group):
            continue
        found = moments.pop(group[0])
        names = [layers[path].target.name for path in group]
        if not bool(torch.isfinite(found.hessian).all()):
            raise InputError(f"{names[0]} is given inputs that are not finite")
        begun = time.perf_counter()
        give_back_freed()  # what the forward passes and the group before left is of other sizes
        ready = {size: curvature(found.hessian, size) for size in {plan.tensors[n].group_size for n in names}}
        give_back_freed()
        shared += (time.perf_counter() - begun) / len(missing)
        for path in group:
            layer = layers[path]
            if store.has(layer.target.name):
                continue
            context.check()
            if layer is not missing[0]:
                _started(layer.target, context)
            begun = time.perf_counter()
            planned = plan.tensors[layer.target.name]
            _press_layer(layer, found, ready[planned.group_size], planned, config, store)
            yield layer.target.name, shared + time.perf_counter() - begun
    for layer in members:
        planned = plan.tensors[layer.target.name]
        set_weight(layer.module, _stored_weight(layer.target, planned, store))
        if layer not in missing:
            yield layer.target.name, 0.0


def press_table(
    target: Target, planned: TensorPlan, hessian: np.ndarray, config: CompressionConfig, store: Any
) -> float:
    """Sweep an embedding or head into the store; returns the seconds it took."""
    from tritpress import _core

    started = time.perf_counter()
    at = curvature(torch.from_numpy(np.ascontiguousarray(hessian)), planned.group_size)
    codes, scales = [], []
    sums: Any = None
    for start in range(0, target.rows, TABLE_ROWS):
        weight = read_rows(target.entry, start, min(target.rows, start + TABLE_ROWS))
        try:
            fitted = sweep(torch.from_numpy(weight), at, spec_of(planned, config))
        except InputError as error:
            raise InputError(f"{target.name}: {error}") from None
        codes.append(reference.pack(fitted.trits).cpu().numpy())
        scales.append(fitted.scales.half().cpu().numpy())
        piece = _core.layer_statistics(weight, codes[-1], scales[-1], planned.group_size)
        sums = piece if sums is None else add(sums, piece)
    whole = [np.concatenate(parts, axis=1) for parts in (codes, scales)]
    store.put(target.name, whole[0], whole[1], summary(sums))
    return time.perf_counter() - started


@contextlib.contextmanager
def _tables_as_pressed(
    model: nn.Module,
    tables: list[Target],
    modules: Mapping[str, tuple[str, nn.Module]],
    plan: Plan,
    store: Any,
) -> Iterator[None]:
    """Let the model's embeddings and head be what the store has of them: for good in a held model, which is
    a copy; in a paged one, which is the original, only meanwhile."""
    kept, instead = [], {}
    for target in tables:
        planned, (_, module) = plan.tensors[target.name], modules[target.name]
        weight = cast(Tensor, module.weight)
        if is_placeholder(weight):
            instead[module] = _pressed_rows(target, planned, store)
            continue
        if is_paged(model):
            kept.append((weight, weight.detach().clone()))
        _write_parameter(model, target, planned, store)
    try:
        with weights_instead(instead):
            yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)


def _pressed_rows(target: Target, planned: TensorPlan, store: Any) -> ReadRows:
    entries = store.entries(target.name)

    def read(name: str, rows: Tensor) -> Tensor:
        every = (np.arange(planned.planes)[:, None] * target.rows + rows.numpy()).ravel()
        codes, scales = (
            torch.from_numpy(read_some_rows(entry, every)).unflatten(0, (planned.planes, len(rows)))
            for entry in entries
        )
        return reference.dequantize(codes.to(torch.uint8), scales.half(), target.cols, planned.group_size)

    return read


def _started(target: Target, context: RunContext) -> None:
    context.emit("layer.started", name=target.name, layer=target.layer, kind=target.kind)


def _moments(
    runner: BlockRunner, number: int, twin: nn.Module | None, stage: Stage, context: RunContext
) -> dict[str, _Moments]:
    """The moments of each group of a stage, by the path of its first layer."""
    sums: dict[str, _Moments] = {}
    tokens: dict[str, int] = {}
    block = runner.blocks[number]
    alone = stage.groups[0][0] if stage.stop and len(stage.groups) == len(stage.groups[0]) == 1 else None
    role = (
        runner.stream_role(number, twin, alone) if twin is not None and alone and STREAM_CORRECTION else None
    )
    for batch, (hidden, original) in enumerate(zip(runner.hidden, runner.original_hidden)):
        context.check()
        drift: Tensor | None = None
        before: dict[str, Tensor] = {}
        if role == "output":
            assert twin is not None and alone is not None
            z, stream = runner.input_and_stream(number, block, alone, batch, original=False)
            x, wanted = runner.input_and_stream(number, twin, alone, batch, original=True)
            seen, before, drift = {alone: z}, {alone: x}, wanted - stream
        else:
            seen = runner.inputs(number, block, stage, hidden)
            if twin is not None:
                before = runner.inputs(number, twin, stage, original)
            drift = original - hidden if role == "input" else None
        for path, z in seen.items():
            fresh = _Moments(z.T @ z)
            if twin is not None:
                own = before.get(path)
                # experts may be given other tokens in the two streams: nothing to compare there
                fresh.cross = own.T @ z if own is not None and own.shape == z.shape else fresh.hessian.clone()
            if drift is not None:
                fresh.drift = drift.flatten(0, -2).float().T @ z
            sums[path] = _add(sums[path], fresh) if path in sums else fresh
            tokens[path] = tokens.get(path, 0) + len(z)
    for path, total in sums.items():
        total.tokens = tokens[path]
        for part in (total.hessian, total.cross, total.drift):
            if part is not None:
                part /= tokens[path]
    return sums


def _add(first: _Moments, second: _Moments) -> _Moments:
    """`first` with `second` added, in place."""

    def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a.add_(b)

    return _Moments(
        first.hessian.add_(second.hessian),
        total(first.cross, second.cross),
        total(first.drift, second.drift),
    )


def _press_layer(
    layer: _Layer,
    moments: _Moments,
    at: Curvature,
    planned: TensorPlan,
    config: CompressionConfig,
    store: Any,
) -> None:
    name = layer.target.name
    weight = weight_out_in(layer.module).float().contiguous()
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"{name} has weights that are not finite")
    try:
        fitted = sweep(_corrected(weight, moments), at, spec_of(planned, config))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    codes = reference.pack(fitted.trits).cpu().numpy()
    scales = fitted.scales.half().cpu().numpy()
    info = layer_statistics(weight.cpu().numpy(), codes, scales, planned.group_size)
    store.put(name, codes, scales, info)


def _corrected(weight: Tensor, moments: _Moments) -> Tensor:
    """The weight that, on the compressed model's inputs, comes nearest to what is wanted of the layer: [out,
    in].

    W (C + d) (H + d)^-1 = W + W (C - H) (H + d)^-1, with d the damping, and the drift's own least squares on
    top.
    """
    if moments.cross is None:
        return weight
    change = moments.cross.to(torch.float64, copy=True).sub_(moments.hessian)
    wanted = CORRECTION * (weight.double() @ change)
    del change
    if moments.drift is not None:
        wanted += STREAM_CORRECTION * moments.drift.double()
    step = torch.cholesky_solve(wanted.T, torch.linalg.cholesky(damped(moments.hessian))).T
    # few tokens for many inputs: the least squares would learn those tokens by heart
    trust = moments.tokens / (moments.tokens + SHRINKAGE * weight.shape[1])
    return (weight.double() + trust * step).float()


def _stored_weight(target: Target, planned: TensorPlan, store: Any) -> Tensor:
    """What the finished tensor stands for: float32 [.., out, in]."""
    codes, scales = store.get(target.name)
    return reference.dequantize(
        torch.from_numpy(codes), torch.from_numpy(scales), target.cols, planned.group_size
    )


def _write_parameter(model: nn.Module, target: Target, planned: TensorPlan, store: Any) -> None:
    """Let the compressed model's activations see a tensor that is no linear module, where one parameter
    holds it."""
    parameters = dict(model.named_parameters())
    name = model_name(model, target.name, parameters)
    if name is None:
        return
    weight = _stored_weight(target, planned, store)
    if target.transposed:
        weight = weight.transpose(-1, -2)
    if parameters[name].shape == weight.shape and not is_placeholder(parameters[name]):
        with torch.no_grad():
            parameters[name].copy_(weight)
