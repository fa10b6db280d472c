"""Training checkpoints: one safetensors file each, its JSON state in the header, renamed into place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tritpress.errors import InputError, writing_safetensors

VERSION = "1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Write `tensors` and `state` (plain JSON values) under a temporary name, flush, rename.

    A reader sees the old checkpoint or the new one, whole, whenever the process is killed. Raises `OSError`
    where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with writing_safetensors(temporary):
        save_file(plain, temporary, metadata={"tritpress_checkpoint": VERSION, "state": json.dumps(state)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and state of a checkpoint; None where there is none; `InputError` if it cannot be read."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("tritpress_checkpoint") != VERSION:
                raise InputError(f"{path} is no training checkpoint of this version; remove it to start anew")
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, json.loads(metadata["state"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"the training checkpoint {path} cannot be read ({error}); remove it to start anew"
        ) from None


def remove_others(directory: Path, pattern: str, keep: set[str]) -> None:
    """Delete files of `directory` that match `pattern`, except those named in `keep`."""
    for path in directory.glob(pattern):
        if path.name not in keep:
            path.unlink(missing_ok=True)
