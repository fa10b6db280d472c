"""The seven steps as they happen: a live table in a terminal, a line for each step elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tritpress.console.numbers import count, duration, figure, percent, planes, times
from tritpress.events.snapshot import State, fold, step_worked

MARKS = {"waiting": ("·", "dim"), "done": ("✓", "green"), "skipped": ("–", "yellow"), "failed": ("✗", "red")}


MARK_WIDTH, NAME_WIDTH, TIME_WIDTH = 1, 15, 11


class RunProgress:
    """Folds events as they come (`on_event`) and shows the state. Use as a context manager."""

    def __init__(self, console: Console, state: State) -> None:
        self.console = console
        self.state = state
        self.spinner = Spinner("dots", style="cyan")
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(get_renderable=self.render, console=console, refresh_per_second=8)

    def __enter__(self) -> RunProgress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def on_event(self, event: dict[str, Any]) -> None:
        fold(self.state, event)
        if self.live is None:
            self._print_line(event)
        elif event["type"] in ("log", "alert") and event.get("level") in ("warning", "error"):
            self.console.print(Text(f"  {event.get('message')}", style="yellow"))

    def render(self) -> RenderableType:
        return render(self.state, self.console.width, time.time(), self.spinner)

    def _print_line(self, event: dict[str, Any]) -> None:
        if event["type"] == "step.finished":
            step = self.state["steps"][event["step"] - 1]
            words = f"{step['n']}/7 {step['name']}: " + (
                f"skipped ({step['reason']})" if step["reason"] else duration(step["seconds"])
            )
            detail = finding(self.state, step["n"])
            self.console.print(Text(f"{words}{f', {detail}' if detail else ''}"), soft_wrap=True)
        elif event["type"] in ("run.paused", "run.resumed"):
            self.console.print(event["type"].removeprefix("run."))
        elif event["type"] in ("log", "alert") and event.get("level") in ("warning", "error"):
            self.console.print(Text(f"  {event.get('message')}"), soft_wrap=True)


def render(state: State, width: int, now: float, spinner: Spinner | None = None) -> RenderableType:
    """The live picture of a run: a line about the model, then a row for each step."""
    bar_width = 24 if width >= 100 else 10
    left = (MARK_WIDTH, NAME_WIDTH, bar_width, TIME_WIDTH)
    room = max(10, width - sum(left) - len(left))
    table = Table.grid(padding=(0, 1, 0, 0))
    for column_width in left:
        table.add_column(width=column_width, no_wrap=True)
    table.columns[3].justify = "right"
    table.add_column(width=room, no_wrap=True)
    for step in state["steps"]:
        *cells, words = _row(state, step, bar_width, now, spinner)
        if step["state"] == "running" and step["n"] != 5:
            words.plain = fitting(words.plain, room)
        elif step["state"] in ("running", "done"):
            words.plain = whole_parts(words.plain, room)
        words.truncate(room, overflow="ellipsis")
        table.add_row(*cells, words)
    return Group(headline(state), table)


def fitting(words: str, width: int) -> str:
    """`words` in at most `width` characters: beginning and end stay, for tensors are told apart by both."""
    if len(words) <= width:
        return words
    head = width // 3
    return f"{words[:head]}…{words[len(words) - (width - head - 1) :]}"


def whole_parts(words: str, width: int) -> str:
    """As many of the parts between commas as fit in `width` characters: no number is cut in two."""
    if len(words) > width:
        words = words.replace(" a weight", "")
    while len(words) > width and ", " in words:
        words = words.rpartition(", ")[0]
    return words


def headline(state: State) -> Text:
    """What is pressed, and whether it is paused."""
    model = state["model"] or {}
    parts = [str(model["architecture"])] if model.get("architecture") else ["reading the model"]
    if model.get("parameters"):
        parts.append(f"{count(model['parameters'])} parameters")
    if state["targets"]:
        parts.append(f"{len(state['targets'])} tensors to press")
    text = Text(no_wrap=True, overflow="ellipsis")
    if state["status"] == "paused":
        text.append("paused  ", style="bold yellow")
    return text.append(" · ".join(parts), style="bold")


def _row(
    state: State, step: dict[str, Any], bar_width: int, now: float, spinner: Spinner | None
) -> tuple[RenderableType, RenderableType, RenderableType, RenderableType, Text]:
    n, status = step["n"], step["state"]
    name = Text(f"{n} {step['name']}", style="bold" if status == "running" else "")
    if status != "running":
        mark, style = MARKS[status]
        if status == "waiting":
            name.stylize("dim")
        full = 1 if status == "done" else 0
        bar: RenderableType = (
            ProgressBar(total=1, completed=full, width=bar_width)
            if status in ("done", "failed")
            else Text("─" * bar_width, style="grey23")
        )
        words = f"skipped: {step['reason']}" if status == "skipped" else finding(state, n)
        seconds = duration(step["seconds"]) if status == "done" else ""
        return Text(mark, style=style), name, bar, Text(seconds), Text(words, style="" if words else "dim")
    done, total = step["done"], step["total"]
    known = bool(total) and done is not None
    bar = ProgressBar(
        total=total if known else None,
        completed=done or 0,
        width=bar_width,
        pulse=not known,
        animation_time=now,
    )
    elapsed = step_worked(step, now, state.get("idle_since"))
    pause = state["status"] == "paused"
    mark_shown: RenderableType = Text("‖", style="yellow") if pause else spinner or Text("›")
    return mark_shown, name, bar, Text(duration(elapsed)), Text(current(state, step), style="cyan")


def current(state: State, step: dict[str, Any]) -> str:
    """What a running step is at."""
    if step["n"] == 5 and state["finetune_last"]:
        last = state["finetune_last"]
        steps = f"{last.get('step')}/{last['steps']}" if last.get("steps") else f"step {last.get('step')}"
        words = f"{steps} loss {figure(last.get('loss'))}"
        return f"{words}, {count(last['tokens_per_s'])} tokens/s" if last.get("tokens_per_s") else words
    parts = []
    if step["total"] and step["done"] is not None:
        parts.append(f"{step['done']:g}/{step['total']:g}")
    if step["detail"]:
        parts.append(str(step["detail"]))
    return " ".join(parts)


def finding(state: State, n: int) -> str:
    """What a finished step found, in a few words; nothing that was not measured."""
    figures, evaluations = state["figures"], state["evaluations"]
    if n == 1 and state["model"]:
        model = state["model"]
        return f"{model.get('size_class', '')} model, {model.get('source_dtype', '')}".strip(", ")
    if n == 2 and evaluations.get("before"):
        before = evaluations["before"]
        return f"perplexity {figure(before.get('perplexity'))}, top-1 {percent(before.get('top1'))}"
    if n == 4 and state["layers"]:
        return ", ".join(filter(None, [f"{len(state['layers'])} tensors", _planes_and_bits(figures)]))
    if n == 5 and state["finetune_last"]:
        last = state["finetune_last"]
        return f"{last.get('step')} steps, loss {figure(last.get('loss'))}"
    if n == 6 and figures.get("ratio_file"):
        return f"{times(figures['ratio_file'])} smaller, {_planes_and_bits(figures)}"
    if n == 7 and state["gates"]:
        passed = sum(gate.get("passed") is True for gate in state["gates"].values())
        unknown = sum(gate.get("passed") is None for gate in state["gates"].values())
        words = f"{passed} of {len(state['gates'])} gates pass"
        return f"{words}, {unknown} not judged" if unknown else words
    return ""


def _planes_and_bits(figures: dict[str, Any]) -> str:
    bits = figures.get("bits_per_weight")
    words = planes(figures.get("planes_mean")).partition(" (")[0].removesuffix(" a weight")
    return f"{figure(bits, 3)} bits a weight, {words}" if bits is not None else ""
