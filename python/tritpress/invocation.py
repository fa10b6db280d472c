"""How the user can call tritpress again: for the command lines that messages name."""

from __future__ import annotations

import shlex
from pathlib import Path

from tritpress.program import program, short

__all__ = ["command_line", "program", "resume_line", "runs_option"]


def command_line(*words: str | Path) -> str:
    """`program()` with those words, quoted for a shell; paths below the present folder relative to it."""
    return " ".join([program(), *(short(w) if isinstance(w, Path) else shlex.quote(w) for w in words)])


def resume_line(run_path: Path) -> str:
    """The command that takes that run up again."""
    return command_line("compress", "--resume", run_path.name, *runs_option(run_path.parent))


def runs_option(runs_dir: Path) -> list[str | Path]:
    """`--runs DIR`, or nothing where DIR is the one taken without it."""
    from tritpress.runs.directory import default_runs_dir

    return [] if runs_dir == default_runs_dir() else ["--runs", runs_dir]
