"""What holding the zeros below their ceiling costs, measured on some rows of every tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tritpress.formats.targets import Target
from tritpress.steps.details import sampled_rows, source_rows
from tritpress.steps.work import Work

ROWS = 64
"""Rows of each tensor that are fitted twice."""


def ceiling_cost(work: Work) -> dict[str, Any] | None:
    """The same fit from the weights alone, with and without the ceiling; None where no ceiling is in force.

    `error_increase` is the share by which the squared error of the weights grows, summed over the tensors,
    `sparsity_with` and `sparsity_without` the shares of zero codes, all over 64 rows of every tensor that is
    held below a ceiling: the first ones, or of stacked experts some of several. `perplexity_cost` is the
    relative change of perplexity that the growth of each tensor's error stands for where the plan's losses
    are in nats (its predicted loss times that growth); None elsewhere.
    """
    from tritpress import _core
    from tritpress.ternarize.stats import summary

    assert work.plan is not None
    if work.config.fit == "bitnet":  # it sets its own zeros
        return None
    errors, zeros, codes_seen, rows_seen, loss, highest = [0.0, 0.0], [0.0, 0.0], 0, 0, 0.0, 0.0
    for target in work.targets:
        work.context.check()
        planned = work.plan.tensors[target.name]
        held = planned.max_sparsity
        if held is None or planned.sparsity is not None or planned.threshold is not None:
            continue
        highest = max(highest, held)
        weight = np.ascontiguousarray(source_rows(target, _rows(target)))
        own = []
        for i, ceiling in enumerate((held, None)):
            codes, scales = _core.ternarize(
                weight,
                fit=work.config.fit,
                group_size=planned.group_size,
                planes=planned.planes,
                max_sparsity=ceiling,
                threads=work.config.threads,
            )
            found = summary(_core.layer_statistics(weight, codes, scales, planned.group_size))
            own.append(found["mse"] * weight.size)
            errors[i] += own[-1]
            zeros[i] += found["sparsity"] * weight.size * planned.planes
        if own[0] > 0:
            loss += (planned.predicted_loss or 0.0) * (1.0 - own[1] / own[0])
        codes_seen += weight.size * planned.planes
        rows_seen += len(weight)
    if not codes_seen or not errors[1]:
        return None
    return {
        "ceiling": highest,
        "error_increase": errors[0] / errors[1] - 1.0,
        "perplexity_cost": math.expm1(loss) if work.plan.basis == "calibrated" else None,
        "sparsity_with": zeros[0] / codes_seen,
        "sparsity_without": zeros[1] / codes_seen,
        "rows": rows_seen,
    }


def _rows(target: Target) -> np.ndarray:
    """Indices of the rows looked at, counted over all experts."""
    if not target.experts:
        return np.arange(min(ROWS, target.rows))
    rows = sampled_rows(target)
    return rows[np.unique(np.linspace(0, len(rows) - 1, ROWS).round().astype(np.int64))]
