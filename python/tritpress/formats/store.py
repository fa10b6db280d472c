"""Finished tensors of a run, one file each, written atomically: what a resumed run need not do again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tritpress.errors import InputError
from tritpress.formats.header import FileLayout, lay_out
from tritpress.formats.output import claim, disk_errors, sync_folder
from tritpress.formats.source import TensorEntry, as_bytes, read_raw, tensor_entries


def safe_name(name: str) -> str:
    """A file name for a tensor, without its ending; different names have different ones, none leaves a
    folder.
    """
    safe = quote(name, safe="").replace(".", "%2E") if name.startswith(".") else quote(name, safe="")
    if len(safe) > 180:
        safe = safe[:100] + "~" + hashlib.sha256(name.encode("utf-8")).hexdigest()[:32]
    return safe


class TensorStore:
    """A folder of `<name>.safetensors` {codes, scales}, each with an `<name>.json` of what is known about it.

    codes: uint8 [planes, (experts,) out, ceil(in / 4)]; scales: float16 [planes, (experts,) out, groups].
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path_for(self, name: str) -> Path:
        """The file of a tensor (there or not); different names have different files, none outside the
        folder.
        """
        return self.folder / f"{safe_name(name)}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the tensor is finished."""
        return self.path_for(name).exists()

    def put(self, name: str, codes: np.ndarray, scales: np.ndarray, info: dict[str, Any]) -> None:
        """Store a finished tensor; after this call returns it survives a power cut."""
        if codes.dtype != np.uint8 or scales.dtype != np.float16 or codes.shape[:-1] != scales.shape[:-1]:
            raise ValueError(
                f"{name}: codes {codes.dtype} {codes.shape} and scales {scales.dtype} {scales.shape} do "
                "not fit"
            )
        temporary, layout = self._layout(name, codes.shape, scales.shape)
        with disk_errors(temporary), open(temporary, "wb") as file:
            file.write(layout.header)
            for array in (scales, codes):  # the order of the layout: two-byte values first
                file.write(as_bytes(array))
        self.commit(name, info)

    def prepare(
        self, name: str, codes_shape: tuple[int, ...], scales_shape: tuple[int, ...]
    ) -> tuple[Path, int, int]:
        """(temporary file, offset of the codes, offset of the scales) for a writer that fills them in place.

        The file has its full length and header; `commit` makes it final.
        """
        temporary, layout = self._layout(name, codes_shape, scales_shape)
        with disk_errors(temporary), open(temporary, "w+b") as file:
            file.write(layout.header)
            file.flush()  # where room is claimed block by block, what is there is read first
            claim(file.fileno(), layout.nbytes)
        start = len(layout.header)
        offsets = {slot.name: start + slot.offset for slot in layout.slots}
        return temporary, offsets["codes"], offsets["scales"]

    def commit(self, name: str, info: dict[str, Any]) -> None:
        """Flush a prepared tensor and give it its final name, after its description."""
        final = self.path_for(name)
        temporary = final.with_suffix(".tmp")
        description = final.with_suffix(".json")
        with disk_errors(final):
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            beside = description.with_suffix(".json.tmp")
            with open(beside, "w", encoding="utf-8") as file:
                json.dump({"name": name, "info": info}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, description)
            os.replace(temporary, final)
            sync_folder(self.folder)

    def _layout(
        self, name: str, codes_shape: tuple[int, ...], scales_shape: tuple[int, ...]
    ) -> tuple[Path, FileLayout]:
        layout = lay_out(
            [("codes", "U8", tuple(codes_shape)), ("scales", "F16", tuple(scales_shape))], {"name": name}
        )
        return self.path_for(name).with_suffix(".tmp"), layout

    def entries(self, name: str) -> tuple[TensorEntry, TensorEntry]:
        """Where the codes and the scales lie, to be read in pieces."""
        path = self.path_for(name)
        if not path.exists():
            raise InputError(f"{path} is missing: tensor {name} is not finished")
        found = tensor_entries(path)
        if (
            set(found) != {"codes", "scales"}
            or found["codes"].dtype != "U8"
            or found["scales"].dtype != "F16"
        ):
            raise InputError(
                f"{path} does not hold the codes and scales of {name}; remove it to press {name} again"
            )
        return found["codes"], found["scales"]

    def get(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(codes, scales) of a finished tensor."""
        codes, scales = self.entries(name)
        return read_raw(codes).reshape(codes.shape), read_raw(scales).reshape(scales.shape)

    def info(self, name: str) -> dict[str, Any]:
        """What `put` or `commit` was told about the tensor."""
        path = self.path_for(name).with_suffix(".json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))["info"]
        except (OSError, ValueError, KeyError):
            raise InputError(
                f"{path} is missing or broken; remove {self.path_for(name).name} to press again"
            ) from None

    def remove(self, name: str) -> None:
        """Forget a tensor."""
        for path in (self.path_for(name), self.path_for(name).with_suffix(".json")):
            path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Finished tensors, sorted."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            found.append(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["name"])
        return sorted(found)
