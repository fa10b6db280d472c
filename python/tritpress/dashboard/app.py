"""The server of the live page. Panel is imported only when a page is made or served."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritpress.dashboard.store import RunStore

TITLE = "tritpress"


def app_path() -> Path:
    """The file that `panel serve FILE` serves at /dashboard."""
    return Path(__file__).parent / "entry" / "dashboard.py"


@functools.cache
def shared_store(runs_dir: Path) -> RunStore:
    """The one store of this process for that folder of runs."""
    from tritpress.dashboard.store import RunStore

    return RunStore(runs_dir)


def create(runs_dir: str | Path | None = None) -> Any:
    """A new page on the runs in `runs_dir` (default: as the command line has it), for one session."""
    import panel as pn
    import panel_material_ui  # noqa: F401  (registers its design)

    from tritpress.dashboard.session import Session
    from tritpress.runs.directory import default_runs_dir

    pn.extension()
    folder = Path(runs_dir) if runs_dir is not None else Path(default_runs_dir())
    return Session(shared_store(folder.absolute())).attach()


def serve(runs_dir: str | Path, port: int, show: bool = False, address: str = "127.0.0.1") -> None:
    """Serve the page at http://ADDRESS:PORT/dashboard until interrupted.

    Raises `UsageError` when the port is taken or the address is not one of this machine.
    """
    import panel as pn
    import panel_material_ui  # noqa: F401  (must stand before the server gathers its resources)

    from tritpress.dashboard import session  # noqa: F401  (the first page need not wait for it)
    from tritpress.errors import UsageError

    pn.extension()
    folder = Path(runs_dir).absolute()
    hosts = {address, "localhost", "127.0.0.1"} if address in ("127.0.0.1", "localhost", "::1") else {address}
    try:
        pn.serve(
            {"dashboard": lambda: create(folder)},
            port=port,
            address=address,
            show=show,
            title=TITLE,
            websocket_origin=[f"{host}:{port}" for host in sorted(hosts)],
            verbose=False,
        )
    except OSError as error:
        raise UsageError(
            f"cannot serve on {address}:{port}: {error.strerror or error}; choose another --port"
        ) from None
