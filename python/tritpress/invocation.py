"""How the user can call tritpress again: for the command lines that messages name."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`tritpress` where the shell finds it, else the path it was called by, or `python -m tritpress`."""
    called = Path(sys.argv[0] if sys.argv else "")
    if called.name == "__main__.py":
        return f"{_short(Path(sys.executable))} -m tritpress"
    if called.name != "tritpress":  # used as a library
        beside = Path(sys.executable).with_name("tritpress")
        called = beside if beside.is_file() else Path("tritpress")
    found = shutil.which("tritpress")
    if not called.is_absolute() and not called.exists():
        return "tritpress"
    return "tritpress" if found and os.path.samefile(found, called) else _short(called)


def command_line(*words: str | Path) -> str:
    """`program()` with those words, quoted for a shell; paths below the present folder relative to it."""
    return " ".join([program(), *(_short(w) if isinstance(w, Path) else shlex.quote(w) for w in words)])


def resume_line(run_path: Path) -> str:
    """The command that takes that run up again."""
    return command_line("compress", "--resume", run_path.name, *runs_option(run_path.parent))


def runs_option(runs_dir: Path) -> list[str | Path]:
    """`--runs DIR`, or nothing where DIR is the one taken without it."""
    from tritpress.runs.directory import default_runs_dir

    return [] if runs_dir == default_runs_dir() else ["--runs", runs_dir]


def _short(path: Path) -> str:
    path = path.absolute()
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
