"""Which device torch computes on."""

from __future__ import annotations

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
