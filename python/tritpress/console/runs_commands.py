"""`tritpress runs`: list, show and steer runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
        "tritpress runs report 20261124 -o report.html",
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


@runs_app.command(
    help=help_text(
        "Alerts of a run and what of them waits in its outbox; --send delivers that now.",
        "tritpress runs alerts 20261124",
        "tritpress runs alerts 20261124 --send",
        "tritpress runs alerts 20261124 --json",
    )
)
@guarded
def alerts(
    run: o.RunArgument,
    send: Annotated[bool, typer.Option("--send", help="Deliver what waits in the outbox.")] = False,
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.runs.directory import find_run
    from tritpress.runs.history import run_state
    from tritpress.runs.outbox import Courier, Outbox

    directory = find_run(run, runs)
    sent = Courier(directory, directory.config).send(everything=True) if send else None
    waiting = Outbox(directory).entries()
    found = run_state(directory)["alerts"]
    if json:
        outbox = [{key: getattr(e, key) for key in ("id", "to", "t", "tries", "error")} for e in waiting]
        taken, failed = sent or (None, None)
        print_json(
            {"run": directory.id, "alerts": found, "outbox": outbox, "taken": taken, "failed": failed}
        )
    else:
        from tritpress.console.alerts import print_alerts

        print_alerts(console(), directory.id, found, waiting, sent)
    return 1 if sent is not None and sent[1] else 0


@runs_app.command(
    help=help_text(
        "Change a run's name, tags or note; --name '' gives back the name it was started with.",
        "tritpress runs edit 20261124 --name 'two planes' --tag best --tag paper",
        "tritpress runs edit 20261124 --note 'compare with the run before'",
        "tritpress runs edit 20261124 --no-tags",
    )
)
@guarded
def edit(
    run: o.RunArgument,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="New name.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TEXT", help="Tags in place of those it has; may be given again."),
    ] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all tags away.")] = False,
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="New note.")] = None,
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.errors import UsageError
    from tritpress.runs.directory import find_run
    from tritpress.runs.labels import edit_labels

    if tag and no_tags:
        raise UsageError("give --tag or --no-tags, not both")
    if name is None and not tag and not no_tags and note is None:
        raise UsageError("give what to change: --name, --tag, --no-tags or --note")
    directory = find_run(run, runs)
    labels = edit_labels(directory.path, name=name, tags=[] if no_tags else tag or None, note=note)
    if json:
        print_json(
            {"run": directory.id, "name": labels.name, "tags": list(labels.tags), "note": labels.note}
        )
    else:
        parts = [labels.name or directory.read_run().get("name") or directory.id]
        parts += [f"tags: {', '.join(labels.tags)}"] if labels.tags else []
        parts += [f"note: {labels.note}"] if labels.note else []
        print(f"{directory.id}: {' · '.join(parts)}")
    return 0


@runs_app.command(
    help=help_text(
        "Move a run to the trash (RUNS/.trash); `runs restore` brings it back.",
        "tritpress runs delete 20261124-153012-9f3a",
        "tritpress runs delete 20261124-153012-9f3a --yes",
    )
)
@guarded
def delete(
    run: o.RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.errors import UsageError
    from tritpress.runs.directory import find_run
    from tritpress.runs.history import summary
    from tritpress.runs.liveness import is_alive
    from tritpress.runs.trash import delete_run

    directory = find_run(run, runs)
    if not yes and not is_alive(directory):
        if json or not sys.stdin.isatty():
            raise UsageError(f"give --yes to move run {directory.id} to the trash without being asked")
        facts = summary(directory)
        if not typer.confirm(f"Move {facts['name']} ({directory.id}, {facts['status']}) to the trash?"):
            print("Nothing was moved.")
            return 0
    target = delete_run(directory)
    if json:
        print_json({"run": directory.id, "trash": str(target)})
    else:
        print(f"{directory.id} lies in {target} now; `tritpress runs restore {target.name}` brings it back.")
    return 0


@runs_app.command(
    help=help_text(
        "Bring a run back from the trash; without an id, list what lies there.",
        "tritpress runs restore",
        "tritpress runs restore 20261124-153012-9f3a",
    )
)
@guarded
def restore(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Id of a run in the trash, or its beginning.")
    ] = None,
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.runs.trash import list_trash, restore_run

    if run is not None:
        back = restore_run(run, runs)
        if json:
            print_json({"run": back.id, "path": str(back.path)})
        else:
            print(f"{back.id} is back in {back.path.parent}.")
        return 0
    found = list_trash(runs)
    if json:
        print_json({"runs": found})
    elif not found:
        print("The trash is empty.")
    else:
        from tritpress.console.tables import runs_table

        screen = console()
        screen.print(runs_table(found, screen.width))
    return 0


@runs_app.command(
    "diff",
    help=help_text(
        "Every pressed tensor of a run before and after, worst first.",
        "tritpress runs diff 20261124-153012-9f3a",
        "tritpress runs diff 20261124 --sort sign_flips --find down --limit 50",
        "tritpress runs diff 20261124 --json",
    ),
)
@guarded
def diff_command(
    run: o.RunArgument,
    sort: Annotated[
        str, typer.Option("--sort", metavar="FIGURE", help="error, cosine, sign_flips, zeros, bits, name ...")
    ] = "error",
    find: Annotated[str, typer.Option("--find", metavar="WORDS", help="Names that hold these words.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Tensors at most.")] = 20,
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    import dataclasses

    from tritpress.errors import UsageError
    from tritpress.runs.diff import SORTS, matching, ordered, tensor_diffs
    from tritpress.runs.directory import find_run
    from tritpress.runs.history import run_state

    if sort not in SORTS:
        raise UsageError(f"--sort takes {', '.join(SORTS)}, not {sort!r}")
    directory = find_run(run, runs)
    found = ordered(matching(tensor_diffs(run_state(directory)), find), sort)
    if json:
        shown = [dataclasses.asdict(diff) for diff in found[:limit]]
        print_json({"run": directory.id, "sort": sort, "total": len(found), "tensors": shown})
    elif not found:
        print("No tensor matches." if find else "No tensor of this run is pressed yet.")
    else:
        from tritpress.console.run_views import print_diff

        print_diff(console(), found[:limit], len(found), sort)
    return 0


@runs_app.command(
    "compare",
    help=help_text(
        "Two to six runs side by side: settings that differ, figures, gates.",
        "tritpress runs compare 20261124-153012-9f3a 20261124-160455-11bc",
        "tritpress runs compare 20261124-15 20261124-16 20261124-17 --json",
    ),
)
@guarded
def compare_command(
    chosen: Annotated[
        list[str], typer.Argument(metavar="RUN RUN [RUN]...", help="Ids of runs, or their beginnings.")
    ],
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.errors import UsageError
    from tritpress.runs.comparison import LEAST, MOST, Side, comparison
    from tritpress.runs.directory import find_run
    from tritpress.runs.history import run_state, summary

    found = {run.id: run for run in (find_run(text, runs) for text in chosen)}
    if not LEAST <= len(found) <= MOST:
        raise UsageError(f"give two to six different runs to compare (given: {len(found)})")
    sides = []
    for run in found.values():
        facts = summary(run)
        sides.append(Side(run.id, str(facts["name"] or run.id), str(facts["status"]), run_state(run)))
    if json:
        print_json(comparison(sides))
        return 0
    from tritpress.console.run_views import print_comparison

    print_comparison(console(), sides)
    return 0


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
