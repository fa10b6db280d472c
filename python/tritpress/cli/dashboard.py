"""`tritpress dashboard`: the live page."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from tritpress.cli.app import app
from tritpress.console import options as o
from tritpress.console.options import help_text
from tritpress.console.shell import guarded, need, print_json


@app.command(
    help=help_text(
        "Serve the live page on 127.0.0.1 until Ctrl-C.",
        "tritpress dashboard",
        "tritpress dashboard --runs ./runs --port 5010",
        "TRITPRESS_TOKEN=... tritpress dashboard --address 0.0.0.0",
        'panel serve "$(tritpress dashboard --path)" --address 127.0.0.1',
    )
)
@guarded
def dashboard(
    runs: o.RunsOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to serve on.")] = 5006,
    address: Annotated[
        str, typer.Option("--address", help="Address to serve on; others need --token or --password.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="TRITPRESS_TOKEN",
            show_envvar=False,
            metavar="TOKEN",
            help="Token (16 characters or more) that page and API ask for. "
            "[dim](default: $TRITPRESS_TOKEN or a new one)[/dim]",
        ),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            "--password",
            envvar="TRITPRESS_PASSWORD",
            show_envvar=False,
            metavar="TEXT",
            help="Ask for this password (8 characters or more). [dim](or $TRITPRESS_PASSWORD)[/dim]",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for nothing; on 127.0.0.1 alone.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="Further name of this server. Can be repeated."),
    ] = None,
    allow_folder: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-folder",
            metavar="DIR",
            help="Models and texts may lie below it and nowhere else. Can be repeated. "
            "[dim](default: anywhere on 127.0.0.1, else the working folder)[/dim]",
        ),
    ] = None,
    allow_webhook: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-webhook",
            metavar="HOST",
            help="Alerts of runs started here may go to it, though it is in this machine's network. Can be "
            "repeated. [dim](default: anywhere on 127.0.0.1 without --allow-host)[/dim]",
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Open the page on this run.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Open a browser.")] = False,
    path: Annotated[
        bool, typer.Option("--path", help="Print what `panel serve` can serve, and end.")
    ] = False,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.dashboard.app import app_path, serve
    from tritpress.runs.directory import default_runs_dir, find_run

    if path:
        print_json({"path": str(app_path())}) if json else print(app_path())
        return 0
    need("dashboard", "the dashboard", "panel", "panel_material_ui", "bokeh")
    folder = (runs or default_runs_dir()).absolute()

    def announce(url: str) -> None:
        if json:
            print_json({"url": url, "runs": str(folder)})
        else:
            print(f"The dashboard on the runs in {folder}:\n\n  {url}\n", flush=True)
            print("Ctrl-C ends it; runs go on.", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        serve(
            folder,
            port,
            show,
            address,
            token=token,
            password=password,
            require_token=not no_token,
            hosts=allow_host or (),
            folders=allow_folder or (),
            webhook_hosts=allow_webhook or (),
            run=find_run(run, folder).id if run is not None else None,
            announce=announce,
        )
    return 0
