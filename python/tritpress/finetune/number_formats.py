"""Which number format this machine multiplies fast, measured once and then kept for the whole run.

A CPU without bfloat16 units runs torch's bfloat16 matrix product some 60 times slower than float32, one with
them up to three times faster; so nothing is assumed. The answer goes into `run.json`, and a resumed run uses
it again, because another choice would give other bits.
"""

from __future__ import annotations

import time
from typing import Any

import torch

SIZE = 384
FASTER_BY = 1.25
"""bfloat16 must be this much faster to be worth its eight bits of precision."""


def measure_number_formats(device: torch.device | str = "cpu", seconds: float = 0.05) -> dict[str, Any]:
    """{"gflops": {"float32": x, "bfloat16": y}, "muon": format, "autocast": format}, formats by name.

    `muon` is the format of the Newton-Schulz iteration, `autocast` that of forward and backward passes.
    """
    gflops = {
        str(dtype).removeprefix("torch."): round(_gflops(torch.device(device), dtype, seconds), 1)
        for dtype in (torch.float32, torch.bfloat16)
    }
    fast = "bfloat16" if gflops["bfloat16"] >= FASTER_BY * gflops["float32"] else "float32"
    return {"gflops": gflops, "muon": fast, "autocast": fast}


def _gflops(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Speed of a square matrix product: the best of its repetitions, since neighbours only ever slow it."""
    a = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
    best, began = float("inf"), time.perf_counter()
    torch.mm(a, a)
    while True:
        started = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        best = min(best, now - started)
        if now - began > seconds:
            return 2.0 * SIZE**3 / best / 1e9
