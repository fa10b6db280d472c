"""How sure a figure is: percentile bootstrap over windows of text (Efron 1979), paired and seeded."""

from __future__ import annotations

import numpy as np

SAMPLES = 4000


def perplexity_interval(
    nll_original: np.ndarray,
    nll_compressed: np.ndarray,
    tokens_per_window: int,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of the perplexity change, ppl_compressed / ppl_original - 1.

    Both arrays hold the summed negative log-likelihood (nats) of the same windows in the same order, each of
    `tokens_per_window` targets. Whole windows are drawn with replacement, both models' together, so that how
    hard a window is cancels out. None when there are fewer than two windows or a figure is not finite.
    """
    difference = (np.asarray(nll_compressed, float) - np.asarray(nll_original, float)) / tokens_per_window
    if len(difference) < 2 or not np.isfinite(difference).all():
        return None
    means = difference[_draws(len(difference), seed)].mean(axis=1)
    with np.errstate(over="ignore"):
        return _percentiles(np.expm1(means), level)


def ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of sum(numerators) / sum(denominators) over windows: that of the accuracy kept, say."""
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if len(top) < 2:
        return None
    draws = _draws(len(top), seed)
    sums = bottom[draws].sum(axis=1)
    if (sums <= 0).any():
        return None
    return _percentiles(top[draws].sum(axis=1) / sums, level)


def mean_interval(
    sums: np.ndarray, targets_per_window: int, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of the mean over targets of what is summed by window: log-likelihoods, say, or hits. None when
    there are fewer than two windows or a sum is not finite.
    """
    means = np.asarray(sums, float) / targets_per_window
    if len(means) < 2 or not np.isfinite(means).all():
        return None
    return _percentiles(means[_draws(len(means), seed)].mean(axis=1), level)


def _draws(windows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, windows, size=(SAMPLES, windows))


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float] | None:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None
