"""The order in which training sees its windows: the same on every call, so a resumed run goes on in it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tritpress.evaluate.perplexity import check_windows


class TrainingText(Protocol):
    """An endless sequence of training windows, the same on every call (`tritpress.text.TrainingWindows`)."""

    window: int

    def take(self, start: int, count: int) -> np.ndarray:
        """int64 [count, window]: windows start, start + 1, .."""
        ...

    def epoch_windows(self) -> int:
        """Windows of the first epoch."""
        ...

    def epoch_at(self, index: int) -> float:
        """Epochs that the windows before `index` are."""
        ...


class ShuffledWindows:
    """Windows [n, window] held in memory as a `TrainingText`: one seeded permutation an epoch."""

    def __init__(self, windows: np.ndarray, seed: int = 0) -> None:
        self._windows, self._seed = check_windows(windows), seed
        self.window = self._windows.shape[1]

    def take(self, start: int, count: int) -> np.ndarray:
        """int64 [count, window]: windows start, start + 1, .. of the sequence."""
        return self._windows[batch_indices(self._seed, start, count, len(self._windows))]

    def epoch_windows(self) -> int:
        """Windows of an epoch."""
        return len(self._windows)

    def epoch_at(self, index: int) -> float:
        """Epochs that the windows before `index` are."""
        return index / len(self._windows)


def batch_indices(seed: int, start: int, count: int, windows: int) -> np.ndarray:
    """Which of `windows` come at places start .. start + count - 1: a function of the arguments alone."""
    positions = np.arange(start, start + count)
    orders = {
        int(epoch): np.random.default_rng([seed, int(epoch)]).permutation(windows)
        for epoch in np.unique(positions // windows)
    }
    return np.array([orders[int(at // windows)][at % windows] for at in positions], dtype=np.int64)
