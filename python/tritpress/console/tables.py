"""Tables for runs, files and measurements."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tritpress.console.numbers import DASH, count, duration, figure, moment, percent, planes, size, times
from tritpress.console.progress import fitting, render
from tritpress.invocation import resume_line

STATUS_STYLES = {
    "finished": "green",
    "running": "cyan",
    "created": "cyan",
    "paused": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "died": "red",
}
TENSORS_SHOWN = 40
GAP = 2
"""Characters between two columns of `simple_table`."""

Column = str | tuple[str, dict[str, Any]]
"""A heading, or a heading with rich's options for the column."""


def simple_table(*columns: Column, title: str | None = None) -> Table:
    """A table in the house's style; a column is its heading or (heading, options)."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=title)
    table.title_justify, table.title_style = "left", "bold"
    for column in columns:
        heading, options = (column, {}) if isinstance(column, str) else column
        table.add_column(heading, **options)
    return table


def right(heading: str) -> tuple[str, dict[str, Any]]:
    return heading, {"justify": "right", "no_wrap": True}


def runs_table(runs: list[dict[str, Any]], width: int) -> Table:
    """One line a run, newest first; a ratio never without bits a weight and planes beside it.

    Columns with nothing in any row are left out, and the model's name gets what room there is.
    """
    headings = ["run", "model", "status", "ratio", "bits", "planes", "ppl", "gates"]
    rows = [_run_cells(run) for run in runs]
    if width >= 100:
        headings.append("time")
    columns = [i for i, heading in enumerate(headings) if i < 3 or any(row[i] != DASH for row in rows)]
    taken = sum(max(len(headings[i]), *(len(row[i]) for row in rows)) + GAP for i in columns if i != 1)
    room = max(8, width - taken - 1)
    table = simple_table()
    for i in columns:
        table.add_column(headings[i], justify="left" if i < 3 else "right", no_wrap=i != 1)
    for run, row in zip(runs, rows, strict=True):
        row[1] = _in_lines(row[1], room)
        styles = {2: STATUS_STYLES.get(run["status"], "")}
        table.add_row(*(Text(row[i], styles.get(i, "")) for i in columns))
    return table


def _in_lines(name: str, width: int) -> str:
    """`name` in lines of at most `width` characters, broken after its blanks, hyphens and the like."""
    lines = [""]
    for part in re.split(r"(?<=[\s_./-])", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += fitting(part, width) if len(part.rstrip()) > width else part
    return "\n".join(line.rstrip() for line in lines)


def _run_cells(run: dict[str, Any]) -> list[str]:
    at_work = run["step"] and run["status"] in ("running", "paused")
    gates = list(run["gates"].values())
    return [
        run["id"],
        str(run["name"] or ""),
        f"{run['status']} {run['step']}/7" if at_work else run["status"],
        times(run["ratio_file"]),
        figure(run["bits_per_weight"], 3),
        DASH if run["planes_mean"] is None else f"{run['planes_mean']:.3g}",
        percent(run["perplexity_change"], sign=True),
        f"{sum(gate is True for gate in gates)}/{len(gates)}" if gates else DASH,
        duration(run["seconds"]),
    ]


def print_run(console: Console, summary: dict[str, Any], state: dict[str, Any], path: Path) -> None:
    """A run as it stands: facts, the seven steps, and what can be done about it."""
    status = summary["status"]
    rows = [
        ("Run", summary["id"]),
        ("Name", summary["name"]),
        ("Status", Text(status, STATUS_STYLES.get(status, ""))),
        ("Started", moment(state["started"])),
        ("Model", summary["model"]),
        ("Output", summary["out"]),
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(label, value if isinstance(value, Text) else Text(str(value or DASH)))
    console.print(Group(grid, Text(""), render(state, console.width, time.time())))
    if summary["error"]:
        console.print(Text(f"\n{summary['error']}", style="red"))
    if status in ("died", "failed", "stopped"):
        console.print(f"\nGo on with: {resume_line(path)}", markup=False, soft_wrap=True)


def print_inspection(console: Console, found: dict[str, Any], all_tensors: bool) -> None:
    """What lies in a model directory."""
    packed = found["kind"] == "packed"
    verified = ", verified" if found.get("verified") else ""
    label = f"packed ternary model{verified}" if packed else "plain model"
    head = Text(f"{found['architecture']}, {count(found['parameters'])} parameters, {label}", "bold")
    lines = [head]
    if packed:
        lines.append(
            Text(
                f"{times(found['ratio_file'])} smaller than float32 · "
                f"{figure(found['bits_per_weight'], 3)} bits a weight in {found['ternary_tensors']} "
                f"ternary tensors, {planes(found['planes_mean'])} · {percent(found['sparsity'])} zeros"
            )
        )
    else:
        lines.append(
            Text(
                f"{found['ternarizable_tensors']} tensors to press with "
                f"{count(found['ternarizable_weights'])} weights · size class {found['size_class']} · "
                f"{found['source_dtype']}"
            )
        )
    lines.append(Text(f"{size(found['bytes'])} on disk · {size(found['bytes_fp32'])} as float32"))
    console.print(Group(*lines))
    shown = found["tensors"] if all_tensors else found["tensors"][:TENSORS_SHOWN]
    if shown:
        console.print(_tensor_table(shown, packed, console.width))
    hidden = len(found["tensors"]) - TENSORS_SHOWN
    if hidden > 0 and not all_tensors:
        console.print(f"{hidden} more tensors: --all shows them", style="dim")
    files = simple_table("file", right("size"), ("sha256", {"overflow": "fold"}))
    for file in found["files"]:
        files.add_row(file["path"], size(file["bytes"]), str(file.get("sha256") or DASH))
    console.print(files)
    if found.get("note"):
        console.print(Text(found["note"], "yellow"))


def _tensor_table(tensors: list[dict[str, Any]], packed: bool, width: int) -> Table:
    """A line a tensor; where names are too long for the width, those of a layer stand below its name."""
    headings = ["kept as", "shape", *(["planes", "zeros", "bits"] if packed else ["role"]), "size"]
    rows = [_tensor_cells(tensor, packed) for tensor in tensors]
    taken = sum(max(len(heading), *(len(row[i]) for row in rows)) + GAP for i, heading in enumerate(headings))
    room = max(16, width - taken - 1)
    grouped = any(len(tensor["name"]) > room for tensor in tensors)
    left = ("kept as", "role")
    table = simple_table(
        ("tensor", {"no_wrap": True}),
        *((heading, {"no_wrap": True}) if heading in left else right(heading) for heading in headings),
    )
    group = ""
    for tensor, row in zip(tensors, rows, strict=True):
        layer, name = _layer_and_rest(tensor["name"]) if grouped else ("", tensor["name"])
        if layer and layer != group:
            table.add_row(Text(_end_of(layer, room), "bold"))
        group = layer
        indent = "  " if layer else ""
        table.add_row(Text(indent + _end_of(name, room - len(indent))), *row)
    return table


def _tensor_cells(tensor: dict[str, Any], packed: bool) -> list[str]:
    if packed:
        bits = figure(tensor.get("bits"), 3)
        middle = [str(tensor.get("planes", "")), _share(tensor.get("sparsity")), bits]
    else:
        middle = [tensor["role"]]
    shape = " x ".join(str(n) for n in tensor["shape"])
    return [tensor["storage"], shape, *middle, size(tensor["bytes"])]


def _layer_and_rest(name: str) -> tuple[str, str]:
    """model.layers.0 and mlp.up_proj.weight; nothing and the name where it has no number."""
    found = re.match(r"(.*?\.\d+)\.(.+)", name)
    return (found[1], found[2]) if found else ("", name)


def _end_of(name: str, width: int) -> str:
    return name if len(name) <= width else f"…{name[len(name) - width + 1 :]}"


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def print_evaluation(console: Console, found: dict[str, Any]) -> None:
    """Figures of one model on held-out text."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = [
        ("Model", found.get("path")),
        ("Kind", found.get("kind")),
        ("Perplexity", _with_interval(found, "perplexity", figure)),
        ("Top-1", _with_interval(found, "top1", lambda value: percent(value, 2))),
        ("Tokens", None if found.get("tokens") is None else f"{found['tokens']:,}"),
        (
            "Latency",
            found.get("latency_reason") and f"not measured: {found['latency_reason']}"
            if found.get("latency_ms") is None
            else f"{figure(found['latency_ms'], 3)} ms a token",
        ),
        ("Speed", None if not found.get("tokens_per_s") else f"{count(found['tokens_per_s'])} tokens/s"),
        ("Weight files", None if found.get("bytes") is None else size(found["bytes"])),
        *(
            (one["task"], f"{percent(one['value'], 2)} {one['metric']}, {one['documents']:,} documents")
            for one in found.get("tasks") or ()
        ),
    ]
    for label, value in rows:
        if value is not None:
            grid.add_row(label, Text(str(value)))
    console.print(grid)


def _with_interval(found: dict[str, Any], key: str, words: Callable[[Any], str]) -> str:
    interval = found.get(f"{key}_interval")
    span = f" (95 %: {words(interval[0])} to {words(interval[1])})" if interval else ""
    return f"{words(found.get(key))}{span}"


def print_bench(console: Console, name: str, found: dict[str, Any]) -> None:
    """Measured limits of the machine, then a line a measurement."""
    console.print(f"bench {name}", style="bold")
    for key, value in found["machine"].items():
        console.print(f"  {key.replace('_', ' ')}: {_cell(value)}", markup=False)
    tables: dict[Any, list[dict[str, Any]]] = {}
    for row in found["rows"]:  # ops of `pack` share their columns, those of the others do not
        tables.setdefault(None if name == "pack" else row.get("op"), []).append(row)
    for rows in tables.values():
        _print_rows(console, rows)


def _print_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if value is not None))
    # What is the same in every row is said once, so that the rest fits the terminal; all of a lone row.
    same = [key for key in keys if all(row.get(key) == rows[0].get(key) for row in rows)]
    console.print()
    for key in same:
        console.print(f"  {key.replace('_', ' ')}: {_cell(rows[0][key])}", markup=False)
    columns = [key for key in keys if key not in same]
    if not columns:
        return
    table = simple_table(*(_bench_column(key, [row.get(key) for row in rows]) for key in columns))
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    console.print()
    console.print(table)


def _bench_column(key: str, values: list[Any]) -> Column:
    numbers = all(value is None or _is_number(value) or isinstance(value, list) for value in values)
    return key.replace("_", " "), {"justify": "right" if numbers else "left", "overflow": "fold"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, list):
        return " to ".join(_cell(item) for item in value)
    if not _is_number(value):
        return str(value)
    if abs(value) >= 1e6:
        return count(value)
    return f"{value:,}" if isinstance(value, int) else figure(value, 3)
