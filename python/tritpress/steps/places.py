"""Where a run writes its two models."""

from __future__ import annotations

from pathlib import Path

from tritpress.steps.work import Work


def packed_folder(work: Work) -> Path:
    """Where the packed model lies."""
    asked = work.config.outputs in ("both", "packed")
    return work.out / "packed" if asked else work.folder / "unasked" / "packed"


def dequantized_folder(work: Work) -> Path:
    """Where the dequantized model lies."""
    asked = work.config.outputs in ("both", "dequantized")
    return work.out / "dequantized" if asked else work.folder / "unasked" / "dequantized"
