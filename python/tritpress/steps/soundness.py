"""Whether what was written is what was pressed: every tensor of the packed file against the source again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tritpress.costs import choice_costs
from tritpress.formats.packed_reader import PackedModel, open_packed
from tritpress.formats.source import read_rows, read_tensor, row_chunks
from tritpress.formats.targets import Target
from tritpress.steps.work import Work
from tritpress.ternarize.stats import add, summary

TOLERANCE = 1e-3
"""By how much the relative error on disk may differ from the one noted at pressing (order of sums)."""

LEAST_COSINE = 1 / 3
"""A tensor is no sound fit where the cosine between its weights and the source's is below this share of a
plain fit's. The size of the error tells nothing: a calibrated fit of few bits may leave a larger one than
zeros would (along inputs that hardly occur), while shuffled codes point nowhere near the weights."""


def unsound_tensors(work: Work, packed: str | Any) -> list[dict[str, Any]]:
    """[{name, relative_error, cosine, noted, plain, reason}] of pressed tensors whose codes in `packed` are
    not what they should be, worst first.

    `relative_error` is the squared error of the weights over their squared norm and `cosine` that between
    both, as read back from the file, `noted` the error noted when the tensor was pressed (or trained),
    `plain` that of a plain fit with as many planes and the same groups.
    """
    assert work.plan is not None
    model = open_packed(packed, values=False)
    targets = [target for target in work.pressed if target.name in model.tensors]
    asked = {
        t.name: [(work.plan.tensors[t.name].planes, work.plan.tensors[t.name].group_size)] for t in targets
    }
    zeros = {name: (p.threshold, p.sparsity) for name, p in work.plan.tensors.items()}
    plain = choice_costs(targets, work.config, None, asked, zeros)
    found = []
    for target in targets:
        work.context.check()
        read = _statistics(model, target)
        if read["relative_error"] is None:  # a tensor of zeros
            continue
        noted = work.final_store.info(target.name).get("relative_error")
        usual = plain[target.name][asked[target.name][0]].relative
        reason = _reason(read["relative_error"], read["cosine"], noted, usual)
        if reason:
            facts = {key: read[key] for key in ("relative_error", "cosine")}
            found.append({"name": target.name, **facts, "noted": noted, "plain": usual, "reason": reason})
    return sorted(found, key=lambda x: -x["relative_error"])


def _reason(error: float, cosine: float, noted: float | None, usual: float) -> str | None:
    if noted is not None and abs(error - noted) > TOLERANCE * max(1.0, noted):
        return f"its squared error is {error:.3g} of its size in the file, {noted:.3g} when it was made"
    plain = math.sqrt(max(0.0, 1.0 - usual))  # a least-squares fit's cosine
    if cosine < LEAST_COSINE * plain:
        return f"the cosine to its weights is {cosine:.2g}, that of a plain fit {plain:.2g}"
    return None


def _statistics(model: PackedModel, target: Target) -> dict[str, Any]:
    """The figures of `layer_statistics` for the whole tensor as it lies in the file."""
    from tritpress import _core

    info = model.tensors[target.name]
    total: Any = None
    for start, stop, weight in _row_pieces(target):
        codes, scales = model.ternary_rows(target.name, start, stop)
        sums = _core.layer_statistics(weight, codes, scales, info.kernel_group_size)
        total = sums if total is None else add(total, sums)
    return summary(total)


def _row_pieces(target: Target) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, stop, float32 [stop - start, in]) over all rows, those of experts one after the other."""
    rows = target.rows * int(np.prod(target.experts, dtype=np.int64))
    whole = None
    if target.transposed:
        whole = np.swapaxes(read_tensor(target.entry), -1, -2).reshape(-1, target.cols)
    for start, stop in row_chunks(rows, 4 * target.cols):
        piece = read_rows(target.entry, start, stop) if whole is None else whole[start:stop]
        yield start, stop, np.ascontiguousarray(piece.reshape(-1, target.cols))
