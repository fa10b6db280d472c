"""What holding the zeros below their ceiling costs, measured on some rows of every tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tritpress.formats.source import read_rows
from tritpress.steps.work import Work

ROWS = 64
"""Rows of each tensor that are fitted twice."""


def ceiling_cost(work: Work) -> dict[str, Any] | None:
    """The same fit from the weights alone, with and without the ceiling; None where no ceiling is in force.

    `error_increase` is the share by which the squared error of the weights grows, summed over the tensors,
    `sparsity_with` and `sparsity_without` the shares of zero codes, all over the first 64 rows of every
    tensor that is stored as [out, in]. `perplexity_cost` is the relative change of perplexity that the growth
    of each tensor's error stands for where the plan's losses are in nats (its predicted loss times that
    growth); None elsewhere.
    """
    from tritpress import _core
    from tritpress.ternarize.stats import summary

    assert work.plan is not None
    if work.config.max_sparsity is None or work.config.fit == "bitnet":  # bitnet sets its own zeros
        return None
    errors, zeros, codes_seen, rows_seen, loss = [0.0, 0.0], [0.0, 0.0], 0, 0, 0.0
    for target in work.targets:
        work.context.check()
        if target.transposed or target.experts:
            continue
        planned = work.plan.tensors[target.name]
        weight = np.ascontiguousarray(read_rows(target.entry, 0, min(ROWS, target.rows)))
        own = []
        for i, ceiling in enumerate((work.config.max_sparsity, None)):
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
        "ceiling": work.config.max_sparsity,
        "error_increase": errors[0] / errors[1] - 1.0,
        "perplexity_cost": math.expm1(loss) if work.plan.basis == "calibrated" else None,
        "sparsity_with": zeros[0] / codes_seen,
        "sparsity_without": zeros[1] / codes_seen,
        "rows": rows_seen,
    }
