"""The options of fine-tuning, as `tritpress compress` takes them."""

from __future__ import annotations

from typing import Annotated

import typer

from tritpress.console import options as o

FineTuneOption = Annotated[
    bool | None,
    typer.Option(
        "--finetune/--no-finetune",
        help="Train after pressing, or never (default: with text, below 50 M parameters or on a GPU).",
        rich_help_panel=o.FINE_TUNING,
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", help="Passes over the text.", rich_help_panel=o.FINE_TUNING),
]
TokensOption = Annotated[
    int | None,
    typer.Option("--tokens", metavar="N", help="Tokens to train on.", rich_help_panel=o.FINE_TUNING),
]
MinutesOption = Annotated[
    float | None,
    typer.Option("--minutes", metavar="M", help="Minutes to train for.", rich_help_panel=o.FINE_TUNING),
]
OptimizerOption = Annotated[
    o.Optimizer | None,
    typer.Option(
        "--optimizer",
        metavar="NAME",
        help="adamw (default), muon or mugrokfast.",
        rich_help_panel=o.FINE_TUNING,
    ),
]
GrokfastLambdaOption = Annotated[
    float | None,
    typer.Option(
        "--grokfast-lambda",
        metavar="X",
        help="Weight of mugrokfast's EMA filter (default: 0.1).",
        rich_help_panel=o.FINE_TUNING,
    ),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        metavar="X",
        help="Peak rate, in widths of a code's cell (default: by budget).",
        rich_help_panel=o.FINE_TUNING,
    ),
]
WeightDecayOption = Annotated[
    float | None,
    typer.Option(
        "--weight-decay",
        metavar="X",
        help="Of the weights behind the codes, times their rate a step (default: 0).",
        rich_help_panel=o.FINE_TUNING,
    ),
]
ActivationBitsOption = Annotated[
    int | None,
    typer.Option(
        "--activation-bits",
        metavar="8",
        help="8: train with int8 activations (default: float).",
        rich_help_panel=o.FINE_TUNING,
    ),
]
