"""A run from the command line: started or taken up again, followed with bars, reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritpress.console.shell import INTERRUPTED, complain, console, print_json

if TYPE_CHECKING:
    from tritpress.config import CompressionConfig
    from tritpress.events.snapshot import State
    from tritpress.runs.directory import RunDirectory


def compress(
    model: Path,
    out: Path | None,
    config: CompressionConfig,
    runs: Path | None,
    json: bool,
    name: str | None = None,
) -> int:
    """Start a run and attend it to its end."""
    from tritpress.events.snapshot import initial_state
    from tritpress.runs.launch import launch

    run = launch(model, out, config, runs, name=name)
    return _attend(run, initial_state(run.id), json)


def resume(run_id: str, runs: Path | None, json: bool, again: Sequence[str] = ()) -> int:
    """Take a run up again and attend it to its end; tensors in `again` are pressed anew."""
    from tritpress.events.reader import StateReader
    from tritpress.runs.again import press_again
    from tritpress.runs.directory import find_run
    from tritpress.runs.launch import resume as start_again

    run = find_run(run_id, runs)
    before = StateReader(run.path)
    before.poll()
    begun = press_again(run, again) if again else start_again(run)
    return _attend(begun, before.state, json)


def _attend(run: RunDirectory, state: State, json: bool) -> int:
    """Follow a run with progress bars, print its report, return the exit code. `state` is that before it."""
    from tritpress.api import wait
    from tritpress.invocation import resume_line
    from tritpress.report import exit_code
    from tritpress.runs.follow import worker_runs

    try:
        if json:
            report = wait(run, None, state["offset"])
            print_json(report)
        else:
            report = _wait_with_bars(run, state)
    except KeyboardInterrupt:
        done = "is stopping by itself" if worker_runs(run) else "is stopped"
        complain(f"run {run.id} {done}; go on with: {resume_line(run.path)}")
        return INTERRUPTED
    return exit_code(report)


def _wait_with_bars(run: RunDirectory, state: State) -> dict[str, Any]:
    from tritpress.api import wait
    from tritpress.console.progress import RunProgress
    from tritpress.console.report import print_report

    def stopping() -> None:
        screen.print("Stopping after the tensor or training step at hand (Ctrl-C again: do not wait).")

    screen = console()
    screen.print(f"[bold]tritpress[/bold]  run {run.id}")
    with RunProgress(screen, state) as progress:
        report = wait(run, progress.on_event, state["offset"], on_stop=stopping)
    print_report(screen, report, run.path)
    return report
