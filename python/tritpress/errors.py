"""The errors a user can meet; each message is a sentence that names what is wrong and what would be right."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path


class TritpressError(Exception):
    """Base of every error that tritpress raises on purpose. The command line exits with `exit_code`."""

    exit_code = 1


class InputError(TritpressError):
    """A file, tensor, model or text that cannot be used."""


class UsageError(TritpressError):
    """An option, or a combination of options, that makes no sense."""

    exit_code = 2


class StopRequested(TritpressError):
    """The run was stopped on request; what is finished stays on disk and the run can be resumed."""


@contextlib.contextmanager
def writing_safetensors(path: Path) -> Iterator[None]:
    """While safetensors writes `path`: what it says of a full disk and the like as the `OSError` that it is.

    Nothing half written is left at `path`.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        told = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if told is None:
            raise InputError(f"cannot write {path}: {error}") from error
        number = int(told[1] or told[2])
        raise OSError(number, os.strerror(number), str(path)) from error
