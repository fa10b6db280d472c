"""One choice for each tensor, within so many bytes, at the least loss: a multiple-choice knapsack. Needs no
torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CELLS = 20_000
"""Steps into which the dynamic programme divides the bytes that are free to spend."""
_WORK = 40_000_000
"""Cells times tensors at most, for models of very many tensors."""


def frontier(sizes: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Indices of the choices worth having, by rising size: each larger one has a smaller loss than all
    before it."""
    kept: list[int] = []
    for i in np.lexsort((losses, sizes)):
        if not kept or losses[i] < losses[kept[-1]]:
            kept.append(int(i))
    return np.asarray(kept, dtype=np.int64)


def knapsack(
    sizes: Sequence[np.ndarray],
    losses: Sequence[np.ndarray],
    limit: int,
    cells: int = CELLS,
    slack: int | None = None,
) -> np.ndarray | None:
    """Index of the choice taken for each tensor, so that the sum of the losses is least while the sizes add
    up to `limit` at most; None where even the smallest choices are too large.

    sizes[t] int [choices] bytes, losses[t] float [choices], of any order and number. With `slack` the sizes
    add up to no less than the largest sum within `limit` that there is, less so many bytes (and what rounding
    costs). Dynamic programming over bytes rounded up to `cells` steps, so that the answer always fits; what
    the rounding left over is spent by exchanging single choices and pairs of them.
    """
    fronts = [
        frontier(np.asarray(s), np.asarray(c)) if slack is None else np.lexsort((c, s))
        for s, c in zip(sizes, losses, strict=True)
    ]
    size = [np.asarray(s, dtype=np.int64)[f] for s, f in zip(sizes, fronts, strict=True)]
    loss = [np.asarray(c, dtype=np.float64)[f] for c, f in zip(losses, fronts, strict=True)]
    free = int(limit) - sum(int(s[0]) for s in size)
    if free < 0:
        return None
    cells = min(cells, max(200, _WORK // max(1, len(size))))
    chosen = _programme(size, loss, free, cells, slack)
    left = free - sum(int(s[c] - s[0]) for s, c in zip(size, chosen, strict=True))
    _exchange(size, loss, chosen, left, None if slack is None else max(left, slack))
    return np.array([f[c] for f, c in zip(fronts, chosen, strict=True)], dtype=np.int64)


def _programme(
    size: list[np.ndarray], loss: list[np.ndarray], free: int, cells: int, slack: int | None
) -> np.ndarray:
    unit = max(1, -(-free // cells))
    width = free // unit + 1
    best = np.zeros(width)
    if slack is not None:  # cells then are sums, not bounds of sums
        best[1:] = np.inf
    taken = np.zeros((len(size), width), dtype=np.int8)
    steps = [-(-(s - s[0]) // unit) for s in size]
    for t, cost in enumerate(steps):
        fresh = np.full(width, np.inf)
        for c, step in enumerate(cost):
            if step >= width:
                break
            candidate = best[: width - step] + loss[t][c]
            better = candidate < fresh[step:]
            fresh[step:][better] = candidate[better]
            taken[t, step:][better] = c
        best = fresh
    if slack is not None:
        largest = int(np.flatnonzero(np.isfinite(best))[-1])
        best[: max(0, largest - slack // unit)] = np.inf
    cell = int(np.argmin(best))
    chosen = np.zeros(len(size), dtype=np.int64)
    for t in range(len(size) - 1, -1, -1):
        chosen[t] = taken[t, cell]
        cell -= int(steps[t][chosen[t]])
    return chosen


def _exchange(
    size: list[np.ndarray], loss: list[np.ndarray], chosen: np.ndarray, left: int, most_left: int | None
) -> None:
    """Use `left` bytes: the best single move or pair of moves that fits, again and again; never so that more
    than `most_left` are left over."""
    moves = max((len(s) for s in size), default=0)
    tensors = len(size)
    bytes_of = np.full((tensors, moves), np.iinfo(np.int64).max // 4)
    loss_of = np.full((tensors, moves), np.inf)
    for t in range(tensors):
        bytes_of[t, : len(size[t])], loss_of[t, : len(size[t])] = size[t], loss[t]
    rows = np.arange(tensors)
    for _ in range(8 * tensors):
        grown = (bytes_of - bytes_of[rows, chosen][:, None]).ravel()
        worse = (loss_of - loss_of[rows, chosen][:, None]).ravel()
        least = -np.inf if most_left is None else left - most_left
        fits = np.flatnonzero((grown <= left) & (grown >= least))
        best, change = (-1, -1), -1e-12 * max(1.0, float(np.abs(loss_of[rows, chosen]).sum()))
        if len(fits) and worse[fits].min() < change:
            i = int(fits[np.argmin(worse[fits])])
            best, change = (i, -1), float(worse[i])
        gains = np.flatnonzero((worse < 0) & (grown > left))  # too large alone: what could make room?
        for i in gains.tolist() if tensors * len(gains) * moves < 4_000_000 else ():
            other = (grown <= left - grown[i]) & (grown >= least - grown[i])
            other &= np.repeat(rows, moves) != i // moves
            if other.any():
                j = int(np.argmin(np.where(other, worse, np.inf)))
                if worse[i] + worse[j] < change:
                    best, change = (int(i), j), float(worse[i] + worse[j])
        if best[0] < 0:
            return
        for i in best:
            if i >= 0:
                chosen[i // moves] = i % moves
                left -= int(grown[i])
