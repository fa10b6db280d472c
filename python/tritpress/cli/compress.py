"""`tritpress demo`, `compress` and `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tritpress.cli.app import app
from tritpress.console import attend
from tritpress.console import options as o
from tritpress.console import training_options as t
from tritpress.console.options import help_text
from tritpress.console.shell import guarded
from tritpress.errors import UsageError

DEMO_RATIO = 8.0
DEMO_TOKENS = 65_536
"""Fine-tuning budget of the demo: about a minute on two cores."""

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
    finetune: t.FineTuneOption = None,
    epochs: t.EpochsOption = None,
    tokens: t.TokensOption = None,
    minutes: t.MinutesOption = None,
    optimizer: t.OptimizerOption = None,
    grokfast_lambda: t.GrokfastLambdaOption = None,
    learning_rate: t.LearningRateOption = None,
    weight_decay: t.WeightDecayOption = None,
    activation_bits: t.ActivationBitsOption = None,
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
        "text": text or None,
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
        also = [word for word, value in {"MODEL": model, "-o": out, "--config": config}.items() if value]
        also += [o.option_given(key, value) for key, value in given.items() if value is not None]
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
        "text": text or None,
        "text_field": text_field,
        "plan": None if plan is None else str(plan),
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    return show(model, o.build_config(config, given), plan_out, overwrite, all_tensors, json)
