"""The HTTP and WebSocket interface, /api/v1 (docs/api.md), in the same server as the page.

`tritpress dashboard` has it. A bare `panel serve` has it with `--plugins tritpress.dashboard.api` (it serves
`ROUTES`) and TRITPRESS_TOKEN in the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritpress.dashboard.api.handlers import Commands, Events, Missing, Report, Run, Runs
from tritpress.dashboard.api.stream import Stream
from tritpress.dashboard.security import Guard
from tritpress.runs.directory import default_runs_dir

Route = tuple[str, type[Any], dict[str, Any]]

BASE = "/api/v1"


def routes(runs_dir: Path, guard: Guard | None) -> list[Route]:
    """The routes of the API on the runs in `runs_dir`."""
    shared: dict[str, Any] = {"runs_dir": runs_dir, "guard": guard}
    handlers: list[tuple[str, type[Any]]] = [
        (rf"{BASE}/runs", Runs),
        (rf"{BASE}/runs/([^/]+)", Run),
        (rf"{BASE}/runs/([^/]+)/events", Events),
        (rf"{BASE}/runs/([^/]+)/stream", Stream),
        (rf"{BASE}/runs/([^/]+)/commands", Commands),
        (rf"{BASE}/runs/([^/]+)/report", Report),
        (r"/api/.*", Missing),
    ]
    return [(pattern, handler, dict(shared)) for pattern, handler in handlers]


ROUTES = routes(default_runs_dir(), None)
"""For `panel serve --plugins tritpress.dashboard.api`."""
