"""What a run recorded of each pressed tensor, for whoever looks at it later. Base install only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tritpress.formats.details import details_path, read_details, write_details
from tritpress.ternarize.details import TensorDetails

__all__ = ["TensorDetails", "load_details", "load_many", "save_details", "stamp"]


def load_details(run_path: str | Path, name: str) -> TensorDetails | None:
    """The details of one tensor; None when the run has none of it (not pressed yet, or an older run)."""
    return read_details(run_path, name)


def load_many(run_path: str | Path, names: Iterable[str]) -> Iterator[tuple[str, TensorDetails]]:
    """(name, details) of those that are there."""
    for name in names:
        details = read_details(run_path, name)
        if details is not None:
            yield name, details


def stamp(run_path: str | Path, name: str) -> tuple[int, int] | None:
    """Changes whenever the details of the tensor are written anew; None while there are none."""
    try:
        found = details_path(run_path, name).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def save_details(run_path: str | Path, name: str, details: TensorDetails) -> None:
    """Keep the details of one tensor in the run's folder, at once or not at all."""
    write_details(run_path, name, details)
