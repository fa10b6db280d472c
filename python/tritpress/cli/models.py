"""`tritpress eval`, `inspect`, `generate` and `bench`: what a model is, says and takes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tritpress.cli.app import app
from tritpress.console import options as o
from tritpress.console.options import help_text
from tritpress.console.shell import console, guarded, need, print_json
from tritpress.errors import UsageError


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
    if task_limit is not None and not tasks:
        raise UsageError("--task-limit is of tasks: give --tasks too, or leave it out")
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
        "Measure the kernels on this machine, beside the machine's own limits and torch.\n\n"
        "Each row of --json has op, rows, cols, n (tokens), threads, where (memory or cache), isa, format, "
        "group_size, us, gb_s, gop_s, floor_us, ratio_floor, torch_us and ratio_torch; null where one has no "
        "meaning. The floor is what the machine's limits leave, for pack a plain copy of as many bytes.",
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
