"""From logits to the next token."""

from __future__ import annotations

import numpy as np

_FIRST_LOOK = 1024
"""Likeliest tokens that are sorted first; the whole vocabulary only when they do not reach `top_p`."""


class Sampler:
    """Greedy at temperature 0, else drawn with a seed from the likeliest tokens that make up `top_p`."""

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        """logits float32 [vocabulary] -> token."""
        if self.temperature <= 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64)
        scaled -= scaled.max()
        with np.errstate(over="ignore"):
            scaled /= self.temperature
        weights = np.exp(scaled, out=scaled)
        if self.top_p >= 1:
            return self._draw(weights)
        likeliest = self._likeliest(weights)
        return int(likeliest[self._draw(weights[likeliest])])

    def _likeliest(self, weights: np.ndarray) -> np.ndarray:
        """The fewest tokens, likeliest first, whose share is at least `top_p`; never none."""
        total = float(weights.sum())
        looked = min(len(weights), _FIRST_LOOK)
        while True:
            chosen = np.argpartition(weights, len(weights) - looked)[len(weights) - looked :]
            chosen = chosen[np.argsort(-weights[chosen], kind="stable")]
            shares = np.cumsum(weights[chosen]) / total
            if shares[-1] >= self.top_p or looked == len(weights):
                count = int(np.searchsorted(shares, self.top_p)) + 1
                return chosen[: min(count, len(chosen))]
            looked = len(weights)

    def _draw(self, weights: np.ndarray) -> int:
        sums = np.cumsum(weights)
        at = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return min(at, len(weights) - 1)
