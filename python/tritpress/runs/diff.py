"""What pressing did to each tensor of a run: the figures before and after, worst first. Base install only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorDiff:
    """One pressed tensor against its source. None: not recorded (a run of an older version).

    error: squared error over squared norm; sign_flips: share of nonzero weights that changed sign; zeros:
    share of zero codes over all planes; zeros_all_planes: share of weights that are 0 in every plane.
    """

    name: str
    layer: int | None
    kind: str
    planes: int
    bits: float
    error: float | None
    cosine: float | None
    sign_flips: float | None
    zeros: float | None
    zeros_all_planes: float | None
    rows: int
    cols: int


SORTS: dict[str, bool] = {
    "error": True,
    "cosine": False,
    "sign_flips": True,
    "zeros": True,
    "zeros_all_planes": True,
    "planes": False,
    "bits": False,
    "name": False,
    "layer": False,
    "kind": False,
}
"""What tensors can be sorted by -> whether the worst (or first) ones have the largest values."""


def tensor_diffs(state: dict[str, Any]) -> list[TensorDiff]:
    """Every tensor that the run has pressed so far, in the order it did."""
    return [
        TensorDiff(
            str(name),
            layer.get("layer"),
            str(layer.get("kind") or "other"),
            int(layer.get("planes") or 0),
            float(layer.get("bits") or 0.0),
            layer.get("relative_error"),
            layer.get("cosine"),
            layer.get("sign_flips"),
            layer.get("sparsity"),
            layer.get("zeros_all_planes"),
            int(layer.get("rows") or 0),
            int(layer.get("cols") or 0),
        )
        for name, layer in state["layers"].items()
    ]


def ordered(
    diffs: Iterable[TensorDiff], by: str = "error", descending: bool | None = None
) -> list[TensorDiff]:
    """Sorted by that figure, worst first unless said otherwise; what has no figure comes last."""
    down = SORTS[by] if descending is None else descending
    known: list[TensorDiff] = []
    unknown: list[TensorDiff] = []
    for diff in diffs:
        (unknown if getattr(diff, by) is None else known).append(diff)
    known.sort(key=lambda diff: getattr(diff, by), reverse=down)
    return known + unknown


def matching(diffs: Iterable[TensorDiff], text: str) -> list[TensorDiff]:
    """Those whose name holds every word of `text`, in any case; a word may also be the kind itself."""
    words = text.lower().split()
    return [d for d in diffs if all(word in d.name.lower() or word == d.kind for word in words)]
