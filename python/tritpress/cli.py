"""The command line: `tritpress COMMAND`. Thin commands over the library; torch is imported by none here."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tritpress.console import attend
from tritpress.console import options as o
from tritpress.console.options import help_text
from tritpress.console.parser import Program
from tritpress.console.runs_commands import runs_app
from tritpress.console.shell import console, guarded, need, print_json
from tritpress.devices import wait_without_spinning
from tritpress.errors import UsageError
from tritpress.runs_report import report as _report  # noqa: F401  (adds `runs report`)

app = Program(
    name="tritpress",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Press language models into ternary weights, measure what it cost, run them on a plain CPU.",
    epilog="Exit codes: 0 done and every gate passes, 3 done but a gate failed, 2 wrong usage, 1 error or "
    "interrupted. Errors are one line on stderr; with --json, stdout then stays empty.",
)
DEMO_RATIO = 8.0
DEMO_TOKENS = 65_536
"""Fine-tuning budget of the demo: about a minute on two cores."""

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
        None,
        {
            "target_ratio": DEMO_RATIO,
            "tokens": DEMO_TOKENS,
            "seed": seed,
            "threads": threads,
            "overwrite": overwrite or None,
        },
    )
    return attend.compress(reference_model_path(), out, config, runs, json, name="reference model")


@app.command(
    help=help_text(
        "Compress a Hugging Face directory into OUT/packed and OUT/dequantized; measure what it cost.",
        "tritpress compress ./model -o ./out --text ./texts",
        "tritpress compress ./model -o ./out --ratio 8 --text ./texts --minutes 10",
        "tritpress compress ./model -o ./out --method fast --no-finetune --planes 2",
        "tritpress compress --resume 20261124-153012-9f3a",
    ),
    epilog="The gate on the ratio asks for 6x whatever --ratio says: --ratio 4 ends with exit code 3. An "
    "error is one line on stderr; with --json, stdout then stays empty.",
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
    press_again: Annotated[
        list[str] | None,
        typer.Option(
            "--press-again",
            metavar="TENSOR",
            help="With --resume: press this tensor anew, in a finished run too; may be given again.",
        ),
    ] = None,
    ratio: o.RatioOption = None,
    planes: o.PlanesOption = None,
    sparsity: o.SparsityOption = None,
    threshold: o.ThresholdOption = None,
    method: o.MethodOption = None,
    fit: o.FitOption = None,
    group_size: o.GroupSizeOption = None,
    text: o.TextOrSelfOption = None,
    text_field: o.TextFieldOption = None,
    tasks: o.TasksOption = None,
    task_limit: o.TaskLimitOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Press by this plan (JSON) in place of making one.",
            rich_help_panel=o.TARGET,
        ),
    ] = None,
    finetune: Annotated[
        bool | None,
        typer.Option(
            "--finetune/--no-finetune",
            help="Train after pressing, or never (default: where a text is and a gate asks).",
            rich_help_panel=o.FINE_TUNING,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", help="Passes over the text.", rich_help_panel=o.FINE_TUNING),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help="Tokens to train on.", rich_help_panel=o.FINE_TUNING),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="M", help="Minutes to train for.", rich_help_panel=o.FINE_TUNING),
    ] = None,
    optimizer: Annotated[
        o.Optimizer | None,
        typer.Option(
            "--optimizer",
            metavar="NAME",
            help="adamw (default), muon or mugrokfast.",
            rich_help_panel=o.FINE_TUNING,
        ),
    ] = None,
    grokfast_lambda: Annotated[
        float | None,
        typer.Option(
            "--grokfast-lambda",
            metavar="X",
            help="Weight of mugrokfast's EMA filter (default: 0.1).",
            rich_help_panel=o.FINE_TUNING,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="X",
            help="Peak rate, in widths of a code's cell (default: by budget).",
            rich_help_panel=o.FINE_TUNING,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            metavar="X",
            help="Of the weights behind the codes, times their rate a step (default: 0).",
            rich_help_panel=o.FINE_TUNING,
        ),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option(
            "--activation-bits",
            metavar="8",
            help="8: train with int8 activations (default: float).",
            rich_help_panel=o.FINE_TUNING,
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
        int | None,
        typer.Option(
            "--seed", metavar="N", help="Seed of every random choice (default: 0).", rich_help_panel=o.RUNNING
        ),
    ] = None,
    device: o.MaybeDeviceOption = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", help="Threads (default: as many as cores).", rich_help_panel=o.RUNNING
        ),
    ] = None,
    config: o.ConfigOption = None,
    alert: o.AlertOption = None,
    alert_webhook: o.AlertWebhookOption = None,
    alert_command: o.AlertCommandOption = None,
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
        "text_field": text_field,
        "tasks": o.task_names(tasks),
        "task_limit": task_limit,
        "plan": None if plan is None else str(plan),
        "finetune": finetune,
        "epochs": epochs,
        "tokens": tokens,
        "minutes": minutes,
        "optimizer": optimizer,
        "grokfast_lambda": grokfast_lambda,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "activation_bits": activation_bits,
        "outputs": o.outputs_value(packed_only, dequantized_only),
        "overwrite": overwrite or None,
        "evaluate": False if no_eval else None,
        "seed": seed,
        "device": device,
        "threads": threads,
        "alerts": alert,
        "alert_webhook": alert_webhook,
        "alert_command": alert_command,
    }
    if resume is not None:
        also = [
            key for key, value in {"MODEL": model, "-o": out, "--config": config, **given}.items() if value
        ]
        if also:
            raise UsageError(f"--resume takes up a run as it was begun: leave out {', '.join(also)}")
        return attend.resume(resume, runs, json, press_again or ())
    if press_again:
        raise UsageError("--press-again goes with --resume RUN: it presses tensors of that run anew")
    if model is None:
        raise UsageError("give the model to compress: tritpress compress MODEL -o OUT")
    if out is None:
        raise UsageError(f"give a folder for the results: tritpress compress {model} -o OUT")
    return attend.compress(model, out, o.build_config(config, given), runs, json)


@app.command(
    "plan",
    help=help_text(
        "What would be done to each tensor and what it is predicted to cost, before any of it is done.",
        "tritpress plan ./model --ratio 8",
        "tritpress plan ./model --ratio 8 --text ./texts --plan-out plan.json",
        "tritpress plan ./model --plan plan.json --text ./texts",
    ),
    epilog="Without text (or torch) the plan rests on the weights alone and foretells no perplexity; the "
    "built-in model has text of its own. A saved plan can be edited (planes, group_size, sparsity or "
    "threshold of a tensor, embeddings) and pressed by: tritpress compress MODEL -o OUT --plan FILE.",
)
@guarded
def plan_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Hugging Face directory with safetensors.")],
    ratio: o.RatioOption = None,
    planes: o.PlanesOption = None,
    sparsity: o.SparsityOption = None,
    threshold: o.ThresholdOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Look at this plan in place of making one: it is checked, its losses are predicted anew.",
            rich_help_panel=o.TARGET,
        ),
    ] = None,
    method: o.MethodOption = None,
    fit: o.FitOption = None,
    group_size: o.GroupSizeOption = None,
    text: o.TextOrSelfOption = None,
    text_field: o.TextFieldOption = None,
    plan_out: Annotated[
        Path | None, typer.Option("-o", "--plan-out", metavar="FILE", help="Write the plan there, as JSON.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --plan-out.")] = False,
    all_tensors: Annotated[bool, typer.Option("--all", help="Every tensor, however many.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the windows.")] = None,
    device: o.MaybeDeviceOption = None,
    threads: o.ThreadsOption = None,
    config: o.ConfigOption = None,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.console.plan import show

    given: dict[str, Any] = {
        "target_ratio": ratio,
        "planes": planes,
        "sparsity": o.sparsity_value(sparsity),
        "threshold": threshold,
        "method": method,
        "fit": fit,
        "group_size": group_size,
        "text": [str(path) for path in text] if text else None,
        "text_field": text_field,
        "plan": None if plan is None else str(plan),
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    return show(model, o.build_config(config, given), plan_out, overwrite, all_tensors, json)


@app.command(
    "eval",
    help=help_text(
        "Perplexity and top-1 of a Hugging Face directory, packed or not, on held-out text.",
        "tritpress eval ./out/packed --text ./texts",
        "tritpress eval ./model --text ./texts --tasks arc_easy,./my-task.yaml --json",
    ),
)
@guarded
def evaluate(
    path: o.ModelPathArgument,
    text: o.TextOption = None,
    text_field: o.TextFieldOption = None,
    tasks: o.TasksOption = None,
    task_limit: o.TaskLimitOption = None,
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
        text_field=text_field or "text",
        tasks=o.task_names(tasks),
        task_limit=task_limit,
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
    format: Annotated[
        o.MemoryFormat,
        typer.Option(help="How the kernels hold the codes: 1.6bit reads less, computes more; the same text."),
    ] = o.MemoryFormat.two,
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
        format=format.value,
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
            help="Token that page and API ask for. [dim](default: $TRITPRESS_TOKEN or a new one)[/dim]",
        ),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            "--password",
            envvar="TRITPRESS_PASSWORD",
            show_envvar=False,
            metavar="TEXT",
            help="Ask for this password in a form. [dim](or $TRITPRESS_PASSWORD)[/dim]",
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
            run=find_run(run, folder).id if run is not None else None,
            announce=announce,
        )
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
    torch: Annotated[
        bool, typer.Option("--torch/--no-torch", help="Products beside torch's, where it is installed.")
    ] = True,
    debug: o.DebugOption = False,
    json: o.JsonOption = False,
) -> int:
    from tritpress.bench import run

    found = run(name.value, threads=threads, torch=torch)
    if json:
        print_json(found)
    else:
        from tritpress.console.tables import print_bench

        print_bench(console(), name.value, found)
    return 0


if __name__ == "__main__":
    main()
