"""How the user calls tritpress: the first word of every command line that a message names."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program(absolute: bool = False) -> str:
    """`tritpress` where the shell finds it, else the path it was called by, or `python -m tritpress`.

    Paths below the present folder are relative to it unless `absolute`.
    """
    called = Path(sys.argv[0] if sys.argv else "")
    if called.name == "__main__.py":
        return f"{short(Path(sys.executable), absolute)} -m tritpress"
    if called.name != "tritpress":  # used as a library, or by a worker
        beside = Path(sys.executable).with_name("tritpress")
        called = beside if beside.is_file() else Path("tritpress")
    found = shutil.which("tritpress")
    if not called.is_absolute() and not called.exists():
        return "tritpress"
    return "tritpress" if found and os.path.samefile(found, called) else short(called, absolute)


def short(path: Path, absolute: bool = False) -> str:
    """The path as a word of a shell: relative to the present folder where it lies below it."""
    path = path.absolute()
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if absolute or relative.startswith("..") else relative)
