"""The report of a run as people read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritpress.console.numbers import DASH, duration, figure, percent, planes, size, times
from tritpress.console.tables import right, simple_table
from tritpress.invocation import command_line, runs_option

GATE_NAMES = {
    "ratio": "size ratio",
    "accuracy": "accuracy kept",
    "perplexity": "perplexity change",
    "sparsity": "sparsity",
    "gradient_flow": "gradient flow",
}


def print_report(console: Console, report: dict[str, Any], run_path: Path | None = None) -> None:
    """Headline, before and after, gates, fine-tuning and where everything is."""
    console.print()
    console.print(headline(report))
    console.print()
    console.print(before_after(report))
    if report["before"].get("latency_reason"):
        console.print(f"Latency: not measured: {report['before']['latency_reason']}", highlight=False)
    if report.get("tasks"):
        console.print()
        console.print(tasks_table(report["tasks"]))
    console.print()
    console.print(gates_table(report["gates"]))
    for line in advice(report["gates"]):
        console.print()
        console.print(line)
    for line in planner_words(report):
        console.print()
        console.print(line)
    fine_tuning = report.get("fine_tuning")
    if fine_tuning:
        console.print()
        console.print(Text(fine_tuning_words(fine_tuning)))
    console.print()
    handoff = report.get("handoff") or []
    if handoff:
        failed = [item for item in handoff if item.get("passed") is False]
        passed = sum(item.get("passed") is True for item in handoff)
        unknown = len(handoff) - passed - len(failed)
        rest = f", {unknown} not checked" if unknown else ""
        console.print(f"Handoff: {passed} of {len(handoff)} checks pass{rest}", highlight=False)
        for item in failed:
            console.print(Text(f"  ✗ {item['name']}: {item.get('detail') or ''}", style="red"))
    seconds = sum(step["seconds"] or 0 for step in report.get("steps", []))
    console.print(f"Time: {duration(seconds)} in the seven steps", highlight=False)
    if run_path is not None:
        console.print()
        print_places(console, report, run_path)


def planner_words(report: dict[str, Any]) -> list[Text]:
    """What was foretold beside what came, and what holding the zeros below their ceiling cost."""
    lines = []
    found = report.get("prediction") or {}
    if found.get("perplexity_change") is not None and found.get("measured_perplexity_change") is not None:
        tuned = found.get("fine_tuned_tokens")
        lines.append(
            Text(
                f"Planner: perplexity {percent(found['perplexity_change'], sign=True)} predicted"
                f"{' before fine-tuning' if tuned else ''}, "
                f"{percent(found['measured_perplexity_change'], sign=True)} measured"
                f"{' after it' if tuned else ''}"
            )
        )
    held = report.get("zeros_ceiling")
    if held:
        lines.append(Text(zeros_words(held)))
    return lines


def zeros_words(held: dict[str, Any]) -> str:
    """What holding the zeros inside the gate's band costs, and which tensors it was too dear for."""
    words = []
    if held.get("tensors", True):  # a report of an earlier version says of no tensor that it was not held
        cost = ""
        if held.get("perplexity_cost") is not None:
            change = percent(held["perplexity_cost"], 2, sign=True)
            cost = f", perplexity {change} by the planner's estimate"
        raised = ""
        if held.get("raised"):
            raised = f", in {_tensors(held['raised'])} at no fewer than {percent(held['floor'], 0)},"
        words.append(
            f"Zeros held at {percent(held['ceiling'], 0)}{raised} "
            f"({percent(held['sparsity_without'])} without): "
            f"squared error {percent(held['error_increase'], sign=True)}{cost} (--sparsity free lifts it)"
        )
    if held.get("released"):
        others = " more" if held["tensors"] else ""
        words.append(
            f"Zeros left free in {_tensors(held['released'])}: holding them too would cost "
            f"{percent(held['released_cost'], 2, sign=True)}{others} (--sparsity 0.44 does it)"
        )
    return ". ".join(words)


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def fine_tuning_words(found: dict[str, Any]) -> str:
    """What training brought, in one sentence."""
    if found.get("best_step") == 0:
        result = f"no step beat the calibrated codes, which are kept; loss {figure(found['loss_first'])}"
    else:
        result = f"loss {figure(found['loss_first'])} -> {figure(found['loss_best'])}"
    return (
        f"Fine-tuning: {found['steps']:,} steps, {found['tokens']:,} tokens, {result} "
        f"({found['optimizer']}, {found['stopped']})"
    )


def print_places(console: Console, report: dict[str, Any], run_path: Path) -> None:
    """Where the models are, and the line that opens the dashboard on this run."""
    from tritpress.runs.directory import RunDirectory

    out = Path(RunDirectory(run_path).read_run()["out"])
    rows = []
    for kind, label in (("packed", "Packed model"), ("dequantized", "Dequantized")):
        if (out / kind).is_dir():
            rows.append((label, str(out / kind)))
    rows.append(("Report", str(out / "report.json")))
    rows.append(
        ("Dashboard", command_line("dashboard", *runs_option(run_path.parent), "--run", run_path.name))
    )
    for label, value in rows:
        console.print(Text.assemble((f"{label:<13} ", "bold"), value), soft_wrap=True)


def headline(report: dict[str, Any]) -> Text:
    """The ratio, never without bits a weight and planes beside it."""
    text = Text()
    text.append(f"{times(report['ratio_file'])} smaller", style="bold green")
    text.append(" than float32")
    if report.get("ratio_disk") is not None:
        text.append(f" ({times(report['ratio_disk'])} than the files on disk)")
    text.append(f"\n{figure(report['bits_per_weight'], 3)} bits a weight", style="bold")
    text.append(f" in the pressed layers, {planes(report['planes_mean'])}, ")
    text.append(f"{percent(report['sparsity'])} zeros")
    return text


def before_after(report: dict[str, Any]) -> Table:
    """Original, packed and dequantized side by side."""
    headings = [right(name) for name in ("original", "packed", "dequantized")]
    table = simple_table("", *headings, title=_title(report))
    columns = [report["before"], report["after"]["packed"], report["after"]["dequantized"]]
    interval = report.get("perplexity_interval")
    change = report.get("perplexity_change")
    rows = [
        ("weight files", [size(column.get("bytes")) for column in columns]),
        ("ratio to float32", [_ratio(column) for column in columns]),
        ("perplexity", [figure(column.get("perplexity")) for column in columns]),
        ("  95 % interval", [_ends(column.get("perplexity_interval"), figure) for column in columns]),
        ("  change", [DASH, percent(change, sign=True), _change(columns[2], columns[0])]),
        ("  95 % interval", [DASH, _ends(interval, lambda end: percent(end, sign=True)), DASH]),
        ("top-1", [percent(column.get("top1")) for column in columns]),
        ("  95 % interval", [_ends(column.get("top1_interval"), percent) for column in columns]),
        ("  kept", [DASH, percent(report.get("accuracy_kept")), _kept(columns[2], columns[0])]),
        ("  95 % interval", [DASH, _ends(report.get("accuracy_interval"), percent), DASH]),
        ("KL divergence, nats", [figure(column.get("kl"), 3) for column in columns]),
        ("same top-1", [percent(column.get("agreement")) for column in columns]),
        ("latency, ms a token", [figure(column.get("latency_ms"), 3) for column in columns]),
        ("tokens a second", [figure(column.get("tokens_per_s"), 3) for column in columns]),
    ]
    for label, values in rows:
        if any(value != DASH for value in values):
            table.add_row(label, *values)
    return table


def tasks_table(tasks: dict[str, Any]) -> Table:
    """What lm-eval's tasks give, and the mean over them of what was kept."""
    headings = [right(name) for name in ("documents", "original", "packed", "kept")]
    table = simple_table("", "", *headings, title="Tasks")
    for found in tasks["results"]:
        values = [percent(found[key]) for key in ("original", "packed", "kept")]
        table.add_row(found["task"], found["metric"], f"{found['documents']:,}", *values)
    interval = tasks.get("interval")
    span = _ends(interval, percent) if interval else ""
    label = "mean, 95 % interval" if span else "mean"
    table.add_row(label, span, "", "", "", percent(tasks["accuracy_kept"]))
    return table


def gates_table(gates: list[dict[str, Any]]) -> Table:
    """The five gates, actual against target."""
    table = simple_table("", right("target"), right("actual"), "", title="Gates")
    for gate in gates:
        verdict = {True: Text("✓ passes", "green"), False: Text("✗ fails", "bold red")}.get(
            gate["passed"], Text("– not measured", "yellow")
        )
        target, actual = gate_words(gate)
        table.add_row(GATE_NAMES.get(gate["name"], gate["name"]), target, actual, verdict)
    return table


def gate_words(gate: dict[str, Any]) -> tuple[str, str]:
    """Target and actual of a gate in its own unit."""
    name, target, actual = gate["name"], gate["target"], gate["actual"]
    if name == "ratio":
        return f">= {target:.2f}x", times(actual)
    if name == "perplexity":
        return f"<= {percent(target, sign=True)}", percent(actual, sign=True)
    if name == "sparsity" and isinstance(target, list | tuple):
        return f"{100 * target[0]:.0f} to {percent(target[1], 0)}", percent(actual)
    if isinstance(target, int | float):
        return f">= {percent(target)}", percent(actual)
    return str(target), figure(actual)


def advice(gates: list[dict[str, Any]]) -> list[Text]:
    """What each judged gate has to say (how to make a failed one pass); which were not judged, and why."""
    said = [
        Text.assemble((f"{_gate_name(gate)}: ", "bold"), str(gate["advice"]))
        for gate in gates
        if gate.get("advice") and gate["passed"] is not None
    ]
    reasons: dict[str, list[str]] = {}
    for gate in gates:
        if gate["passed"] is None:
            reason = str(gate.get("advice") or "no figure was taken").removeprefix("not measured: ")
            reasons.setdefault(reason, []).append(_gate_name(gate))
    for reason, names in reasons.items():
        told = f"{len(names)} of {len(gates)} gates ({', '.join(names)}): "
        said.append(Text.assemble(("Not judged: ", "bold"), told, reason))
    return said


def _gate_name(gate: dict[str, Any]) -> str:
    return GATE_NAMES.get(gate["name"], str(gate["name"]))


def _title(report: dict[str, Any]) -> str:
    tokens = report["before"].get("tokens")
    return "Before and after" + (f", on {tokens:,} tokens of held-out text" if tokens else "")


def _ratio(column: dict[str, Any]) -> str:
    if not column.get("bytes") or not column.get("bytes_fp32"):
        return DASH
    return times(column["bytes_fp32"] / column["bytes"])


def _change(after: dict[str, Any], before: dict[str, Any]) -> str:
    if after.get("perplexity") is None or before.get("perplexity") is None:
        return DASH
    return percent(after["perplexity"] / before["perplexity"] - 1, sign=True)


def _kept(after: dict[str, Any], before: dict[str, Any]) -> str:
    if after.get("top1") is None or not before.get("top1"):
        return DASH
    return percent(after["top1"] / before["top1"])


def _ends(interval: list[float] | None, words: Callable[[float], str]) -> str:
    return DASH if not interval else f"{words(interval[0])} to {words(interval[1])}"
