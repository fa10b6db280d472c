"""The Metrics tab as data: the table of before and after, and the curves of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.ending import broke_off, ended_words, over, reached
from tritpress.dashboard.views.status import State, planes_words
from tritpress.dashboard.views.written import written_bytes
from tritpress.events.snapshot import accuracy_judged
from tritpress.runs.comparison import task_results

POINTS = 2000
"""At most so many points of a series go to a browser."""

COLUMNS = {"before": "Original", "packed": "Packed", "dequantized": "Dequantized"}


@dataclass(frozen=True)
class Row:
    """One line of the table: the figure for the original, the packed and the dequantized model."""

    key: str
    title: str
    unit: str
    values: tuple[str, str, str]


def table(state: State) -> list[Row]:
    """Before and after; what is not measured stays a dash."""
    found, figures = state["evaluations"], state["figures"]

    def row(key: str, title: str, unit: str, show: Callable[[Any], str]) -> Row:
        values = tuple(show((found.get(when) or {}).get(key)) for when in COLUMNS)
        return Row(key, title, unit, values)  # type: ignore[arg-type]

    def measured(key: str, words: Callable[..., str], digits: int) -> tuple[str, str, str]:
        spans = (
            _with_interval(found.get(when) or {}, key, f"{key}_interval", words, digits) for when in COLUMNS
        )
        return tuple(spans)  # type: ignore[return-value]

    of_tasks = accuracy_judged(state)[2]
    bits = figures.get("bits_per_weight")
    sizes = (
        figures.get("bytes"),
        written_bytes(state, "packed"),
        written_bytes(state, "dequantized"),
    )
    source_dtype = (state.get("model") or {}).get("source_dtype")
    return [
        Row("bytes", "Size on disk", "", tuple(fig.size(value) for value in sizes)),  # type: ignore[arg-type]
        Row(
            "bits",
            "Pressed weights",
            "bits a weight",
            (
                _dtype_bits(source_dtype),
                f"{bits:.2f} · {planes_words(figures.get('planes_mean'))}"
                if fig.known(bits)
                else fig.NOTHING,
                "16" if written_bytes(state, "dequantized") else fig.NOTHING,
            ),
        ),
        Row("perplexity", "Perplexity", "held-out text", measured("perplexity", fig.significant, 4)),
        Row(
            "perplexity_change",
            "Perplexity change",
            "against the original",
            (
                fig.NOTHING,
                _with_interval(figures, "perplexity_change", "perplexity_interval", fig.change),
                _relative(found, "dequantized", "perplexity"),
            ),
        ),
        Row("top1", "Top-1 accuracy", "next token", measured("top1", fig.percent, 2)),
        Row(
            "accuracy_kept",
            "Top-1 accuracy kept" if of_tasks else "Accuracy kept",
            "of the original; the gate reads the tasks" if of_tasks else "of the original",
            (
                fig.NOTHING,
                _with_interval(figures, "accuracy_kept", "accuracy_interval", fig.percent),
                _kept(found, "dequantized"),
            ),
        ),
        *(_task_rows(state) if of_tasks else ()),
        row("agreement", "Same top-1 as the original", "of positions", lambda value: fig.percent(value, 2)),
        row("kl", "KL divergence", "nats a token", lambda value: fig.significant(value)),
        row("latency_ms", "Latency", "ms a generated token", lambda value: fig.significant(value)),
        row("tokens_per_s", "Speed", "tokens a second, four windows at once", fig.significant),
        row("memory_bytes", "Memory", "parameters, buffers and kernels' copies", fig.size),
        row("tokens", "Tokens measured", "", fig.count),
    ]


def _task_rows(state: State) -> list[Row]:
    """The mean over the tasks, then each task; the dequantized model is not asked."""
    kept, interval, _ = accuracy_judged(state)
    mean = _with_interval({"kept": kept, "span": interval}, "kept", "span", fig.percent)
    rows = [Row("tasks_kept", "Accuracy kept, tasks", "mean of the tasks", (fig.NOTHING, mean, fig.NOTHING))]
    for found in task_results(state):
        packed = fig.percent(found.get("packed"), 2)
        if fig.known(found.get("kept")):
            packed += f" · {fig.percent(found['kept'])} kept"
        documents = found.get("documents")
        unit = ", ".join(
            [str(found.get("metric") or "accuracy")]
            + ([fig.plural(int(documents), "document")] if fig.known(documents) else [])
        )
        title = str(found.get("task"))
        rows.append(
            Row(f"task:{title}", title, unit, (fig.percent(found.get("original"), 2), packed, fig.NOTHING))
        )
    return rows


def reasons(state: State, lost: bool = False) -> list[str]:
    """Why figures of the table are not there, a sentence each."""
    found, said = state["evaluations"], []
    for whens, number in ((("before",), 2), (("packed", "dequantized"), 7)):
        missing = [COLUMNS[when] for when in whens if when not in found]
        if not missing:
            continue
        step, names = state["steps"][number - 1], " and ".join(missing).lower()
        if step["state"] == "skipped":
            said.append(f"The {names} is not measured: {step['reason']}.")
        elif broke_off(state, lost) and step["state"] != "done":
            ended = ended_words(state, number)
            said.append(f"The {names} is not measured: {ended[0].lower()}{ended[1:]}")
        elif step["state"] in ("waiting", "running") and not over(state, lost):
            said.append(f"The {names} is measured in step {number}.")
        else:
            why = (state["gates"].get("perplexity") or {}).get("advice")
            said.append(
                f"The {names} is not measured{': ' + why.removeprefix('not measured: ') if why else ''}."
            )
    if any("memory_bytes" not in figures for figures in found.values()):
        said.append("Memory was not measured when this run was evaluated.")
    return [sentence.replace("packed and dequantized is", "packed and dequantized are") for sentence in said]


def _dtype_bits(name: str | None) -> str:
    bits = {"F32": "32", "F16": "16", "BF16": "16", "float32": "32", "float16": "16", "bfloat16": "16"}
    return bits.get(name or "", fig.NOTHING)


def _with_interval(
    figures: dict[str, Any], key: str, span: str, words: Callable[..., str], digits: int = 2
) -> str:
    text = words(figures.get(key), digits)
    interval = figures.get(span)
    if isinstance(interval, list | tuple) and len(interval) == 2 and all(fig.known(end) for end in interval):
        low, high = (words(end).removesuffix(" %") for end in interval)
        text += f" ({low} to {high})"
    return text


def _relative(found: dict[str, Any], when: str, key: str) -> str:
    after, before = (found.get(when) or {}).get(key), (found.get("before") or {}).get(key)
    return (
        fig.change(after / before - 1, 2)
        if fig.known(after) and fig.known(before) and before
        else fig.NOTHING
    )


def _kept(found: dict[str, Any], when: str) -> str:
    after, before = (found.get(when) or {}).get("top1"), (found.get("before") or {}).get("top1")
    return (
        fig.percent(after / before, 2) if fig.known(after) and fig.known(before) and before else fig.NOTHING
    )


def downsample(values: Sequence[float], limit: int) -> list[int]:
    """Indices of at most `limit` values that keep the ends and every stretch's least and largest value."""
    count = len(values)
    if count <= limit:
        return list(range(count))
    buckets = max((limit - 2) // 2, 1)
    kept = {0, count - 1}
    for bucket in range(buckets):
        start = 1 + bucket * (count - 2) // buckets
        end = 1 + (bucket + 1) * (count - 2) // buckets
        stretch = [index for index in range(start, end) if values[index] == values[index]]
        if stretch:
            kept.add(min(stretch, key=values.__getitem__))
            kept.add(max(stretch, key=values.__getitem__))
    return sorted(kept)


def curve_words(state: State, lost: bool = False) -> str:
    """What stands under the curve: how far training is, or why there is none."""
    step = state["steps"][4]
    last = state.get("finetune_last")
    if last:
        parts = [
            f"step {fig.count(last.get('step'))}",
            f"epoch {last['epoch']:,.2f}".removesuffix(".00") if fig.known(last.get("epoch")) else "",
            f"learning rate {fig.significant(last.get('lr'))}" if fig.known(last.get("lr")) else "",
            f"gradient norm {fig.significant(last.get('grad_norm'))}"
            if fig.known(last.get("grad_norm"))
            else "",
            f"{fig.significant(last.get('tokens_per_s'))} tokens a second"
            if fig.known(last.get("tokens_per_s"))
            else "",
        ]
        return " · ".join(part for part in parts if part)
    if step["state"] == "skipped":
        return f"Fine-tuning was skipped: {step['reason']}"
    if step["state"] == "done":
        return "Fine-tuning took no step."
    if (state.get("config") or {}).get("finetune") is False:
        return "Fine-tuning is switched off for this run."
    if broke_off(state, lost):
        return f"The run ended before fine-tuning{' was done' if reached(state, 5) else ''}."
    return "The curve begins with step 5, fine-tuning."
