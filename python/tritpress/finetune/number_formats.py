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
ROUNDS = 40
FASTER_BY = 1.25
"""bfloat16 must be this much faster to be worth its eight bits of precision."""


def measure_number_formats(device: torch.device | str = "cpu") -> dict[str, Any]:
    """{"gflops": {"float32": x, "bfloat16": y}, "muon": format, "autocast": format}, formats by name.

    `muon` is the format of the Newton-Schulz iteration, `autocast` that of forward and backward passes. The
    formats take turns on one thread, about a millisecond each, and the best turn of each counts: neighbours
    that take the processor away only ever slow a turn, and equal machines should choose alike.
    """
    device = torch.device(device)
    matrices = [
        torch.ones(SIZE, SIZE, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16)
    ]
    best = [float("inf")] * len(matrices)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(ROUNDS + 1):
            for i, a in enumerate(matrices):
                seconds = _product(a)
                if turn:  # the first ones set up
                    best[i] = min(best[i], seconds)
            if turn > 1 and max(best) > 10 * min(best):  # no turn will change that
                break
    finally:
        torch.set_num_threads(threads)
    float32, bfloat16 = (2.0 * SIZE**3 / seconds / 1e9 for seconds in best)
    fast = "bfloat16" if bfloat16 >= FASTER_BY * float32 else "float32"
    gflops = {"float32": round(float32, 1), "bfloat16": round(bfloat16, 1)}
    return {"gflops": gflops, "muon": fast, "autocast": fast}


def _product(a: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(a, a)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - started
