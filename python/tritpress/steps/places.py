"""Where a run writes its two models."""

from __future__ import annotations

import shutil
from pathlib import Path

from tritpress.steps.work import Work


def packed_folder(work: Work) -> Path:
    """Where the packed model lies."""
    asked = work.config.outputs in ("both", "packed")
    return work.out / "packed" if asked else _unasked(work) / "packed"


def dequantized_folder(work: Work) -> Path:
    """Where the dequantized model lies."""
    asked = work.config.outputs in ("both", "dequantized")
    return work.out / "dequantized" if asked else _unasked(work) / "dequantized"


def both_lie_there(work: Work) -> bool:
    """Whether both models are where step 6 put them."""
    return all((folder(work) / "config.json").is_file() for folder in (packed_folder, dequantized_folder))


def drop_unasked(work: Work) -> None:
    """Remove the model that was not asked for: after step 7 nothing reads it. Where it is needed after all (a
    tensor is pressed again) step 6 is done again."""
    shutil.rmtree(_unasked(work), ignore_errors=True)


def _unasked(work: Work) -> Path:
    return work.folder / "unasked"
