"""Whether what was written is what was pressed: every tensor of the packed file against the source again."""

from __future__ import annotations

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

WORSE_THAN_ZEROS = 1.0
TIMES_PLAIN = 6.0
"""A tensor is no sound fit where its squared error is above that of zeros (and twice a plain fit's). Where no
error was noted at pressing, one above this many times a plain fit's with as many planes, and above it by a
quarter of the tensor's squared norm, is taken for none either. What was noted decides where it is there: a
calibrated fit that was asked for many zeros or few bits may well be that far off."""


def unsound_tensors(work: Work, packed: str | Any) -> list[dict[str, Any]]:
    """[{name, relative_error, noted, plain, reason}] of pressed tensors whose codes in `packed` are not what
    they should be, worst first.

    `relative_error` is the squared error of the weights over their squared norm as read back from the file,
    `noted` the one noted when the tensor was pressed (or trained), `plain` that of a plain fit with as many
    planes and the same groups.
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
        error = _relative_error(model, target)
        if error is None:
            continue
        noted = work.final_store.info(target.name).get("relative_error")
        usual = plain[target.name][asked[target.name][0]].relative
        reason = _reason(error, noted, usual)
        if reason:
            found.append(
                {
                    "name": target.name,
                    "relative_error": error,
                    "noted": noted,
                    "plain": usual,
                    "reason": reason,
                }
            )
    return sorted(found, key=lambda x: -x["relative_error"])


def _reason(error: float, noted: float | None, usual: float) -> str | None:
    if noted is not None and abs(error - noted) > TOLERANCE * max(1.0, noted):
        return f"its squared error is {error:.3g} of its size in the file, {noted:.3g} when it was made"
    if error > max(WORSE_THAN_ZEROS, 2 * usual):
        return (
            f"its squared error is {error:.3g} of its size: zeros would be nearer (a plain fit: {usual:.3g})"
        )
    if noted is None and error > max(TIMES_PLAIN * usual, 0.25 + usual):
        return f"its squared error is {error:.3g} of its size, that of a plain fit {usual:.3g}"
    return None


def _relative_error(model: PackedModel, target: Target) -> float | None:
    """Squared error over squared norm of the whole tensor; None for a tensor of zeros."""
    from tritpress import _core

    info = model.tensors[target.name]
    total: Any = None
    for start, stop, weight in _row_pieces(target):
        codes, scales = model.ternary_rows(target.name, start, stop)
        sums = _core.layer_statistics(weight, codes, scales, info.kernel_group_size)
        total = sums if total is None else add(total, sums)
    error = summary(total)["relative_error"]
    return None if error is None else float(error)


def _row_pieces(target: Target) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, stop, float32 [stop - start, in]) over all rows, those of experts one after the other."""
    rows = target.rows * int(np.prod(target.experts, dtype=np.int64))
    whole = None
    if target.transposed:
        whole = np.swapaxes(read_tensor(target.entry), -1, -2).reshape(-1, target.cols)
    for start, stop in row_chunks(rows, 4 * target.cols):
        piece = read_rows(target.entry, start, stop) if whole is None else whole[start:stop]
        yield start, stop, np.ascontiguousarray(piece.reshape(-1, target.cols))
