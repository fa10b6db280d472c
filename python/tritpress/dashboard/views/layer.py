"""One tensor of a run as data: its figures and its weights' histogram before and after."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.overview import Fact
from tritpress.dashboard.views.status import State

CHUNK = 4 << 20


@dataclass(frozen=True)
class Histogram:
    """Share of the weights in each bin of w / mean|w| of its group; the end bins hold what lies beyond."""

    edges: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class LayerView:
    name: str
    facts: tuple[Fact, ...]
    histogram: Histogram | None


def find_layer(events_path: Path, name: str) -> dict[str, Any] | None:
    """The last `layer.finished` event of that tensor (the snapshot keeps no histograms); None without one.

    Lines are looked at as bytes first, so that a log of a million events takes about a second.
    """
    wanted, kind = json.dumps(name).encode(), b'"layer.finished"'
    found: dict[str, Any] | None = None
    rest = b""
    try:
        with open(events_path, "rb") as file:
            while chunk := file.read(CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if kind in line and wanted in line:
                        event = json.loads(line)
                        if event.get("type") == "layer.finished" and event.get("name") == name:
                            found = event
    except (OSError, ValueError):
        return found
    return found


def layer_view(event: dict[str, Any], state: State) -> LayerView:
    """Figures of the tensor, how they were chosen, and its histogram."""
    plan = (state.get("plan") or {}).get("tensors") or []
    planned: dict[str, Any] = next((tensor for tensor in plan if tensor.get("name") == event["name"]), {})
    group = event.get("group_size")
    facts = (
        Fact("Shape", f"{fig.count(event.get('rows'))} × {fig.count(event.get('cols'))}"),
        Fact("Planes", fig.count(event.get("planes"))),
        Fact("Bits a weight", fig.significant(event.get("bits"))),
        Fact("Ratio", f"{fig.ratio(event.get('ratio'))} smaller than float32"),
        Fact(
            "Zeros",
            f"{fig.percent(event.get('sparsity'))} of the codes · "
            f"{fig.percent(event.get('zeros_all_planes'))} in every plane",
        ),
        Fact("Mean squared error", fig.significant(event.get("mse"))),
        Fact("Cosine", fig.significant(event.get("cosine"), 4)),
        Fact("Scale shared by", "a whole row" if group == 0 else f"{fig.count(group)} inputs"),
        Fact("Method", str(planned.get("method") or fig.NOTHING)),
    )
    return LayerView(str(event["name"]), facts, _histogram(event.get("histogram")))


def _histogram(counts: Any) -> Histogram | None:
    if not isinstance(counts, dict) or not counts.get("before") or not counts.get("after"):
        return None
    bins = len(counts["before"])
    low, high = float(counts.get("lo", -4)), float(counts.get("hi", 4))
    edges = tuple(low + (high - low) * i / bins for i in range(bins + 1))
    return Histogram(edges, _shares(counts["before"]), _shares(counts["after"]))


def _shares(counts: list[int]) -> tuple[float, ...]:
    total = sum(counts) or 1
    return tuple(count / total for count in counts)
