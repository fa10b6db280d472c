"""The files of `RUN/details/`: one numpy archive for each pressed tensor, nothing pickled."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.formats.output import disk_errors
from tritpress.formats.store import safe_name
from tritpress.ternarize.details import TensorDetails

FOLDER = "details"
_PLAIN = {"int": int, "float": float, "float | None": float}


def details_path(run_path: str | Path, name: str) -> Path:
    """Where the details of a tensor lie, whether they are there or not."""
    return Path(run_path) / FOLDER / f"{safe_name(name)}.npz"


def write_details(run_path: str | Path, name: str, details: TensorDetails) -> None:
    """Write under a temporary name, then rename: a reader sees the old details or the new ones."""
    path = details_path(run_path, name)
    values = {key: value for key, value in vars(details).items() if value is not None}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                np.savez(file, **values)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def read_details(run_path: str | Path, name: str) -> TensorDetails | None:
    """The details of a tensor; None when there are none, or the file is damaged or of another kind."""
    values: dict[str, Any] = {}
    try:
        with np.load(details_path(run_path, name), allow_pickle=False) as archive:
            for field in dataclasses.fields(TensorDetails):
                if field.name not in archive and str(field.type).endswith("| None"):
                    values[field.name] = None
                    continue
                value = archive[field.name]
                plain = _PLAIN.get(str(field.type))
                values[field.name] = plain(value) if plain else value
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return TensorDetails(**values)
