"""Time of one generated token: batch 1, with what is kept of earlier tokens, the way a user waits for it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tritpress.evaluate.perplexity import device_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one token, the tokens a second that makes, and how many tokens were timed."""

    latency_ms: float
    tokens_per_s: float
    tokens: int


CACHES = ("past_key_values", "cache_params")
"""What an output may keep of earlier tokens, by the name that the next call takes it by: keys and values of
attention, states of a state-space model."""

NO_CACHE = "the model gives back no cache that tritpress knows, so one token cannot be timed alone"


def kept(out: Any) -> dict[str, Any] | None:
    """What the call for the next token is given of this output; None where it has none of these."""
    found = ((name, getattr(out, name, None)) for name in CACHES)
    return next(({name: cache} for name, cache in found if cache is not None), None)


@torch.inference_mode()
def decode_latency(
    model: nn.Module, prompt: np.ndarray, *, tokens: int = 48, warm_up: int = 8, ctx: Any = None
) -> Latency | None:
    """Greedy decoding of `warm_up + tokens` tokens after `prompt` (int64 [T]); the median of the timed ones.

    The prompt is read once, untimed. A prompt too long for the model's positions is cut from the left. The
    end-of-text token is not obeyed: what is timed is the machine, not the text. None for a model that
    gives back none of `CACHES` (`NO_CACHE` is the reason to give).
    """
    device, training = device_of(model), model.training
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)
    tokens = max(1, min(tokens, limit - warm_up - 1))
    prompt = np.asarray(prompt, dtype=np.int64)[-max(1, limit - warm_up - tokens) :]
    model.eval()
    try:
        out = model(input_ids=torch.from_numpy(prompt.copy())[None].to(device), use_cache=True)
        if kept(out) is None:
            return None
        seconds = []
        for _ in range(warm_up + tokens):
            if ctx is not None:
                ctx.check()
            started = time.perf_counter()
            next_B1 = out.logits[:, -1].argmax(dim=-1, keepdim=True)
            out = model(input_ids=next_B1, use_cache=True, **(kept(out) or {}))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    finally:
        model.train(training)
    median = statistics.median(seconds[warm_up:])
    return Latency(latency_ms=median * 1e3, tokens_per_s=1.0 / median, tokens=tokens)
