"""The five gates: measured figures against fixed limits, and for what fails the cheapest way out.

A gate reads only what was measured. What was not is null with the reason, never passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tritpress.evaluate import advice

if TYPE_CHECKING:
    from tritpress.evaluate.gradient_flow import GradientFlow

RATIO = 6.0
ACCURACY = 0.95
PERPLEXITY = 0.10
SPARSITY = (0.25, 0.45)
GRADIENT_FLOW = 1.0


@dataclass(frozen=True)
class Alternative:
    """Another plan for the same model: its ratio, its predicted perplexity change and accuracy kept, and the
    tensors that get more planes than now, those first that cost most now.
    """

    ratio: float
    change: float
    kept: float | None = None
    raised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ways:
    """What a run knows of ways out of a failed gate; see `Measured` for the fields."""

    alternatives: Sequence[Alternative] = ()
    largest_ratio: float | None = None
    unsound: Sequence[tuple[str, str]] = ()
    again: str | None = None
    loss_curve: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Measured:
    """What the gates read. None is what was not measured; `reason` then says why.

    `layers`: one mapping a pressed tensor with name and sparsity at least. `alternatives`: other plans and
    what they are predicted to give. `unsound`: (name, reason) of tensors that are not what pressing should
    have made, `again` the command line that presses them anew. `loss_curve`: (tokens, log of perplexity over
    the original's) of the run's own training. Intervals are 95 %.
    """

    ratio_file: float | None = None
    accuracy_kept: float | None = None
    perplexity_change: float | None = None
    sparsity: float | None = None
    gradients: GradientFlow | None = None
    perplexity_interval: tuple[float, float] | None = None
    accuracy_interval: tuple[float, float] | None = None
    accuracy_reason: str | None = None
    reason: str | None = None
    layers: list[Mapping[str, Any]] = field(default_factory=list)
    alternatives: Sequence[Alternative] = ()
    largest_ratio: float | None = None
    unsound: Sequence[tuple[str, str]] = ()
    again: str | None = None
    fine_tuned_tokens: int = 0
    loss_curve: Sequence[tuple[int, float]] = ()
    command: advice.Command = field(default_factory=advice.Command)


def five_gates(measured: Measured) -> list[dict[str, Any]]:
    """[{name, target, actual, passed, advice}] for ratio, accuracy, perplexity, sparsity, gradient_flow.

    `target` is the limit (for sparsity the pair), `passed` None where there is no figure. `advice` is None
    for a gate that passes clearly; one that passes while its interval crosses the limit says so.
    """
    m = measured
    return [
        _gate("ratio", RATIO, m.ratio_file, m, m.ratio_file is not None and m.ratio_file >= RATIO),
        _gate(
            "accuracy",
            ACCURACY,
            m.accuracy_kept,
            m,
            m.accuracy_kept is not None and m.accuracy_kept >= ACCURACY,
            _crossing(m.accuracy_interval, ACCURACY, "accuracy kept", signed=False),
        ),
        _gate(
            "perplexity",
            PERPLEXITY,
            m.perplexity_change,
            m,
            m.perplexity_change is not None and m.perplexity_change <= PERPLEXITY,
            _crossing(m.perplexity_interval, PERPLEXITY, "perplexity change", signed=True),
        ),
        _gate(
            "sparsity",
            list(SPARSITY),
            m.sparsity,
            m,
            m.sparsity is not None and SPARSITY[0] <= m.sparsity <= SPARSITY[1],
        ),
        _gate(
            "gradient_flow",
            GRADIENT_FLOW,
            None if m.gradients is None else m.gradients.measured_share,
            m,
            m.gradients is not None and m.gradients.share >= GRADIENT_FLOW,
        ),
    ]


def judge(
    work: Any,
    gradients: GradientFlow | None = None,
    *,
    command: advice.Command | None = None,
    ways: Ways | None = None,
    not_measured: str | None = None,
) -> list[dict[str, Any]]:
    """The five gates of a run in its last step (`tritpress.steps.Work`, read by attribute only).

    `command` repeats the run; `ways` is what else advice can offer.
    """
    figures, fine_tuning, ways = work.figures, work.fine_tuning or {}, ways or Ways()
    tasks = work.task_results or {}  # where tasks were run, they judge the accuracy
    return five_gates(
        Measured(
            ratio_file=figures.get("ratio_file"),
            accuracy_kept=tasks.get("accuracy_kept") if tasks else figures.get("accuracy_kept"),
            perplexity_change=figures.get("perplexity_change"),
            perplexity_interval=figures.get("perplexity_interval"),
            sparsity=figures.get("sparsity"),
            gradients=gradients,
            accuracy_interval=_tasks_interval(tasks) if tasks else figures.get("accuracy_interval"),
            accuracy_reason="the original answers no question of the tasks right" if tasks else None,
            reason=not_measured,
            layers=list(work.layers.values()),
            alternatives=ways.alternatives,
            largest_ratio=ways.largest_ratio,
            unsound=ways.unsound,
            again=ways.again,
            fine_tuned_tokens=int(fine_tuning.get("tokens") or 0),
            loss_curve=ways.loss_curve,
            command=command or advice.Command.of(work.config, str(work.source.path), str(work.out)),
        )
    )


def _gate(
    name: str, target: Any, actual: float | None, measured: Measured, holds: bool, crossing: str | None = None
) -> dict[str, Any]:
    """`holds` counts only where there is a figure (not-a-number never holds)."""
    passed = None if actual is None else bool(holds)
    if passed is None:
        own = measured.accuracy_reason if name == "accuracy" else None
        if name == "gradient_flow" and measured.gradients is not None:
            own = measured.gradients.unmeasured_words
        words: str | None = f"not measured: {own or measured.reason or 'no figure was taken'}"
    elif passed:
        words = crossing
    else:
        words = " ".join(part for part in (advice.ADVICE[name](measured), crossing) if part)
    return {"name": name, "target": target, "actual": actual, "passed": passed, "advice": words}


def _crossing(interval: tuple[float, float] | None, limit: float, what: str, *, signed: bool) -> str | None:
    """A sentence when the interval holds the limit, so that this text cannot decide the gate."""
    if interval is None or not interval[0] < limit < interval[1]:
        return None
    form = "+.1%" if signed else ".1%"
    return (
        f"The 95 % interval of the {what}, {interval[0]:{form}} to {interval[1]:{form}}, crosses the limit: "
        "this sample is too small to be sure; a larger one would decide."
    )


def _tasks_interval(tasks: Mapping[str, Any]) -> tuple[float, float] | None:
    found = tasks.get("interval")
    return None if found is None else (found[0], found[1])
