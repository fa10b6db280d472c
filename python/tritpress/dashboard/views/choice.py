"""What was chosen for a tensor and why, in sentences made of the plan's and the run's own figures."""

from __future__ import annotations

from typing import Any

from tritpress.dashboard.views import figures as fig

METHODS = {
    "gptq": "the calibrated sweep (gptq): errors of early inputs are made up for by later ones",
    "weighted": "a fit of each group by its weights, its inputs weighed by the calibration (weighted)",
    "fast": "a fit of each group by its weights (fast)",
}

ORDINALS = {2: "second", 3: "third"}


def chosen(
    layer: dict[str, Any],
    planned: dict[str, Any],
    plan: dict[str, Any],
    config: dict[str, Any],
    threshold: float | None,
) -> tuple[str, ...]:
    """Sentences on planes, what others would cost, method, threshold and zeros of a pressed tensor."""
    return tuple(
        sentence
        for sentence in (
            _planes(layer),
            *_cost(layer, planned, plan, config),
            _method(planned),
            _threshold(threshold, config),
            _zeros(layer, planned, config),
            "Fine-tuning changed it afterwards: the figures are those of the trained tensor."
            if layer.get("fine_tuned")
            else "",
        )
        if sentence
    )


def _planes(layer: dict[str, Any]) -> str:
    planes, bits = layer.get("planes"), layer.get("bits")
    if not fig.known(planes):
        return ""
    kind = "one ternary plane, the 1.58-bit form" if planes == 1 else f"a sum of {int(planes)} ternary planes"
    return (
        f"{fig.plural(int(planes), 'plane')}: {kind}, {fig.significant(bits)} bits a weight with its scales."
    )


def _cost(
    layer: dict[str, Any], planned: dict[str, Any], plan: dict[str, Any], config: dict[str, Any]
) -> list[str]:
    planes = int(planned.get("planes") or layer.get("planes") or 0)
    losses, loss = planned.get("plane_losses"), planned.get("predicted_loss")
    calibrated = plan.get("basis") == "calibrated"
    found = []
    if config.get("planes") is not None:
        found.append(
            f"{fig.plural(int(config['planes']), 'plane')} for every tensor: asked for, not weighed."
        )
    elif config.get("plan") is not None:
        found.append("The number of planes stands in the plan file that was given.")
    if isinstance(losses, list) and calibrated and 1 <= planes <= len(losses) and all(map(fig.known, losses)):
        found += _weighed(layer, [float(value) for value in losses], planes, loss)
    elif fig.known(loss) and calibrated:
        found.append(f"Foretold to cost {_nats(loss)}; other numbers of planes were not recorded.")
    elif fig.known(loss):
        found.append(
            "No calibration: the planner weighed the squared error of the weights, foretold as "
            f"{fig.percent(loss, 3)} of the model's for this tensor."
        )
    elif not found:
        found.append("This run did not record what other numbers of planes would have cost.")
    return found


def _weighed(layer: dict[str, Any], losses: list[float], planes: int, loss: float | None) -> list[str]:
    """Against one plane less and one more: what the last plane saved, for how many bytes.

    The calibration foretells its losses at one group size; a tensor that was given another has its own loss,
    and what other numbers of planes would cost is then told by how many times as much.
    """
    if fig.known(loss) and losses[planes - 1] > 0:
        losses = [value * loss / losses[planes - 1] for value in losses]
    found = [f"Foretold to cost {_nats(losses[planes - 1])}."]
    plane_bytes = _bytes_of_a_plane(layer)
    if planes > 1:
        fewer, saved = losses[planes - 2], losses[planes - 2] - losses[planes - 1]
        gain = f": the {ORDINALS.get(planes, 'last')} plane saves {_nats(saved)}{_for(plane_bytes)}"
        found.append(
            f"{_count(planes - 1)} would cost about {_nats(fewer)}{_times(fewer, losses[planes - 1])}"
            f"{gain if saved > 0 else ''}."
        )
    if planes < len(losses) and (more := losses[planes - 1] - losses[planes]) > 0:
        found.append(
            f"A {ORDINALS.get(planes + 1, 'further')} one would save {_nats(more)} more"
            f"{_for(plane_bytes)}: at this target those bytes save more elsewhere."
        )
    return found


def _count(planes: int) -> str:
    return "One" if planes == 1 else "Two" if planes == 2 else str(planes)


def _times(other: float, chosen_loss: float) -> str:
    if chosen_loss <= 0 or other <= chosen_loss:
        return ""
    return f", {fig.significant(other / chosen_loss, 2)} times as much"


def _for(plane_bytes: float | None) -> str:
    return f" for {fig.size(plane_bytes)}" if plane_bytes else ""


def _bytes_of_a_plane(layer: dict[str, Any]) -> float | None:
    size, planes = layer.get("bytes"), layer.get("planes")
    return size / planes if fig.known(size) and fig.known(planes) and planes else None


def _nats(loss: float) -> str:
    return f"{fig.significant(loss, 2)} nats a token"


def _method(planned: dict[str, Any]) -> str:
    method = planned.get("method")
    return f"Made by {METHODS.get(str(method), str(method))}." if method else ""


def _threshold(threshold: float | None, config: dict[str, Any]) -> str:
    asked = config.get("threshold")
    if fig.known(asked):
        return f"The threshold asked for is {fig.significant(asked)} times the group's mean |weight|."
    if not fig.known(threshold):
        return ""
    return (
        f"Its threshold came out at {fig.significant(threshold)} times the group's mean |weight| "
        "(median over the groups): what lies below is 0 in the first plane."
    )


def _zeros(layer: dict[str, Any], planned: dict[str, Any], config: dict[str, Any]) -> str:
    zeros, asked = layer.get("sparsity"), config.get("sparsity")
    if not fig.known(zeros):
        return ""
    if fig.known(asked):
        limit = f"{fig.percent(asked, 0)} were asked for"
    elif fig.known(planned.get("sparsity")):
        limit = f"the plan asks for {fig.percent(planned['sparsity'], 0)}"
    elif asked == "free" or config.get("threshold") is not None or planned.get("max_sparsity", 0) is None:
        limit = "there is no ceiling"
    else:
        limit = "the ceiling is 44 %"
    return f"{fig.percent(zeros)} of its codes are zero; {limit}."
