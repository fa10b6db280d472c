"""`tritpress runs`: list, show and steer runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritpress.console import options as o
from tritpress.console.options import help_text
from tritpress.console.parser import Program
from tritpress.console.shell import console, guarded, print_json
from tritpress.errors import TritpressError

if TYPE_CHECKING:
    from tritpress.runs.directory import RunDirectory

runs_app = Program(
    help=help_text(
        "List, show and steer runs.",
        "tritpress runs list",
        "tritpress runs show 20261124-153012-9f3a",
        "tritpress runs pause 20261124",
        "tritpress runs list --runs /data/runs --json",
    )
)


@runs_app.command(
    "list", help=help_text("All runs, newest first.", "tritpress runs list", "tritpress runs list --json")
)
@guarded
def list_command(runs: o.RunsOption = None, debug: o.DebugOption = False, json: o.JsonOption = False) -> int:
    from tritpress.runs.directory import default_runs_dir
    from tritpress.runs.history import list_runs

    folder = (runs or default_runs_dir()).absolute()
    found = list_runs(folder)
    if json:
        print_json({"folder": str(folder), "runs": found})
    elif not found:
        print(f"No runs in {folder}.")
    else:
        from tritpress.console.tables import runs_table

        screen = console()
        screen.print(runs_table(found, screen.width))
    return 0


@runs_app.command(
    "show",
    help=help_text(
        "One run: where it stands, or the report of a finished one.",
        "tritpress runs show 20261124-153012-9f3a",
        "tritpress runs show 20261124 --json",
    ),
)
@guarded
def show_command(
    run: o.RunArgument, runs: o.RunsOption = None, debug: o.DebugOption = False, json: o.JsonOption = False
) -> int:
    from tritpress.runs.directory import find_run
    from tritpress.runs.history import run_state, summary

    directory = find_run(run, runs)
    facts, state = summary(directory), run_state(directory)
    if json:
        print_json({**facts, "state": state})
        return 0
    from tritpress.console.report import print_report
    from tritpress.console.tables import print_run

    screen = console()
    print_run(screen, facts, state, directory.path)
    report = _read_report(directory)
    if facts["status"] == "finished" and report is not None:
        print_report(screen, report, directory.path)
    return 0


@runs_app.command(
    help=help_text("Pause a run after the tensor or training step at hand.", "tritpress runs pause 20261124")
)
@guarded
def pause(
    run: o.RunArgument, runs: o.RunsOption = None, debug: o.DebugOption = False, json: o.JsonOption = False
) -> int:
    return _command(run, runs, "pause", json)


@runs_app.command(help=help_text("Let a paused run go on.", "tritpress runs resume 20261124"))
@guarded
def resume(
    run: o.RunArgument, runs: o.RunsOption = None, debug: o.DebugOption = False, json: o.JsonOption = False
) -> int:
    return _command(run, runs, "resume", json)


@runs_app.command(
    help=help_text("Stop a run; `tritpress compress --resume` takes it up.", "tritpress runs stop 20261124")
)
@guarded
def stop(
    run: o.RunArgument, runs: o.RunsOption = None, debug: o.DebugOption = False, json: o.JsonOption = False
) -> int:
    return _command(run, runs, "stop", json)


def _command(run_id: str, runs: Path | None, command: str, json: bool) -> int:
    """Send a command to a run and wait for the answer."""
    from tritpress.invocation import resume_line
    from tritpress.runs.commands import send, wait_ack
    from tritpress.runs.directory import find_run

    run = find_run(run_id, runs)
    try:
        answer = wait_ack(run, send(run, command))
    except TritpressError as error:
        if command == "resume" and run.read_run().get("status") != "finished":
            raise TritpressError(f"{error}; `{resume_line(run.path)}` starts it again") from None
        raise
    if answer is None:
        raise TritpressError(f"run {run.id} has not answered within 5 s: it may be in one long operation")
    if json:
        print_json({"run": run.id, "command": command, "ok": answer["ok"], "detail": answer["detail"]})
    else:
        print(f"{run.id}: {answer['detail']}")
    return 0 if answer["ok"] else 1


def _read_report(run: RunDirectory) -> dict[str, Any] | None:
    import json

    try:
        return json.loads(run.report_path.read_bytes())
    except (OSError, ValueError):
        return None
