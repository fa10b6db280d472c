"""One tensor of a run as data: its figures, what was chosen for it and why, its weights before and after."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.choice import chosen
from tritpress.dashboard.views.overview import Fact
from tritpress.dashboard.views.status import State
from tritpress.events.reader import whole_lines

if TYPE_CHECKING:
    from tritpress.runs.details import TensorDetails


@dataclass(frozen=True)
class Histogram:
    """Share of the weights in each bin of w / mean|w| of its group; the end bins hold what lies beyond."""

    edges: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    sample: str  # whose weights these are


@dataclass(frozen=True)
class Scales:
    """Share of the scales in each bin, and (plane, least, median, largest) as text."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    planes: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class Found:
    """What a run's folder has of a tensor. Runs of before the details have the events' histogram alone."""

    name: str
    details: TensorDetails | None = None
    event: dict[str, Any] | None = None


@dataclass(frozen=True)
class LayerView:
    name: str
    place: str
    facts: tuple[Fact, ...]
    why: tuple[str, ...]
    histogram: Histogram | None = None
    thresholds: tuple[float, ...] = ()  # where lines stand in the histogram of before
    threshold_words: str = ""
    scales: Scales | None = None
    missing: str = ""  # what this run did not record


def look_up(run_path: Path, name: str) -> Found:
    """What the run recorded of that tensor; `event` is left out: a log may be long (`find_layer`)."""
    from tritpress.runs.details import load_details

    return Found(name, load_details(run_path, name))


def look_through(run_path: Path, name: str) -> Found:
    """What the log of a run without details has of that tensor; call it beside the server's loop."""
    return Found(name, None, find_layer(run_path / "events.jsonl", name))


def find_layer(events_path: Path, name: str) -> dict[str, Any] | None:
    """The last `layer.finished` event of that tensor (the snapshot keeps no histograms); None without one.

    Lines are looked at as bytes first, so that a log of a million events takes about a second.
    """
    wanted, kind = json.dumps(name).encode(), b'"layer.finished"'
    found: dict[str, Any] | None = None
    try:
        with open(events_path, "rb") as file:
            for lines in whole_lines(file):
                for line in lines:
                    if kind in line and wanted in line:
                        event = json.loads(line)
                        if event.get("type") == "layer.finished" and event.get("name") == name:
                            found = event
    except (OSError, ValueError):
        return found
    return found


def layer_view(layer: dict[str, Any], found: Found, state: State) -> LayerView:
    """Figures of a pressed tensor, how they were chosen, and its weights. `layer` is the snapshot's."""
    name = str(layer["name"])
    plan = state.get("plan") or {}
    planned: dict[str, Any] = next((t for t in plan.get("tensors") or [] if t.get("name") == name), {})
    details = found.details
    threshold = layer.get("threshold_used")
    if threshold is None and details is not None:
        threshold = details.threshold_used
    event = found.event or {}
    histogram = _recorded(details) if details is not None else _histogram(event.get("histogram"))
    missing = ""
    if details is None:
        missing = "This run recorded no details of its tensors" + (
            ": the histogram is the event log's, and there are neither scales nor a threshold."
            if histogram is not None
            else ", and its log has no histogram of this one."
        )
    return LayerView(
        name,
        place_words(layer),
        _facts(layer, details, planned),
        chosen(layer, planned, plan, state.get("config") or {}, threshold),
        histogram,
        (-threshold, threshold) if fig.known(threshold) and 0 < threshold < 4 else (),
        f"dashed: threshold ±{fig.significant(threshold)}" if fig.known(threshold) else "",
        _scales(details) if details is not None else None,
        missing,
    )


def place_words(layer: dict[str, Any]) -> str:
    """`layer 3 · k`."""
    number = layer.get("layer")
    where = "outside the layers" if number is None else f"layer {number}"
    return f"{where} · {layer.get('kind') or 'other'}"


def _facts(layer: dict[str, Any], details: TensorDetails | None, planned: dict[str, Any]) -> tuple[Fact, ...]:
    group = layer.get("group_size")
    cosine = layer.get("cosine")
    relative = layer.get("relative_error")
    if relative is None and details is not None:
        relative = details.relative_error
    flips = layer.get("sign_flips")
    if flips is None and details is not None:
        flips = details.sign_flips
    facts = [
        Fact("Shape", fig.shape(layer)),
        Fact("Planes", fig.count(layer.get("planes"))),
        Fact("Bits a weight", fig.significant(layer.get("bits"))),
        Fact("Ratio", f"{fig.ratio(layer.get('ratio'))} smaller than float32"),
        Fact(
            "Zeros",
            f"{fig.percent(layer.get('sparsity'))} of the codes · "
            f"{fig.percent(layer.get('zeros_all_planes'))} in every plane",
        ),
        Fact("Mean squared error", fig.significant(layer.get("mse"))),
        Fact("Squared error / squared norm", fig.percent(relative, 2)),
        Fact("Cosine", fig.significant(cosine, 4)),
        Fact("Sign flips", f"{fig.percent(flips, 2)} of the weights that are not 0"),
        Fact("Scale shared by", "a whole row" if group == 0 else f"{fig.count(group)} inputs"),
        Fact("Method", str(planned.get("method") or fig.NOTHING)),
        Fact("Time", fig.duration(layer.get("seconds"))),
    ]
    return tuple(fact for fact in facts if not fact.value.startswith(fig.NOTHING))


def _recorded(details: TensorDetails) -> Histogram:
    sample = (
        f"all {fig.plural(details.rows, 'row')}"
        if details.sampled_rows >= details.rows
        else f"{fig.count(details.sampled_rows)} of {fig.count(details.rows)} rows, evenly spaced"
    )
    edges = tuple(float(edge) for edge in details.histogram_edges)
    return Histogram(edges, _shares(details.histogram_before), _shares(details.histogram_after), sample)


def _histogram(counts: Any) -> Histogram | None:
    if not isinstance(counts, dict) or not counts.get("before") or not counts.get("after"):
        return None
    bins = len(counts["before"])
    low, high = float(counts.get("lo", -4)), float(counts.get("hi", 4))
    edges = tuple(low + (high - low) * i / bins for i in range(bins + 1))
    return Histogram(edges, _shares(counts["before"]), _shares(counts["after"]), "all rows")


def _scales(details: TensorDetails) -> Scales:
    planes = tuple(
        (f"Plane {number}", *(fig.significant(float(value)) for value in row))
        for number, row in enumerate(details.scales, start=1)
    )
    edges = tuple(float(edge) for edge in details.scale_edges)
    return Scales(edges, _shares(details.scale_histogram), planes)  # type: ignore[arg-type]


def _shares(counts: Iterable[Any]) -> tuple[float, ...]:
    numbers = [int(count) for count in counts]
    total = sum(numbers) or 1
    return tuple(number / total for number in numbers)
