"""Perplexity, top-1, KL divergence and agreement of a causal language model over fixed windows of tokens."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from tritpress.errors import InputError
from tritpress.evaluate.bootstrap import mean_interval

if TYPE_CHECKING:
    from torch import Tensor, nn

LOGITS_PER_BATCH = 8 * 1024 * 1024
"""Logits held at once (32 MB in float32), whatever the vocabulary."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model over windows [n, window]; the targets are tokens 1..window-1 of each window.

    `nll_per_window` is the float64 sum of negative log-likelihoods (nats) of each window, `hits_per_window`
    the number of its targets that the model ranks first: what the bootstrap resamples. `kl` is the mean KL
    divergence from the reference in nats a token, `agreement` the share of positions with the reference's own
    top-1; both None without a reference. `tokens_per_s` is the speed of this evaluation, the reference's
    own passes not counted.
    """

    perplexity: float
    top1: float
    tokens: int
    nll_per_window: np.ndarray = field(repr=False)
    hits_per_window: np.ndarray = field(repr=False)
    kl: float | None
    agreement: float | None
    tokens_per_s: float

    def figures(self) -> dict[str, Any]:
        """The plain numbers, for an event or a report; the intervals are those of 95 % over windows."""
        per_window = self.tokens // max(1, len(self.nll_per_window))
        likelihood = mean_interval(self.nll_per_window, per_window)
        top1 = mean_interval(self.hits_per_window, per_window)
        return {
            "perplexity": self.perplexity,
            "perplexity_interval": None if likelihood is None else [_exp(end) for end in likelihood],
            "top1": self.top1,
            "top1_interval": None if top1 is None else list(top1),
            "tokens": self.tokens,
            "kl": self.kl,
            "agreement": self.agreement,
            "tokens_per_s": self.tokens_per_s,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values; `from_json` gives the same evaluation back."""
        return self.figures() | {
            "nll_per_window": [float(x) for x in self.nll_per_window],
            "hits_per_window": [int(x) for x in self.hits_per_window],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Evaluation:
        arrays = {
            "nll_per_window": np.asarray(values["nll_per_window"], dtype=np.float64),
            "hits_per_window": np.asarray(values["hits_per_window"], dtype=np.int64),
        }
        plain = {key: value for key, value in values.items() if not key.endswith("_interval")}
        return cls(**(plain | arrays))


def logits_of(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Logits [B, T, vocabulary] of a transformers model, or of any module that maps ids to logits."""
    out = model(input_ids=ids_BT, use_cache=False) if hasattr(model, "config") else model(ids_BT)
    return out.logits if hasattr(out, "logits") else out


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU for a module without either."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def check_windows(windows: np.ndarray) -> np.ndarray:
    """Windows as int64 [n, window]; raises `InputError` when they hold no target token."""
    windows = np.asarray(windows)
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise InputError(
            f"the text gives windows of shape {list(windows.shape)}: one window of two tokens is the least"
        )
    return windows.astype(np.int64, copy=False)


def batches_of(windows: np.ndarray, vocabulary: int, batch_size: int | None) -> list[np.ndarray]:
    """Windows in order, cut so that a batch's logits fit `LOGITS_PER_BATCH`."""
    size = batch_size or max(1, min(16, LOGITS_PER_BATCH // max(1, windows.shape[1] * vocabulary)))
    return [windows[i : i + size] for i in range(0, len(windows), size)]


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    windows: np.ndarray,
    *,
    reference: nn.Module | None = None,
    batch_size: int | None = None,
    ctx: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate `model` over int64 windows [n, window], each window on its own (no context before it).

    Log-probabilities are taken in float32 and summed in float64. With `reference` (the original model, same
    vocabulary) KL(reference || model) and the agreement of the two top-1 are measured at the same positions.
    `ctx.check()` is called before each batch, `progress(done, total)` (windows) after it. The model's
    training flag is left as it was found.
    """
    windows = check_windows(windows)
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 0) or 32_768)
    device, modes = device_of(model), [(m, m.training) for m in (model, reference) if m is not None]
    nll, hits = np.zeros(len(windows)), np.zeros(len(windows), dtype=np.int64)
    kl_sum, agreed, done, seconds = 0.0, 0, 0, 0.0
    try:
        for module, _ in modes:
            module.eval()
        for batch in batches_of(windows, vocabulary, batch_size):
            if ctx is not None:
                ctx.check()
            ids_BT = torch.from_numpy(np.ascontiguousarray(batch)).to(device)
            started = time.perf_counter()
            logp_BTV = F.log_softmax(logits_of(model, ids_BT)[:, :-1].float(), dim=-1)
            target_BT = ids_BT[:, 1:]
            nll_BT = -logp_BTV.gather(-1, target_BT.unsqueeze(-1)).squeeze(-1)
            best_BT = logp_BTV.argmax(dim=-1)
            rows = slice(done, done + len(batch))
            nll[rows] = nll_BT.double().sum(dim=1).cpu().numpy()
            hits[rows] = (best_BT == target_BT).sum(dim=1).cpu().numpy()
            seconds += time.perf_counter() - started
            if reference is not None:
                ref_BTV = F.log_softmax(logits_of(reference, ids_BT)[:, :-1].float(), dim=-1)
                kl_sum += float(((ref_BTV - logp_BTV) * ref_BTV.exp()).sum(dim=-1).double().sum())
                agreed += int((ref_BTV.argmax(dim=-1) == best_BT).sum())
            done += len(batch)
            if progress is not None:
                progress(done, len(windows))
    finally:
        for module, training in modes:
            module.train(training)
    tokens = len(windows) * (windows.shape[1] - 1)
    return Evaluation(
        perplexity=_exp(float(nll.sum()) / tokens),
        top1=float(hits.sum()) / tokens,
        tokens=tokens,
        nll_per_window=nll,
        hits_per_window=hits,
        kl=kl_sum / tokens if reference is not None else None,
        agreement=agreed / tokens if reference is not None else None,
        tokens_per_s=tokens / seconds,
    )


def _exp(mean_nll: float) -> float:
    """Perplexity; infinite where exp would overflow or the model gave no probability."""
    if math.isnan(mean_nll):
        return math.inf
    return math.exp(mean_nll) if mean_nll < 700 else math.inf
