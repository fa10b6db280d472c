"""The program that the commands belong to."""

from __future__ import annotations

from typing import Annotated

import typer

from tritpress.console.parser import Program
from tritpress.console.runs_commands import runs_app
from tritpress.runs_report import report as _report  # noqa: F401  (adds `runs report`)

app = Program(
    name="tritpress",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Press language models into ternary weights, measure what it cost, run them on a plain CPU.",
    epilog="Exit codes: 0 done, nothing that was judged failed; 3 done, but a gate or a check of the handoff "
    "failed; 2 wrong usage; 1 error or interrupted. Gates that could not be judged (--no-eval, no text) are "
    "listed as such and do not count. Errors are one line on stderr; with --json, stdout then stays empty.",
)

app.add_typer(runs_app, name="runs")


def _version(wanted: bool) -> None:
    if wanted:
        import tritpress

        print(f"tritpress {tritpress.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""
