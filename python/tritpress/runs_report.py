"""`tritpress runs report`: a run as a file to hand on. Above the page's room, whose report it writes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from tritpress.console import options as o
from tritpress.console.options import help_text
from tritpress.console.runs_commands import runs_app
from tritpress.console.shell import guarded, print_json
from tritpress.errors import UsageError

STDOUT = Path("-")


@runs_app.command(
    help=help_text(
        "Write a run's report: one HTML file with its charts that opens anywhere, its report.json, or a zip "
        "of all charts (SVG) and tables (CSV). Works for runs at work and runs that broke off, too.",
        "tritpress runs report 20261124-153012-9f3a",
        "tritpress runs report 20261124 -o report.html --overwrite",
        "tritpress runs report 20261124 -o report.json",
        "tritpress runs report 20261124 -o - --format html > report.html",
    )
)
@guarded
def report(
    run: o.RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="File to write; - is stdout (default: RUN-report.html)."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="html, json or zip (default: by the file's ending)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.dashboard.report.facts import read_facts
    from tritpress.dashboard.report.save import kind_of, report_bytes, save
    from tritpress.runs.directory import find_run

    if out == STDOUT and json:
        raise UsageError("--json says where the report was written: give -o a file, not -")
    wanted = kind_of(out or Path("report.html"), kind if kind or out != STDOUT else "html")
    facts = read_facts(find_run(run, runs).path)
    path = out or Path(f"{facts.file_name}-report.{wanted}")
    content = report_bytes(facts, wanted)
    if out == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        return 0
    save(content, path, overwrite)
    if json:
        print_json(
            {
                "run": facts.id,
                "path": str(path.absolute()),
                "format": wanted,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    else:
        from tritpress.console.numbers import size

        print(f"{facts.id}: wrote {path} ({size(len(content))})")
    return 0
