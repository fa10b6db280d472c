"""The server of the live page. Panel is imported only when a page is made or served."""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tritpress.errors import UsageError

if TYPE_CHECKING:
    from tritpress.dashboard.security import Guard
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

    from tritpress.dashboard import opening
    from tritpress.dashboard.appearance import wants_dark
    from tritpress.dashboard.security import page_rights
    from tritpress.dashboard.session import Session
    from tritpress.runs.directory import default_runs_dir

    pn.extension()
    if wants_dark():
        pn.config.theme = "dark"  # type: ignore[misc]
    folder = Path(runs_dir) if runs_dir is not None else Path(default_runs_dir())
    context = pn.state.curdoc.session_context if pn.state.curdoc is not None else None
    rights = page_rights(getattr(context, "request", None))
    made = Session(shared_store(folder.absolute()), rights.may_act, rights.why_not)
    ahead = opening.building.get()
    if ahead is not None:
        ahead.append(made)
    return made.attach(wait=ahead is not None)


def serve(
    runs_dir: str | Path,
    port: int,
    show: bool = False,
    address: str = "127.0.0.1",
    *,
    token: str | None = None,
    password: str | None = None,
    require_token: bool = True,
    hosts: Collection[str] = (),
    folders: Collection[str | Path] = (),
    webhook_hosts: Collection[str] = (),
    run: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve page and API at http://ADDRESS:PORT until interrupted.

    Nothing is answered without `token` (None makes one) or, where there is one, `password`; `require_token`
    False is for loopback alone. `hosts` are further names that the server is reached by, `folders` those in
    which models and texts may lie (`folders.choose`), `webhook_hosts` those that alerts may go to though they
    are in this machine's network. Once it stands, `announce` (default: print) gets the address to open, which
    carries the token.

    Raises `UsageError` when the port is taken, the address is not one of this machine, a folder is none, or
    others could reach the server without a token or password.
    """
    import gc
    import webbrowser

    from tritpress.dashboard import folders as allowed
    from tritpress.dashboard import security, webhooks

    guard = security.make_guard(
        address, port, token=token, password=password, require_token=require_token, hosts=hosts
    )
    chosen = allowed.choose(tuple(folders), Path(runs_dir).absolute(), guard.loopback)
    hooks = webhooks.choose(webhook_hosts)
    import panel as pn
    import panel_material_ui  # noqa: F401  (must stand before the server gathers its resources)

    from tritpress.dashboard import gate, opening
    from tritpress.dashboard.api import routes

    pn.extension()
    folder = Path(runs_dir).absolute()
    # The gate has looked at the origin, name and port, before Bokeh does: its own list is open, unwarned.
    logging.getLogger("bokeh.server.util").setLevel(logging.ERROR)
    try:
        server = pn.io.server.get_server(
            {"dashboard": lambda: create(folder)},
            port=port,
            address=address,
            title=TITLE,
            websocket_origin=["*"],
            extra_patterns=routes(folder, guard),
            exclude_headers=["Cookie", "Authorization"],  # Bokeh hands what it keeps to the page's scripts
            exclude_cookies=[guard.cookie],
            verbose=False,
            start=False,
        )
    except OSError as error:
        raise UsageError(
            f"cannot serve on {address}:{port}: {error.strerror or error}; choose another --port"
        ) from None
    gate.install(server._tornado, guard)
    opening.install(server, shared_store(folder))
    security.active, allowed.allowed, webhooks.allowed = guard, chosen, hooks
    url = page_url(address, port, guard, run)
    (announce or (lambda text: print(text, flush=True)))(url)
    if show:
        server.io_loop.add_callback(webbrowser.open, url)
    server.start()
    # What the libraries brought along stays for good: a collection need not go through it (0.17 s each time).
    gc.collect()
    gc.freeze()
    try:
        server.io_loop.start()
    finally:
        security.active, allowed.allowed, webhooks.allowed = None, None, frozenset()
        server.stop()


def page_url(address: str, port: int, guard: Guard, run: str | None = None) -> str:
    """The address to open: with the token, where that is the way in, and the run to open."""
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(address, address)
    host = f"[{host}]" if ":" in host else host
    query = {"run": run, "token": None if guard.password is not None else guard.token}
    given = {key: value for key, value in query.items() if value is not None}
    return f"http://{host}:{port}/dashboard" + (f"?{urlencode(given)}" if given else "")
