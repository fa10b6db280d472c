"""`tritpress plan`: the plan made and shown, before anything is done to the model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritpress.console.numbers import DASH, figure, percent, planes, size, times
from tritpress.console.report import zeros_words
from tritpress.console.shell import console, print_json
from tritpress.console.tables import right, simple_table
from tritpress.errors import UsageError
from tritpress.events.context import NullContext
from tritpress.invocation import command_line

if TYPE_CHECKING:
    from tritpress.config import CompressionConfig

TENSORS_SHOWN = 80


def show(
    model: Path, config: CompressionConfig, out: Path | None, overwrite: bool, all_tensors: bool, json: bool
) -> int:
    """Make the plan, keep it in `out` where one is asked for, and print it."""
    from tritpress.runs.launch import check_inputs
    from tritpress.steps.foresee import foresee

    check_inputs(model, config)
    if out is not None:
        _check_place(out, model, overwrite)
    screen = Console(stderr=True)
    with _telling(screen, json) as context:
        found = foresee(model, config, context)
    told: dict[str, Any] = {**found.to_json(), "plan_file": None if out is None else str(out)}
    if out is not None:
        try:
            found.plan.save(out)
        except OSError as error:
            raise UsageError(f"cannot write the plan {out}: {error.strerror}") from None
    if json:
        print_json(told)
        return 0
    print_plan(console(), told, all_tensors)
    if out is not None:
        words = command_line("compress", model, "-o", "OUT", "--plan", out, *_text_words(config))
        console().print(Text(f"\nThe plan is in {out}: edit it, then run\n  {words}"), soft_wrap=True)
    return 0


def print_plan(console: Console, found: dict[str, Any], all_tensors: bool = False) -> None:
    """A line a tensor, then what all of it comes to."""
    rows = found["tensors"]
    shown = rows if all_tensors else rows[:TENSORS_SHOWN]
    console.print(_table(shown, found["basis"], console.width))
    if len(rows) > len(shown):
        console.print(f"{len(rows) - len(shown)} more tensors: --all shows them", style="dim")
    console.print()
    for line in summary(found):
        console.print(line)


def summary(found: dict[str, Any]) -> list[Text]:
    """Ratio, size and embeddings, and what the plan is predicted to cost."""
    target = found["target_ratio"]
    head = Text()
    head.append(f"{times(found['predicted_ratio'])} smaller", "bold green")
    head.append(f" than float32, {size(found['predicted_bytes'])}")
    head.append(f" (asked for {times(target)}, " if target else " (")
    head.append(f"{times(found['largest_ratio'])} at most)")
    kept = {"fp16": "float16", "int8": "int8 rows"}[found["embeddings"]]
    lines = [
        head,
        Text(
            f"{figure(found['bits_per_weight'], 3)} bits a weight in {len(found['tensors'])} tensors, "
            f"{planes(found['planes_mean'])}; embeddings and head that are not among them: {kept}"
        ),
    ]
    change = found["predicted_perplexity_change"]
    if change is not None:
        both = ""
        if found["perplexity"] is not None:
            both = f" from {figure(found['perplexity'])} to {figure(found['predicted_perplexity'])},"
        lines.append(
            Text(
                f"Predicted: perplexity{both} {percent(change, sign=True)} before any fine-tuning "
                f"({figure(found['predicted_loss'], 3)} nats a token; calibrated on {found['text']})"
            )
        )
    else:
        lines.append(
            Text(
                f"Predicted: weights wrong by {percent(found['predicted_loss'], 2)} of their squared size; "
                "perplexity cannot be foretold from the weights alone (--text gives it, with torch)"
            )
        )
    if found["zeros_ceiling"]:
        lines.append(Text(zeros_words(found["zeros_ceiling"])))
    return lines


def _table(rows: list[dict[str, Any]], basis: str, width: int) -> Table:
    loss = "loss, nats" if basis == "calibrated" else "error share"
    headings: list[Any] = ["tensor", *map(right, ("shape", "planes", "group", "bits", "size", loss))]
    if any(row["sparsity"] is not None or row["threshold"] is not None for row in rows):
        headings.append(right("zeros"))
    table = simple_table(*headings)
    table.columns[0].overflow = "fold"
    for row in rows:
        cells = [
            row["name"],
            " x ".join(map(str, row["shape"])),
            str(row["planes"]),
            str(row["group_size"]),
            figure(row["bits"], 3),
            size(row["bytes"]),
            DASH if row["predicted_loss"] is None else f"{row['predicted_loss']:.5f}",
        ]
        if len(headings) > 7:
            cells.append(_zeros(row))
        table.add_row(*cells)
    return table


def _zeros(row: dict[str, Any]) -> str:
    if row["sparsity"] is not None:
        return percent(row["sparsity"])
    return DASH if row["threshold"] is None else f"below {row['threshold']:g}"


def _text_words(config: CompressionConfig) -> list[str | Path]:
    words: list[str | Path] = []
    for text in config.text:
        words += ["--text", text if str(Path(text)) == "self" else Path(text)]
    return words


def _check_place(out: Path, model: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise UsageError(f"--plan-out {out} is a folder: name a file, such as {out / 'plan.json'}")
    if out.exists() and not overwrite:
        raise UsageError(f"there is a file at {out} already: name another with -o, or give --overwrite")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"cannot write the plan {out}: there is no folder {out.parent}")


@contextlib.contextmanager
def _telling(screen: Console, json: bool) -> Iterator[Any]:
    """A context that shows on stderr how far the calibration is, in a terminal alone."""
    if json or not sys.stderr.isatty():
        yield NullContext()
        return
    with screen.status("reading the model") as status:

        class Told(NullContext):
            def emit(self, type: str, /, **fields: Any) -> None:
                if type == "step.progress":
                    status.update(f"{fields.get('detail', '')}: {fields['done']} of {fields['total']}")

        yield Told()
