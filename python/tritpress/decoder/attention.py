"""Causal attention over the cache for several new tokens; for one the core has it (`_core.attend`)."""

from __future__ import annotations

import numpy as np

from tritpress.decoder.cache import KVCache

_CHUNK = 128
"""New tokens whose scores are made at once: bounds the memory of a long prompt."""


def attend_many(q: np.ndarray, cache: KVCache, layer: int, first: int, window: int | None) -> np.ndarray:
    """Several tokens: q [n, kv_heads, group, head_size] at the positions first..first + n, whose keys and
    values are in the cache already -> [n, heads * head_size].
    """
    count, kv_heads = q.shape[:2]
    out = np.empty(q.shape, dtype=np.float32)
    for begin in range(0, count, _CHUNK):
        end = min(count, begin + _CHUNK)
        stop = first + end
        start = 0 if window is None else max(0, first + begin + 1 - window)
        at = np.arange(first + begin, stop)[:, None]
        seen = np.arange(start, stop)
        hidden = seen > at
        if window is not None:
            hidden |= seen <= at - window
        for head in range(kv_heads):
            keys, values = cache.of_head(layer, head, start, stop)
            scores = np.matmul(q[begin:end, head].transpose(1, 0, 2), keys)
            scores[:, hidden] = -np.inf
            total = _softmax(scores)
            out[begin:end, head] = (np.matmul(scores, values) / total).transpose(1, 0, 2)
    return out.reshape(count, -1)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """scores [.., .., n] become exp(scores - largest) in place; returns their sums [.., .., 1], by which the
    result has still to be divided.
    """
    scores -= np.maximum.reduce(scores, axis=2, keepdims=True)
    np.exp(scores, out=scores)
    total: np.ndarray = np.add.reduce(scores, axis=2, keepdims=True)
    return total
