"""Which device torch computes on, and how its threads wait."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from tritpress.errors import UsageError


def choose_device(wanted: str) -> str:
    """cpu or cuda for auto, cpu or cuda. Raises `UsageError` when CUDA was asked for and is not there."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return "cpu"


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP threads sleep while they wait, unless the user said otherwise; before torch is imported.

    Spinning threads keep each other off the cores as soon as anything else runs on the machine: the same
    evaluation then took four to six times as long, and no less where the machine was idle.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
