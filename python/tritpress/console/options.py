"""Options that commands share, and how they become a `CompressionConfig`."""

from __future__ import annotations

from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritpress.errors import UsageError

if TYPE_CHECKING:
    from tritpress.config import CompressionConfig


def help_text(summary: str, *examples: str) -> str:
    """Help of a command: what it does, then examples, each on its own line."""
    return "\n".join([summary, "", "\b", "Examples:", *(f"  {example}" for example in examples)])


class Method(StrEnum):
    auto = "auto"
    fast = "fast"
    weighted = "weighted"
    gptq = "gptq"


class Fit(StrEnum):
    exact = "exact"
    twn = "twn"
    absmean = "absmean"
    bitnet = "bitnet"


class Optimizer(StrEnum):
    adamw = "adamw"
    muon = "muon"
    mugrokfast = "mugrokfast"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class MemoryFormat(StrEnum):
    two = "2bit"
    five_in_a_byte = "1.6bit"


class Bench(StrEnum):
    matvec = "matvec"
    matmul = "matmul"
    pack = "pack"
    generate = "generate"


JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunsOption = Annotated[
    Path | None,
    typer.Option(
        "--runs", metavar="DIR", help="Folder of runs. [dim](default: $TRITPRESS_RUNS or ./runs)[/dim]"
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or the beginning of one.")]
ModelPathArgument = Annotated[Path, typer.Argument(metavar="PATH", help="Model directory, packed or plain.")]
TextOption = Annotated[
    list[Path] | None,
    typer.Option("--text", metavar="PATH", help="File or folder of text; may be given again."),
]
TextOrSelfOption = Annotated[
    list[str] | None,  # as it was written: Path would make ./self, a folder, the word self
    typer.Option(
        "--text",
        metavar="PATH",
        help="File or folder of text (.txt, .md, .py, .jsonl, .parquet); may be given again. 'self': the "
        "model writes its own.",
    ),
]
TextFieldOption = Annotated[
    str | None,
    typer.Option(
        "--text-field",
        metavar="NAME",
        help="Field of .jsonl lines, column of .parquet files (default: text).",
    ),
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="NAMES",
        help="lm-eval tasks as measure of accuracy: names (commas between), task files (YAML), folders.",
    ),
]
TaskLimitOption = Annotated[
    int | None,
    typer.Option("--task-limit", metavar="N", help="Documents of each task at most (default: all)."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, metavar="N", help="Threads (default: as many as cores)."),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where torch computes.")]

TARGET = "What to reach"
TERNARIZATION = "Ternarization"
FINE_TUNING = "Fine-tuning"
OUTPUT = "Output"
RUNNING = "Running"
ALERTS = "Alerts"
RatioOption = Annotated[
    float | None,
    typer.Option(
        "--ratio",
        metavar="X",
        help="Times smaller than float32, whole file (default: 6 to 12, by the model's size).",
        rich_help_panel=TARGET,
    ),
]
PlanesOption = Annotated[
    int | None,
    typer.Option(
        "--planes",
        metavar="N",
        help="Planes of every tensor, 1 to 3 (default: planned, to reach the ratio); 1 is 1.58-bit.",
        rich_help_panel=TARGET,
    ),
]
SparsityOption = Annotated[
    str | None,
    typer.Option(
        "--sparsity",
        metavar="SHARE|free",
        help="Share of zeros (default: fitted, held at 44 % at most); free: no ceiling.",
        rich_help_panel=TARGET,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="X",
        help="Zero below this times the mean |w| of the group (default: fitted).",
        rich_help_panel=TARGET,
    ),
]
MethodOption = Annotated[
    Method | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="auto (default): gptq where there are text and torch, else fast; "
        "fast: no text, no torch; weighted: fast, inputs weighed by text; gptq: calibrated sweep.",
        rich_help_panel=TERNARIZATION,
    ),
]
FitOption = Annotated[
    Fit | None,
    typer.Option(
        "--fit",
        metavar="NAME",
        help="How a group is fitted: exact (default), twn or absmean; bitnet: one scale a tensor.",
        rich_help_panel=TERNARIZATION,
    ),
]
GroupSizeOption = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        metavar="N",
        help="Inputs that share a scale: 32, 64, 128, 256, or 0 for the row "
        "(default: planned; 64 with --planes).",
        rich_help_panel=TERNARIZATION,
    ),
]
MaybeDeviceOption = Annotated[
    Device | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where torch computes: auto (default), cpu or cuda.",
        rich_help_panel=RUNNING,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Options from a file; those given here win, but not over its plan.",
        rich_help_panel=RUNNING,
    ),
]
AlertOption = Annotated[
    list[str] | None,
    typer.Option(
        "--alert",
        metavar="RULE",
        help="Raise an alert; may be repeated: gate, nan, stalled:15, sparsity:0.3-0.4, 'metric:NAME>0.5', "
        "default (the four that watch unless rules are given: gate, nan, stalled:15, sparsity) or none.",
        rich_help_panel=ALERTS,
    ),
]
AlertWebhookOption = Annotated[
    str | None,
    typer.Option(
        "--alert-webhook",
        metavar="URL",
        help="Post every alert there, signed with $TRITPRESS_WEBHOOK_SECRET.",
        rich_help_panel=ALERTS,
    ),
]
AlertCommandOption = Annotated[
    str | None,
    typer.Option(
        "--alert-command",
        metavar="CMD",
        help="Start this for every alert, the alert as JSON on its stdin; no shell.",
        rich_help_panel=ALERTS,
    ),
]


def sparsity_value(text: str | None) -> float | str | None:
    """A share, or the word free. Raises `UsageError` for anything else."""
    if text is None or text == "free":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--sparsity takes a share such as 0.35, or the word free, not {text!r}") from None


def task_names(given: list[str] | None) -> list[str] | None:
    """Names from options that hold one or several with commas between; None where none was given."""
    if given is None:
        return None
    return [name.strip() for text in given for name in text.split(",")]


def outputs_value(packed_only: bool, dequantized_only: bool) -> str | None:
    """Which models to write. Raises `UsageError` when both are the only one."""
    if packed_only and dequantized_only:
        raise UsageError(
            "give --packed-only or --dequantized-only, not both (without either, both are written)"
        )
    return "packed" if packed_only else "dequantized" if dequantized_only else None


def option_name(field: str) -> str:
    """The option of the command line that sets that field of `CompressionConfig`."""
    special = {"target_ratio": "--ratio", "evaluate": "--no-eval", "outputs": "--packed-only"}
    special["alerts"] = "--alert"
    return special.get(field, f"--{field.replace('_', '-')}")


def option_given(field: str, value: Any) -> str:
    """The option that gave that field that value."""
    if field == "finetune":
        return "--finetune" if value else "--no-finetune"
    return f"--{value}-only" if field == "outputs" else option_name(field)


def build_config(file: Path | None, given: dict[str, Any]) -> CompressionConfig:
    """The configuration: the TOML file's values, then those options that were given."""
    from tritpress.config import load_config, make_config

    values = {
        key: value.value if isinstance(value, Enum) else value
        for key, value in given.items()
        if value is not None
    }
    if file is not None:
        return load_config(file, option_name, **values)
    return make_config(values, option_name)
