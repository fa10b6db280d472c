"""Recording what people look at later: details of each pressed tensor, from a sample of its rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tritpress.errors import InputError
from tritpress.formats.details import read_details, write_details
from tritpress.formats.source import TensorEntry, as_bytes, pread_into, read_raw, read_rows, to_float32
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import Target
from tritpress.steps.work import Work
from tritpress.ternarize.details import measure, sample_rows

EXPERTS_TURNED = 4
"""Stacked experts stored [in, out] have to be read whole to get at their rows: so many at most are."""


def record_details(
    work: Work, target: Target, store: TensorStore, info: dict[str, Any], reused: bool
) -> dict[str, Any]:
    """Keep the details of a finished tensor in the run's folder; returns what its event says of them.

    Those of a tensor that a resumed run found finished are kept where they are there.
    """
    path = work.directory.path
    details = read_details(path, target.name) if reused else None
    if details is None:
        assert work.plan is not None
        planned = work.plan.tensors[target.name]
        rows = sampled_rows(target)
        codes, scales = store.entries(target.name)
        details = measure(
            source_rows(target, rows),
            _stored_rows(codes, planned.planes, rows),
            _stored_rows(scales, planned.planes, rows),
            planned.group_size,
            rows=target.rows * math.prod(target.experts),
            cosine=info.get("cosine"),
            relative_error=info.get("relative_error"),
            planned={
                # BitNet's one scale a tensor is absmean's rule; the curves are drawn by groups
                "fit": "absmean" if work.config.fit == "bitnet" else work.config.fit,
                "threshold": planned.threshold,
                "sparsity": planned.sparsity,
                "max_sparsity": planned.max_sparsity,
            },
        )
        write_details(path, target.name, details)
    return {
        "relative_error": details.relative_error,
        "sign_flips": details.sign_flips,
        "threshold_used": details.threshold_used,
    }


def sampled_rows(target: Target) -> np.ndarray:
    """Sampled rows, counted over all experts."""
    experts = math.prod(target.experts)
    if not target.transposed or experts <= EXPERTS_TURNED:
        return sample_rows(target.rows * experts, target.cols)
    chosen = ((np.arange(EXPERTS_TURNED) * 2 + 1) * experts) // (2 * EXPERTS_TURNED)
    inside = sample_rows(target.rows * EXPERTS_TURNED, target.cols)
    return chosen[inside // target.rows] * target.rows + inside % target.rows


def source_rows(target: Target, rows: np.ndarray) -> np.ndarray:
    """The source's weights in those rows: float32 [n, in]."""
    entry = target.entry
    if not target.transposed:
        return to_float32(_rows_raw(entry, rows, target.cols).ravel(), entry.dtype).reshape(-1, target.cols)
    out = np.empty((len(rows), target.cols), dtype=np.float32)
    size = target.rows * target.cols
    for expert in np.unique(rows // target.rows):
        nbytes = entry.nbytes // entry.size * size
        one = dataclasses.replace(
            entry,
            shape=(target.cols, target.rows),
            offset=entry.offset + int(expert) * nbytes,
            nbytes=nbytes,
        )
        here = rows // target.rows == expert
        step = max(1, (1 << 21) // target.rows)
        for start in range(0, target.cols, step):  # in bands: the whole may be large
            stop = min(start + step, target.cols)
            out[here, start:stop] = read_rows(one, start, stop)[:, rows[here] % target.rows].T
    return out


def _stored_rows(entry: TensorEntry, planes: int, rows: np.ndarray) -> np.ndarray:
    """Rows of codes or scales [planes, .., out, n] as [planes, rows, n]."""
    width = entry.shape[-1]
    total = math.prod(entry.shape[1:-1])
    every = (np.arange(planes)[:, None] * total + rows).ravel()
    return _rows_raw(entry, every, width).reshape(planes, len(rows), width)


def _rows_raw(entry: TensorEntry, rows: np.ndarray, width: int) -> np.ndarray:
    """Rows of `width` elements in their stored dtype, by one open file: [n, width]."""
    if len(rows) * width == entry.size:
        return read_raw(entry).reshape(-1, width)
    out = np.empty((len(rows), width), dtype=read_raw(entry, 0, 0).dtype)
    nbytes = width * out.itemsize
    view = as_bytes(out)
    with open(entry.file, "rb", buffering=0) as file:
        for at, row in enumerate(rows.tolist()):
            got = pread_into(
                file.fileno(), view[at * nbytes : (at + 1) * nbytes], entry.offset + row * nbytes
            )
            if got != nbytes:
                raise InputError(f"{entry.file} ends inside tensor {entry.name}: the file is truncated")
    return out
