"""Which of the two models a run has written, by the files that its events name."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from tritpress.dashboard.views import figures as fig

WRITTEN = ("packed", "dequantized")
"""The two models, each in a folder of that name."""


def out_folder(state: dict[str, Any]) -> str:
    """The output folder as the run named it, here or on the machine that it is worked on; "" if unknown."""
    return str(state.get("out") or state.get("remote_out") or "")


def parts_below(path: str, out: str) -> tuple[str, ...]:
    """The parts of a file's path below the output folder; of one elsewhere those from its model on."""
    pure = PurePath(path)
    if not pure.is_absolute():
        return pure.parts
    if out and pure.is_relative_to(out):
        return pure.relative_to(out).parts
    parts = pure.parts[1:]
    return parts[max((at for at, part in enumerate(parts) if part in WRITTEN), default=0) :]


def model_of(path: str, out: str) -> str | None:
    """Which model that file belongs to."""
    return next((part for part in parts_below(path, out) if part in WRITTEN), None)


def written_bytes(state: dict[str, Any], key: str) -> int | None:
    """Bytes of the weight files of that model; None until they are written."""
    out = out_folder(state)
    sizes = [
        output["bytes"]
        for output in state["outputs"]
        if model_of(output.get("path", ""), out) == key
        and str(output["path"]).endswith(".safetensors")
        and fig.known(output.get("bytes"))
    ]
    return sum(sizes) if sizes else None


def models_written(state: dict[str, Any]) -> list[str]:
    """The models that the run has written, as far as it told."""
    out = out_folder(state)
    found = {model_of(str(output.get("path", "")), out) for output in state["outputs"]}
    return [key for key in WRITTEN if key in found]
