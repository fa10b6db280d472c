"""The command line: `tritpress COMMAND`. Thin commands over the library; torch is imported by none here."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritpress.console import options as o
from tritpress.console.options import help_text
from tritpress.console.shell import INTERRUPTED, complain, console, guarded, need, print_json
from tritpress.devices import wait_without_spinning
from tritpress.errors import TritpressError, UsageError

if TYPE_CHECKING:
    from tritpress.config import CompressionConfig
    from tritpress.events.snapshot import State
    from tritpress.runs.directory import RunDirectory

app = typer.Typer(
    name="tritpress",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Press language models into ternary weights, measure what it cost, run them on a plain CPU.",
    epilog="Exit codes: 0 done and every gate passes, 3 done but a gate failed, 2 wrong usage, 1 error.",
)
DEMO_TOKENS = 65_536
"""Fine-tuning budget of the demo: about a minute on two cores."""

runs_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="List, show and steer runs.")
app.add_typer(runs_app, name="runs")


def main() -> None:
    """Entry of the `tritpress` program."""
    wait_without_spinning()
    app()


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


@app.command(
    help=help_text(
        "Run the seven steps on the built-in reference model, offline, and print the report.",
        "tritpress demo",
        "tritpress demo -o /tmp/out --json",
    )
)
@guarded
def demo(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT", help="Output folder (default: runs/ID/out).")
    ] = None,
    runs: o.RunsOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every random choice.")] = None,
    threads: o.ThreadsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what lies in OUT.")] = False,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.reference import reference_model_path

    config = o.build_config(
        None, {"tokens": DEMO_TOKENS, "seed": seed, "threads": threads, "overwrite": overwrite or None}
    )
    return _compress(reference_model_path(), out, config, runs, json, name="reference model")


@app.command(
    help=help_text(
        "Compress a Hugging Face directory into OUT/packed and OUT/dequantized; measure what it cost.",
        "tritpress compress ./model -o ./out --text ./texts",
        "tritpress compress ./model -o ./out --ratio 8 --text notes.txt --tokens 1000000",
        "tritpress compress ./model -o ./out --method fast --no-finetune --planes 2",
        "tritpress compress --resume 20261124-153012-9f3a",
    ),
    epilog="The gate on the ratio asks for 6x whatever --ratio says: --ratio 4 ends with exit code 3.",
)
@guarded
def compress(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Hugging Face directory with safetensors.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="OUT", help="Folder to write.")] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped or killed."),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option("--ratio", help="Times smaller than float32, whole file.", rich_help_panel=o.TARGET),
    ] = None,
    planes: Annotated[
        int | None,
        typer.Option("--planes", help="Planes of every tensor; 1 is 1.58-bit.", rich_help_panel=o.TARGET),
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            "--sparsity",
            metavar="SHARE|free",
            help="Share of zeros; free: no ceiling.",
            rich_help_panel=o.TARGET,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", help="Zero below this times the mean |w| of the group.", rich_help_panel=o.TARGET
        ),
    ] = None,
    method: Annotated[
        o.Method | None,
        typer.Option(
            "--method", help="fast: no text, no torch; gptq: calibrated.", rich_help_panel=o.TERNARIZATION
        ),
    ] = None,
    fit: Annotated[
        o.Fit | None, typer.Option("--fit", help="How a group is fitted.", rich_help_panel=o.TERNARIZATION)
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            "--group-size", help="Inputs that share a scale; 0: the row.", rich_help_panel=o.TERNARIZATION
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="PATH", help="File or folder of text; may be given again."),
    ] = None,
    finetune: Annotated[
        bool | None,
        typer.Option(
            "--finetune/--no-finetune", help="Train after pressing, or never.", rich_help_panel=o.FINE_TUNING
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the text.", rich_help_panel=o.FINE_TUNING)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Tokens to train on.", rich_help_panel=o.FINE_TUNING)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Minutes to train for.", rich_help_panel=o.FINE_TUNING)
    ] = None,
    optimizer: Annotated[
        o.Optimizer | None, typer.Option("--optimizer", help="Optimizer.", rich_help_panel=o.FINE_TUNING)
    ] = None,
    grokfast_lambda: Annotated[
        float | None,
        typer.Option("--grokfast-lambda", help="Weight of the EMA filter.", rich_help_panel=o.FINE_TUNING),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option(
            "--activation-bits", help="8: train with int8 activations.", rich_help_panel=o.FINE_TUNING
        ),
    ] = None,
    packed_only: Annotated[
        bool, typer.Option("--packed-only", help="Write OUT/packed only.", rich_help_panel=o.OUTPUT)
    ] = False,
    dequantized_only: Annotated[
        bool,
        typer.Option("--dequantized-only", help="Write OUT/dequantized only.", rich_help_panel=o.OUTPUT),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what lies in OUT.", rich_help_panel=o.OUTPUT)
    ] = False,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Measure no quality.", rich_help_panel=o.RUNNING)
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of every random choice.", rich_help_panel=o.RUNNING)
    ] = None,
    device: Annotated[
        o.Device | None, typer.Option("--device", help="Where torch computes.", rich_help_panel=o.RUNNING)
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Threads.", rich_help_panel=o.RUNNING)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.toml",
            help="Options from a file; those given here win.",
            rich_help_panel=o.RUNNING,
        ),
    ] = None,
    runs: o.RunsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    given: dict[str, Any] = {
        "target_ratio": ratio,
        "planes": planes,
        "sparsity": o.sparsity_value(sparsity),
        "threshold": threshold,
        "method": method,
        "fit": fit,
        "group_size": group_size,
        "text": [str(path) for path in text] if text else None,
        "finetune": finetune,
        "epochs": epochs,
        "tokens": tokens,
        "minutes": minutes,
        "optimizer": optimizer,
        "grokfast_lambda": grokfast_lambda,
        "activation_bits": activation_bits,
        "outputs": o.outputs_value(packed_only, dequantized_only),
        "overwrite": overwrite or None,
        "evaluate": False if no_eval else None,
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    if resume is not None:
        also = [
            key for key, value in {"MODEL": model, "-o": out, "--config": config, **given}.items() if value
        ]
        if also:
            raise UsageError(f"--resume takes up a run as it was begun: leave out {', '.join(also)}")
        return _resume(resume, runs, json)
    if model is None:
        raise UsageError("give the model to compress: tritpress compress MODEL -o OUT")
    if out is None:
        raise UsageError(f"give a folder for the results: tritpress compress {model} -o OUT")
    return _compress(model, out, o.build_config(config, given), runs, json)


@app.command(
    "eval",
    help=help_text(
        "Perplexity and top-1 of a Hugging Face directory, packed or not, on held-out text.",
        "tritpress eval ./out/packed --text ./texts",
        "tritpress eval ./model --text ./texts --json",
    ),
)
@guarded
def evaluate(
    path: o.ModelPathArgument,
    text: o.TextOption = None,
    tokens: Annotated[int, typer.Option(min=256, help="Held-out tokens at most.")] = 32_768,
    window: Annotated[int, typer.Option(min=16, help="Tokens in one window.")] = 256,
    device: o.DeviceOption = o.Device.auto,
    threads: o.ThreadsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    need("hf", "evaluating a model", "torch", "transformers")
    from tritpress.evaluate.directory import evaluate_directory

    found = evaluate_directory(
        path,
        [str(each) for each in text or []],
        tokens=tokens,
        window=window,
        device=device.value,
        threads=threads,
    )
    if json:
        print_json(found)
    else:
        from tritpress.console.tables import print_evaluation

        print_evaluation(console(), found)
    return 0


@app.command(
    help=help_text(
        "Tensors, planes, sparsity and sizes of a model directory; verifies a packed one.",
        "tritpress inspect ./out/packed",
        "tritpress inspect ./model --json",
    )
)
@guarded
def inspect(
    path: o.ModelPathArgument,
    all_tensors: Annotated[bool, typer.Option("--all", help="Every tensor, however many.")] = False,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.inspect import inspect_path

    found = inspect_path(path)
    if json:
        print_json(found)
    else:
        from tritpress.console.tables import print_inspection

        print_inspection(console(), found, all_tensors)
    return 0


@app.command(
    help=help_text(
        "Continue a prompt with a packed or plain model.",
        'tritpress generate ./out/packed --prompt "def main("',
        'tritpress generate ./out/packed --prompt "import" --temperature 0.8 --seed 1',
    )
)
@guarded
def generate(
    path: o.ModelPathArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What the text begins with.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="New tokens at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Share of the probability to draw from.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    threads: o.ThreadsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.formats.packed_reader import is_packed
    from tritpress.generate import generate as run

    if not is_packed(path):  # a packed model needs neither
        need("hf", "generating text", "torch", "transformers")
    begun: list[str] = []

    def show(text: str) -> None:
        print((prompt if not begun else "") + text, end="", flush=True)
        begun.append(text)

    found = run(
        path,
        prompt,
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        threads=threads,
        on_text=None if json else show,
    )
    if json:
        print_json(found)
    else:
        print("" if begun else prompt)
        speed = f"{found['tokens']} tokens in {found['seconds']:.1f} s, {found['tokens_per_s']:.1f} tokens/s"
        print(speed, file=sys.stderr)
    return 0


@app.command(
    help=help_text(
        "Serve the live page on 127.0.0.1 until Ctrl-C.",
        "tritpress dashboard",
        "tritpress dashboard --runs ./runs --port 5010",
        'panel serve "$(tritpress dashboard --path)"',
    )
)
@guarded
def dashboard(
    runs: o.RunsOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5006,
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
    url = f"http://127.0.0.1:{port}/dashboard"
    if run is not None:
        url += f"?run={find_run(run, folder).id}"
    if json:
        print_json({"url": url, "runs": str(folder)})
    else:
        print(f"The dashboard on the runs in {folder}:\n\n  {url}\n\nCtrl-C ends it; runs go on.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve(folder, port, show)
    return 0


@app.command(
    help=help_text(
        "Measure the kernels on this machine, beside the machine's own limits and torch.",
        "tritpress bench matvec",
        "tritpress bench matmul --threads 2 --json",
    )
)
@guarded
def bench(
    name: Annotated[o.Bench, typer.Argument(help="What to measure.")],
    threads: o.ThreadsOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.bench import run

    found = run(name.value, threads=threads)
    if json:
        print_json(found)
    else:
        from tritpress.console.tables import print_bench

        print_bench(console(), name.value, found)
    return 0


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


def _compress(
    model: Path,
    out: Path | None,
    config: CompressionConfig,
    runs: Path | None,
    json: bool,
    name: str | None = None,
) -> int:
    from tritpress.events.snapshot import initial_state
    from tritpress.runs.launch import launch

    run = launch(model, out, config, runs, name=name)
    return _attend(run, initial_state(run.id), json)


def _resume(run_id: str, runs: Path | None, json: bool) -> int:
    from tritpress.events.reader import StateReader
    from tritpress.runs.directory import find_run
    from tritpress.runs.launch import resume

    run = find_run(run_id, runs)
    before = StateReader(run.path)
    before.poll()
    return _attend(resume(run), before.state, json)


def _attend(run: RunDirectory, state: State, json: bool) -> int:
    """Follow a run with progress bars, print its report, return the exit code. `state` is that before it."""
    from tritpress.api import wait
    from tritpress.invocation import resume_line
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
    return 3 if any(gate["passed"] is False for gate in report["gates"]) else 0


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


def _read_report(run: RunDirectory) -> dict[str, Any] | None:
    import json

    try:
        return json.loads(run.report_path.read_bytes())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    main()
