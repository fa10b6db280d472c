"""The fast method: every tensor from the source file to the store in constant memory, by the Rust core.

No torch and no text: a group is fitted by its weights alone, or (`--method weighted`) weighted by the inputs'
second moments where a calibration is at hand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np

from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.events.context import RunContext
from tritpress.formats.source import read_tensor
from tritpress.formats.targets import Target
from tritpress.plan import Plan, TensorPlan
from tritpress.ternarize.stats import add, layer_statistics, summary

_STREAMED = ("F32", "F16", "BF16")


def fast_tensors(
    targets: list[Target],
    plan: Plan,
    config: CompressionConfig,
    store: Any,
    context: RunContext,
    calibration: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, float]]:
    """Press every target that `store` lacks; yields (name, seconds), 0 seconds for what was there.

    `calibration` (name -> object or dict with `input_moment` float32 [in]) weighs the inputs.
    """
    for target in targets:
        context.check()
        if store.has(target.name):
            yield target.name, 0.0
            continue
        context.emit("layer.started", name=target.name, layer=target.layer, kind=target.kind)
        importance = None
        if calibration is not None and target.name in calibration:
            importance = np.asarray(calibration[target.name]["input_moment"], dtype=np.float32)
        yield target.name, press_tensor(target, plan.tensors[target.name], config, store, importance)


def press_tensor(
    target: Target,
    planned: TensorPlan,
    config: CompressionConfig,
    store: Any,
    importance: np.ndarray | None = None,
) -> float:
    """Press one tensor from its file into the store; returns the seconds it took.

    Raises `InputError` naming the tensor where a weight is not finite or a scale leaves float16's range.
    """
    started = time.perf_counter()
    options: dict[str, Any] = {
        "fit": config.fit,
        "group_size": planned.group_size,
        "planes": planned.planes,
        "threshold": planned.threshold,
        "sparsity": planned.sparsity,
        "max_sparsity": planned.max_sparsity,
        "importance": importance,
        "threads": config.threads,
    }
    try:
        if config.fit == "bitnet":
            _press_bitnet(target, options, store)
        elif target.entry.dtype not in _STREAMED:
            _press_in_memory(target, options, store)
        elif target.experts and target.transposed:
            _press_transposed_experts(target, options, store)
        else:
            _press_stream(target, options, store)
    except ValueError as error:
        raise InputError(f"{target.entry.file}: {target.name}: {error}") from None
    return time.perf_counter() - started


def _shapes(target: Target, options: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    width = options["group_size"] or target.cols
    lead = (options["planes"], *target.experts, target.rows)
    return (*lead, -(-target.cols // 4)), (*lead, -(-target.cols // width))


def _press_stream(target: Target, options: dict[str, Any], store: Any) -> None:
    """Row chunks in, codes and scales out, all in Rust; experts count as more rows."""
    from tritpress import _core

    path, codes_offset, scales_offset = store.prepare(target.name, *_shapes(target, options))
    rows = target.rows
    for count in target.experts:
        rows *= count
    sums = _core.ternarize_stream(
        str(target.entry.file),
        target.entry.offset,
        cast(Literal["F32", "F16", "BF16"], target.entry.dtype),  # one of _STREAMED
        rows,
        target.cols,
        target.transposed,
        str(path),
        codes_offset,
        scales_offset,
        **options,
    )
    store.commit(target.name, summary(sums))


def _press_transposed_experts(target: Target, options: dict[str, Any], store: Any) -> None:
    """Stacked experts [experts, in, out]: one expert at a time, since each has to be turned by itself."""
    from tritpress import _core

    codes_shape, scales_shape = _shapes(target, options)
    path, codes_offset, scales_offset = store.prepare(target.name, codes_shape, scales_shape)
    experts, planes = int(np.prod(target.experts)), options["planes"]
    per_expert = target.rows * target.cols
    item = target.entry.nbytes // target.entry.size
    totals: Mapping[str, Any] | None = None
    fd = os.open(path, os.O_WRONLY)
    try:
        for expert in range(experts):
            entry = replace(
                target.entry,
                shape=(target.cols, target.rows),
                offset=target.entry.offset + expert * per_expert * item,
                nbytes=per_expert * item,
            )
            weight = np.ascontiguousarray(read_tensor(entry).T)
            codes, scales = _core.ternarize(weight, **options)
            for plane in range(planes):
                for array, offset in ((codes, codes_offset), (scales, scales_offset)):
                    piece = np.ascontiguousarray(array[plane])
                    _write_all(fd, piece, offset + (plane * experts + expert) * piece.nbytes)
            sums = _core.layer_statistics(weight, codes, scales, options["group_size"])
            totals = sums if totals is None else add(totals, sums)
    finally:
        os.close(fd)
    assert totals is not None
    store.commit(target.name, summary(totals))


def _write_all(fd: int, array: np.ndarray, offset: int) -> None:
    view = array.data.cast("B")
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _press_bitnet(target: Target, options: dict[str, Any], store: Any) -> None:
    """One scale a matrix needs all of it before the first code: each (each expert's) is held for its turn."""
    from tritpress.ternarize.bitnet import bitnet

    weight = read_tensor(target.entry)
    if target.transposed:
        weight = np.swapaxes(weight, -1, -2)
    chosen = {key: options[key] for key in ("planes", "group_size", "importance")}
    pressed = [bitnet(one, **chosen) for one in weight.reshape(-1, target.rows, target.cols)]
    codes, scales = (np.concatenate([one[i] for one in pressed], axis=1) for i in (0, 1))
    codes_shape, scales_shape = _shapes(target, options)
    info = layer_statistics(weight, codes, scales, options["group_size"])
    store.put(target.name, codes.reshape(codes_shape), scales.reshape(scales_shape), info)


def _press_in_memory(target: Target, options: dict[str, Any], store: Any) -> None:
    """Dtypes that the stream does not read (float64): the tensor is small or the machine large."""
    from tritpress import _core

    weight = read_tensor(target.entry)
    if target.transposed:
        weight = np.swapaxes(weight, -1, -2)
    weight = np.ascontiguousarray(weight.reshape(-1, target.cols))
    codes, scales = _core.ternarize(weight, **options)
    codes_shape, scales_shape = _shapes(target, options)
    info = layer_statistics(weight, codes, scales, options["group_size"])
    store.put(target.name, codes.reshape(codes_shape), scales.reshape(scales_shape), info)
