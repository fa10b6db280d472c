"""What to do about a gate that fails: the cheapest way out that is known, as a command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tritpress.evaluate.rerun import OPTION_OF, Command

if TYPE_CHECKING:
    from tritpress.evaluate.gates import Measured

__all__ = ["ADVICE", "Command"]

NAMED = 3
"""Tensors named in one sentence."""
FIRST_TOKENS = 500_000
LONGEST = 8
"""Times the tokens so far up to which the loss curve is trusted to go on as it went."""

LEAST_RATIO, MOST_CHANGE, LEAST_KEPT = 6.0, 0.10, 0.95
SURE = 0.85
"""A prediction counts as passing where it needs no more than this share of what the gate allows."""


def for_ratio(m: Measured) -> str:
    """The plan at the gate's ratio and what it would cost, or that it is out of reach."""
    if m.largest_ratio is not None and m.largest_ratio < LEAST_RATIO:
        return (
            f"It cannot be had: {m.largest_ratio:.2f} is the largest ratio of this model (one plane "
            "everywhere, embeddings as small as they go); what is not pressed takes too large a share."
        )
    command = m.command.changed(**_FREE, target_ratio=LEAST_RATIO)
    smaller = [a for a in m.alternatives if a.ratio >= LEAST_RATIO]
    if not smaller:
        return f"Ask for the ratio; the planner then spends the bytes where they count. Run: {command}"
    chosen = min(smaller, key=lambda a: a.ratio)
    said = f"Ask for {LEAST_RATIO:g}x: {_predicted(m, chosen)}."
    if not _passes(chosen):
        said += " That is beyond what the quality gates allow without (longer) fine-tuning."
    return f"{said} Run: {command}"


def for_quality(m: Measured) -> str:
    """Tensors that are not what they should be; else the smallest change of plan that is predicted to pass,
    and what longer training is predicted to bring.
    """
    if m.unsound:
        return press_again(m)
    found = passing_plan(m)
    parts = []
    if found is not None:
        parts.append(f"{_change_of_plan(m, found)} Run: {_command_for(m, found)}")
    elif m.alternatives:
        best = min(m.alternatives, key=lambda a: a.change)
        parts.append(
            f"No plan of {LEAST_RATIO:g}x or more is predicted to pass without training: the best, at "
            f"{best.ratio:.2f}x, has perplexity {best.change:+.1%}."
        )
    if m.command.options.get("method") in ("fast", "weighted"):
        parts.append(
            f"Calibrated pressing keeps more at the same size (how much cannot be foretold without it). "
            f"Run: {m.command.changed(method=None)}"
        )
    parts.append(_training(m, other=bool(parts)))
    return " ".join(parts)


def for_sparsity(m: Measured) -> str:
    """The tensors outside the band and the setting that holds them inside it."""
    if m.unsound:
        return press_again(m)
    low, high = 0.25, 0.45
    outside = [x for x in m.layers if not low <= x["sparsity"] <= high]
    outside.sort(key=lambda x: -abs(x["sparsity"] - 0.5 * (low + high)))
    named = ", ".join(f"{x['name']} ({x['sparsity']:.1%})" for x in outside[:NAMED])
    where = f"{len(outside)} of {len(m.layers)} tensors lie outside {low:.0%} to {high:.0%}: {named}. "
    where = where if outside else ""
    given = next((key for key in ("sparsity", "threshold", "plan") if key in m.command.options), None)
    if given is None and m.command.options.get("fit") == "bitnet":
        return (
            f"{where}BitNet's fit sets its own zeros; the exact one holds them at 44 % or less. "
            f"Run: {m.command.changed(fit=None)}"
        )
    if given is None:
        return (
            f"{where}Ask for a share of zeros inside the band, the size staying as it is. "
            f"Run: {m.command.changed(sparsity=0.4)}"
        )
    held = "without it zeros are held at 44 % or less"
    if quality_fails(m):
        found = passing_plan(m)
        if found is not None:
            return (
                f"{where}{OPTION_OF[given]} asks for it; {held}. {_change_of_plan(m, found)} "
                f"Run: {_command_for(m, found)}"
            )
    if given == "plan":  # the plan itself holds the zeros: make one for the same size instead
        command = m.command.changed(**_FREE, target_ratio=_down(m.ratio_file or LEAST_RATIO))
    else:
        command = m.command.changed(sparsity=None, threshold=None)
    same = _same_size(m)
    said = f" and {_predicted(m, same)}" if same is not None else ""
    return f"{where}{OPTION_OF[given]} asks for it; {held}, the size stays as it is{said}. Run: {command}"


def for_gradients(m: Measured) -> str:
    """The tensors whose gradient is unsound, what is wrong, and the plan that gives them a plane more."""
    if m.unsound:
        return press_again(m)
    if m.gradients is None:
        return ""
    failing = m.gradients.failing
    named = "; ".join(f"{name}: {fault}" for name, fault in failing[:NAMED])
    text = f"{len(failing)} of {m.gradients.tensors} tensors fail: {named}."
    if m.gradients.unmeasured:
        text += f" {m.gradients.unmeasured_words}."
    names = {name for name, _ in failing}
    with_more = [a for a in m.alternatives if names <= set(a.raised) and _passes(a)]
    found = max(with_more, key=lambda a: a.ratio, default=None) or passing_plan(m)
    if found is None:
        return f"{text} No plan of {LEAST_RATIO:g}x or more is known to mend it. {_training(m, other=False)}"
    return f"{text} {_change_of_plan(m, found)} Run: {_command_for(m, found)}"


ADVICE: dict[str, Callable[[Measured], str]] = {
    "ratio": for_ratio,
    "accuracy": for_quality,
    "perplexity": for_quality,
    "sparsity": for_sparsity,
    "gradient_flow": for_gradients,
}

_FREE: dict[str, Any] = {"planes": None, "sparsity": None, "threshold": None, "plan": None}
"""Options that a plan made for a ratio goes without."""


def press_again(m: Measured) -> str:
    """What is wrong with which tensors, and the line that presses those anew."""
    said = "; ".join(f"{name}: {reason}" for name, reason in m.unsound[:NAMED])
    count = len(m.unsound)
    what = "One tensor is" if count == 1 else f"{count} tensors are"
    them = "it" if count == 1 else "them"
    again = f"Press {them} again, and what was fitted to {them}"
    run = f" Run: {m.again}" if m.again else ""
    return f"{what} not what pressing should have made ({said}). {again}; the size stays as it is.{run}"


def quality_fails(m: Measured) -> bool:
    """Whether perplexity or accuracy is beyond its gate's limit."""
    change, kept = m.perplexity_change, m.accuracy_kept
    return (change is not None and not change <= MOST_CHANGE) or (kept is not None and not kept >= LEAST_KEPT)


def passing_plan(m: Measured) -> Any | None:
    """The alternative with the largest ratio that is predicted to pass every gate with something to spare."""
    good = [a for a in m.alternatives if a.ratio >= LEAST_RATIO and _passes(a)]
    return max(good, key=lambda a: a.ratio, default=None)


def _passes(other: Any) -> bool:
    kept = 1.0 if other.kept is None else other.kept
    return other.change <= SURE * MOST_CHANGE and 1.0 - kept <= SURE * (1.0 - LEAST_KEPT)


def _same_size(m: Measured) -> Any | None:
    near = [a for a in m.alternatives if m.ratio_file and abs(a.ratio / m.ratio_file - 1) < 0.01]
    better = [a for a in near if m.perplexity_change is None or a.change < m.perplexity_change]
    return better[0] if better and not m.command.options.get("planes") else None


def _change_of_plan(m: Measured, other: Any) -> str:
    """A sentence: which tensors get a plane more, and the predicted figures from and to."""
    before = m.ratio_file or 0.0
    if abs(other.ratio / before - 1) < 0.01 if before else False:
        head = "Another plan of the same size"
    elif len(other.raised) == 0:
        head = f"A plan at {other.ratio:.2f}x"
    else:
        more = len(other.raised) - NAMED
        names = ", ".join(other.raised[:NAMED]) + (f" and {more} more" if more > 0 else "")
        count = len(other.raised)
        head = f"A plane more for {count} tensor{'s' if count > 1 else ''} ({names})"
        if m.command.options.get("target_ratio") and before > other.ratio:
            head = f"At {before:.2f}x no other plan is predicted to pass. {head}"
    return f"{head}: {_predicted(m, other)}."


def _predicted(m: Measured, other: Any) -> str:
    said = []
    if m.perplexity_change is not None:
        said.append(f"predicted perplexity from {m.perplexity_change:+.1%} to {other.change:+.1%}")
    if m.accuracy_kept is not None and other.kept is not None:
        said.append(f"accuracy kept from {m.accuracy_kept:.1%} to {other.kept:.1%}")
    said.append(f"ratio from {m.ratio_file or 0.0:.2f} to {other.ratio:.2f}")
    return ", ".join(said)


def _command_for(m: Measured, other: Any) -> Command:
    return m.command.changed(**_FREE, target_ratio=_down(other.ratio))


def _training(m: Measured, other: bool) -> str:
    """Longer training: as many tokens as the loss curve says, or that it does not say so."""
    word = "Or f" if other else "F"
    done = m.fine_tuned_tokens
    wanted = math.log1p(SURE * MOST_CHANGE)
    foretold = projected(m.loss_curve, wanted)
    if foretold is not None:
        tokens, change = foretold
        command, instead = _trained(m, tokens), f"{tokens:,} tokens in place of {done:,}"
        now = f"{m.perplexity_change:+.1%}" if m.perplexity_change is not None else "now"
        said = f"predicted from the loss curve: perplexity from {now} to {math.expm1(change):+.1%}"
        if change > wanted:
            return (
                f"{word}ine-tuning alone is not foreseen to do it: {instead}, {said}. That run: {command}"
            )
        return f"{word}ine-tune {instead} at the same size, {said}. Run: {command}"
    tokens = max(FIRST_TOKENS, 2 * done)
    why = "the loss curve is too short" if done else "a loss curve comes with the first training"
    said = f"whether that is enough cannot be foretold yet: {why}"
    return f"{word}ine-tune {tokens:,} tokens at the same size ({said}). Run: {_trained(m, tokens)}"


def _trained(m: Measured, tokens: int) -> Command:
    return m.command.changed(epochs=None, minutes=None, finetune=None, tokens=tokens)


def projected(curve: Sequence[tuple[int, float]], wanted: float) -> tuple[int, float] | None:
    """(tokens, log perplexity change there) at which the curve comes to `wanted`, at most `LONGEST` times the
    tokens so far; None where it is too short to tell or no longer falls.

    `curve`: (tokens, log of perplexity over the original's). Each doubling is taken to win what the last one
    won, which is what such curves do over a few doublings.
    """
    points = [p for p in curve if p[0] > 0]
    if len(points) < 3:
        return None
    last, now = points[-1][0], min(value for _, value in points)
    before = [value for tokens, value in points if tokens <= 0.55 * last]
    won = (min(before) if before else points[0][1]) - now
    if won <= 1e-4:
        return None
    doublings = min(max(0.0, (now - wanted) / won), math.log2(LONGEST))
    tokens = int(math.ceil(last * 2**doublings / 10_000) * 10_000)
    return max(tokens, last), now - won * doublings


def _down(ratio: float) -> float:
    """Rounded down, so that the planner has room for what was promised."""
    return math.floor(ratio * 100 + 1e-9) / 100


def names_of(layers: Sequence[Mapping[str, Any]]) -> str:
    """The first few names."""
    return ", ".join(str(x["name"]) for x in layers[:NAMED])
