"""Whether training finds room for the original beside the student, and what is said when it finds none."""

from __future__ import annotations

import math
from typing import Literal

from tritpress.devices import free_memory
from tritpress.errors import InputError
from tritpress.steps.work import Work

STATE_BYTES = 21
"""A ternary weight in training: latent, gradient, two states of the optimizer, forward weight, one code."""
REST_BYTES = 12
"""Any other parameter beside its value: gradient and the optimizer's two states."""
ACTIVATION_BYTES = 400_000_000
"""A batch's activations and logits, roughly; logits are bounded (`evaluate.perplexity.LOGITS_PER_BATCH`)."""

Teacher = Literal["memory", "disk"]


def check_room(work: Work) -> None:
    """Refuse, before any work, a training that the memory free now has no room for: later there is less."""
    if work.read_json("teacher.json") is None:
        _place(work)


def place_of_teacher(work: Work) -> Teacher:
    """Where the targets of distillation come from: the original in memory, or its likeliest tokens on disk.

    Decided when training begins and kept for resumed runs, whose bits follow from it. Raises `InputError`
    when not even the training alone has room, or when the budget is one in minutes, whose windows cannot be
    foretold, and the original does not fit beside it.
    """
    kept = work.read_json("teacher.json")
    if kept is not None:
        return kept["place"]
    place, both, free = _place(work)
    if place == "disk":
        work.context.emit(
            "log",
            message=f"the original does not fit beside the model in training ({both / 1e9:.1f} GB more are "
            f"needed, {free / 1e9:.1f} GB are free): its likeliest tokens are kept on disk instead",
        )
    work.write_json("teacher.json", {"place": place})
    return place


def _place(work: Work) -> tuple[Teacher, int, float]:
    """(where the targets come from, bytes that student and original take, bytes free)."""
    weights = sum(math.prod(target.shape) for target in work.targets)
    rest = max(0, work.source.parameters - weights)
    training = STATE_BYTES * weights + REST_BYTES * rest + ACTIVATION_BYTES
    both, found = training + 4 * work.source.parameters, free_memory(work.device)
    free = math.inf if found is None else found
    if free < training:
        raise InputError(
            f"fine-tuning {work.source.path} takes about {training / 1e9:.1f} GB more memory, "
            f"{free / 1e9:.1f} GB are free: free some, or leave the training out with --no-finetune"
        )
    if free < both and work.config.minutes is not None:
        from tritpress.finetune.teacher import NOT_IN_MINUTES

        raise InputError(NOT_IN_MINUTES)
    return ("disk" if free < both else "memory"), both, free
