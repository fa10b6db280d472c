"""Which device torch computes on, and how its threads wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import MutableMapping
from pathlib import Path

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


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that a program can still take on the device, limits of its control group counted; None where the
    system does not tell.
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    free: int | None = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        left = int(limit) - int(used)  # no number ("max"): no limit
        free = left if free is None else min(free, left)
    return free


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP threads sleep while they wait, unless the user said otherwise; before torch is imported.

    Spinning threads keep each other off the cores as soon as anything else runs on the machine: the same
    evaluation then took four to six times as long, and no less where the machine was idle.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
