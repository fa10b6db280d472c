"""How a run is trained: the settings of `CompressionConfig` resolved into rates, batches and a budget."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tritpress.config import CompressionConfig

DEFAULT_TOKENS = 500_000
"""The budget when none was given."""
PULL_STEPS = 60
PULL_SHARE = 0.25
"""In how many steps the pull takes a latent back to the middle of its cell (to 1/e of the way): this many, or
this share of a longer training. A code flips where the gradients of so many steps agree; what is noise in
them never gets that far, however long the training is."""
WALK = 0.16
"""How far the noise of the gradients alone may carry a latent, in widths of its cell (root mean square; the
border is at 0.5). It fixes the rate: under AdamW, whose steps are the gradients over their own spread, the
walk is r * sqrt(n / 2) at the rate r where the pull takes n steps."""
LONG_WALK = 0.22
"""The same for one plane and a long training (`LONG_TOKENS`), which has the time to mend what flips too much:
better there by every measure, worse at a quarter of a million tokens (docs/quality.md)."""
MUON_SHARE = 0.8
"""Muon's steps at the same rate are smaller but go the same way for longer: its rate against AdamW's."""
SCALE_RATE = 6e-3
SCALE_RATE_PLANES = 2e-3
"""Peak rates of the scales where every tensor has one plane and where some have more: the noise of larger
steps costs more where the planes already fit well."""
REST_RATE = 4e-3
REST_RATE_PLANES = 2e-3
"""Peak rates of what is not ternary (embeddings, head, norms, biases), likewise; AdamW, relative to the size
of each tensor's values."""
LONG_TOKENS = 600_000
"""Long budgets: from here on a step takes 2,048 tokens rather than 1,024 (fewer steps, but more tokens a
second), and one plane the `LONG_WALK`."""
EVALUATIONS = 6


@dataclass(frozen=True)
class Recipe:
    """Every number that the training loop uses; plain values, written into each checkpoint.

    `budget_tokens` or `budget_seconds` is set, never both. `lr` is the peak rate of the latents in cells'
    widths (`MuGrokfast.units`), `scale_lr` that of the factors on the scales (AdamW, relative: 1e-3 moves a
    scale by about 0.1 % a step). `weight_decay` is that of the latents alone.
    """

    optimizer: Literal["mugrokfast", "muon", "adamw"]
    lr: float
    scale_lr: float
    rest_lr: float
    weight_decay: float
    pull: float
    grokfast_lambda: float
    grokfast_alpha: float
    batch_windows: int
    window: int
    budget_tokens: int | None
    budget_seconds: float | None
    warm_up: float
    final_rate: float
    clip: float
    ce_share: float
    evaluations: int
    validation_windows: int
    patience: int
    seed: int
    muon_format: str
    autocast: str

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_windows * self.window

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the budget; None when it is a time."""
        if self.budget_tokens is None:
            return None
        return max(1, math.ceil(self.budget_tokens / self.batch_tokens))

    def rate_factor(self, progress: float) -> float:
        """Linear warm-up over the first `warm_up` of the budget, then cosine down to `final_rate`.

        `progress` is the share of the budget spent when the step is done, above 0 and up to 1.
        """
        if progress < self.warm_up:
            return progress / self.warm_up
        past = min(1.0, (progress - self.warm_up) / (1.0 - self.warm_up))
        return self.final_rate + (1.0 - self.final_rate) * 0.5 * (1.0 + math.cos(math.pi * past))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a report."""
        return asdict(self)


def recipe_for(
    config: CompressionConfig,
    window: int,
    formats: dict[str, Any],
    epoch_tokens: int | None = None,
    planes: float = 1.0,
    **changes: Any,
) -> Recipe:
    """The recipe of `config` for training windows of `window` tokens.

    `formats` is what `measure_number_formats` found (or what `run.json` kept of it). `epoch_tokens`, the
    length of the text, is needed for a budget in epochs. `planes` is their mean number over the layers to
    train. `changes` replace any field: for experiments.
    """
    budget_tokens: int | None = None
    if config.epochs is not None:
        if epoch_tokens is None:
            raise ValueError("a budget in epochs needs the length of an epoch")
        budget_tokens = config.epochs * epoch_tokens
    elif config.minutes is None:
        budget_tokens = config.tokens or DEFAULT_TOKENS
    long = (budget_tokens or DEFAULT_TOKENS) >= LONG_TOKENS
    batch_tokens = 2048 if long else 1024
    steps = max(1, math.ceil((budget_tokens or DEFAULT_TOKENS) / batch_tokens))
    pull_steps = max(PULL_STEPS, PULL_SHARE * steps)
    walk = LONG_WALK if long and planes <= 1.0 else WALK
    rate = walk / math.sqrt(0.5 * pull_steps) * (1.0 if config.optimizer == "adamw" else MUON_SHARE)
    values: dict[str, Any] = {
        "optimizer": config.optimizer,
        "lr": config.learning_rate or rate,
        "scale_lr": SCALE_RATE if planes <= 1.0 else SCALE_RATE_PLANES,
        "rest_lr": REST_RATE if planes <= 1.0 else REST_RATE_PLANES,
        "weight_decay": config.weight_decay,
        "pull": 1.0 / pull_steps,
        "grokfast_lambda": config.grokfast_lambda if config.optimizer == "mugrokfast" else 0.0,
        "grokfast_alpha": 0.98,
        "batch_windows": max(1, batch_tokens // window),
        "window": window,
        "budget_tokens": budget_tokens,
        "budget_seconds": None if config.minutes is None else config.minutes * 60.0,
        "warm_up": 0.05,
        "final_rate": 0.05,
        "clip": 1.0,
        "ce_share": 0.1,
        "evaluations": EVALUATIONS,
        "validation_windows": _validation_windows(budget_tokens, window),
        "patience": 4,
        "seed": config.seed,
        "muon_format": formats["muon"],
        "autocast": formats["autocast"],
    }
    return Recipe(**(values | changes))


def _validation_windows(budget_tokens: int | None, window: int) -> int:
    """As many as keep all evaluations together near a tenth of the training time, but at least 8.

    An evaluated token costs about a quarter of a trained one (one forward pass against the student's three
    and the teacher's one).
    """
    trained = (budget_tokens or DEFAULT_TOKENS) / window
    return max(8, min(128, round(0.1 * 4.0 * trained / EVALUATIONS)))
