"""Where models, texts and plans that a page or the API names may lie: below the folders allowed alone.

A server on loopback that was not told otherwise allows every folder: whoever holds its token could open them
without it too. One that others reach allows its working folder and the folder of runs, until it is told more;
so does a bare `panel serve` where people sign in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritpress.config import SELF_TEXT
from tritpress.errors import UsageError

allowed: tuple[Path, ...] | None = None
"""The folders of this process's server; None allows every one."""


def choose(given: Sequence[str | Path], runs_dir: Path, loopback: bool) -> tuple[Path, ...] | None:
    """The folders of a server: those `given`, else what suits its address; the folder of runs is always among
    them. Raises `UsageError` for one that is no folder.
    """
    for folder in given:
        if not Path(folder).is_dir():
            raise UsageError(f"--allow-folder {folder}: there is no such folder")
    if not given and loopback:
        return None
    return tuple(Path(folder).resolve() for folder in (*(given or (Path.cwd(),)), runs_dir))


def refusal(path: str | Path) -> str | None:
    """The sentence that refuses what lies at `path`, links followed; None where it may be opened."""
    from tritpress.reference import is_reference_model

    limits = _limits()
    if limits is None:
        return None
    try:
        full = Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a ring, a user that is not known, a NUL
        return f"{path} cannot be found: {error}"
    if any(full.is_relative_to(folder) for folder in limits) or is_reference_model(full):
        return None
    return f"{path} lies outside the folders that this server may open; --allow-folder adds one at its start"


def _limits() -> tuple[Path, ...] | None:
    """The folders that count now. A server that this package did not start has no address that is known here:
    its pages act over loopback, or for who has signed in.
    """
    from tritpress.dashboard import security
    from tritpress.runs.directory import default_runs_dir

    if allowed is not None or security.active is not None:
        return allowed
    panel = sys.modules.get("panel")
    if panel is None or not panel.config.cookie_secret:
        return None
    return choose((), Path(default_runs_dir()).absolute(), loopback=False)


def refused(model: str, config: Any) -> str | None:
    """The first refusal among a model and the texts and the plan of its configuration."""
    paths = [model, *(text for text in config.text if text != SELF_TEXT)]
    paths += [config.plan] if config.plan else []
    return next((why for why in map(refusal, paths) if why is not None), None)
