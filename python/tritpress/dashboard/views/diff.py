"""The Diff tab as data: a page of the sorted table of tensors, and pictures of one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.status import State
from tritpress.runs.details import TensorDetails
from tritpress.runs.diff import SORTS, TensorDiff, matching, ordered, tensor_diffs

PAGE = 20
"""Tensors on one page of the table."""

COLUMNS = {
    "name": "Tensor",
    "kind": "Kind",
    "error": "Relative error",
    "cosine": "Cosine",
    "sign_flips": "Sign flips",
    "zeros": "Zero codes",
    "planes": "Planes",
    "bits": "Bits",
}


@dataclass(frozen=True)
class DiffPage:
    """`lines`: the tensor's name and its cells. `found` of `total` tensors match the search."""

    lines: tuple[tuple[str, tuple[str, ...]], ...]
    page: int
    pages: int
    found: int
    total: int
    words: str


def diff_page(
    state: State, sort: str = "error", descending: bool | None = None, page: int = 0, search: str = ""
) -> DiffPage:
    """One page of the table; a page beyond the last one is the last one."""
    diffs, found = tensor_diffs(state), diff_list(state, sort, descending, search)
    pages = max(1, -(-len(found) // PAGE))
    page = min(max(page, 0), pages - 1)
    lines = tuple((diff.name, _cells(diff)) for diff in found[page * PAGE : (page + 1) * PAGE])
    return DiffPage(lines, page, pages, len(found), len(diffs), _words(diffs, found, page, search))


def page_holding(state: State, sort: str, descending: bool | None, search: str, name: str) -> int | None:
    """The page on which that tensor stands."""
    found = diff_list(state, sort, descending, search)
    return next((place // PAGE for place, diff in enumerate(found) if diff.name == name), None)


def diff_list(state: State, sort: str, descending: bool | None, search: str) -> list[TensorDiff]:
    """Every tensor that the search finds, in that order."""
    return ordered(matching(tensor_diffs(state), search), sort if sort in SORTS else "error", descending)


def _cells(diff: TensorDiff) -> tuple[str, ...]:
    return (
        diff.name,
        diff.kind,
        error_words(diff.error),
        f"{diff.cosine:.4f}" if fig.known(diff.cosine) else fig.NOTHING,
        share_words(diff.sign_flips),
        fig.percent(diff.zeros),
        str(diff.planes),
        f"{diff.bits:.2f}",
    )


def error_words(error: float | None) -> str:
    """A relative squared error in per cent, with three digits."""
    return f"{fig.significant(100 * error)} %" if fig.known(error) else fig.NOTHING


def share_words(share: float | None) -> str:
    """A share that may be far below one per cent."""
    if not fig.known(share):
        return fig.NOTHING
    return "0 %" if share == 0 else f"{fig.significant(100 * share, 2)} %"


def _words(diffs: list[TensorDiff], found: list[TensorDiff], page: int, search: str) -> str:
    if not found:
        return f"No tensor of {fig.plural(len(diffs), 'tensor')} matches {search!r}"
    first = page * PAGE + 1
    words = f"{first}–{min(first + PAGE - 1, len(found))} of {fig.plural(len(found), 'tensor')}"
    return words + (f" that match {search!r}, {len(diffs):,} in all" if search.strip() else "")


@dataclass(frozen=True)
class Bars:
    """Shares of the weights in each bin of w / mean|w| of its group."""

    left: tuple[float, ...]
    right: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """Blocks before, after and their error, first row at the top; `limit` is the end of the colour scale of
    the weights, `largest` that of the error. `twins` has a table of each: what it is, its cells by bands of
    rows and columns.
    """

    before: np.ndarray
    after: np.ndarray
    error: np.ndarray
    limit: float
    largest: float
    words: tuple[str, ...]
    twins: dict[str, tuple[str, tuple[tuple[str, ...], ...]]]


@dataclass(frozen=True)
class TensorView:
    name: str
    facts: tuple[tuple[str, str], ...]
    bars: Bars
    picture: Picture


def tensor_view(name: str, layer: dict[str, Any], details: TensorDetails) -> TensorView:
    """Everything that is shown of a chosen tensor."""
    return TensorView(name, _facts(layer, details), _bars(details), _picture(details))


def _facts(layer: dict[str, Any], details: TensorDetails) -> tuple[tuple[str, str], ...]:
    sampled = details.sampled_rows < details.rows
    scales = (
        f"{fig.significant(low)} to {fig.significant(high)}, median {fig.significant(median)}"
        for low, median, high in details.scales
    )
    return (
        ("Shape", fig.shape(layer)),
        ("Planes", f"{details.planes} · {layer.get('bits', 0):.2f} bits a weight"),
        ("Relative error", error_words(details.relative_error)),
        ("Cosine", f"{details.cosine:.5f}"),
        ("Sign flips", share_words(details.sign_flips)),
        ("Zero codes", " · ".join(fig.percent(share) for share in details.zeros_by_plane) + _each(details)),
        ("Weights at 0", fig.percent(details.zeros_in_value)),
        *((f"Scales, plane {plane + 1}", words) for plane, words in enumerate(scales)),
        (
            "Threshold",
            f"{details.threshold_used:.2f} × the group's mean |w|"
            if fig.known(details.threshold_used)
            else fig.NOTHING,
        ),
        (
            "Seen",
            f"{fig.count(details.sampled_rows)} of {fig.count(details.rows)} rows, evenly spaced"
            if sampled
            else f"all {fig.plural(details.rows, 'row')}",
        ),
    )


def _each(details: TensorDetails) -> str:
    return " by plane" if details.planes > 1 else ""


def _bars(details: TensorDetails) -> Bars:
    edges = details.histogram_edges
    before, after = (
        counts / max(int(counts.sum()), 1) for counts in (details.histogram_before, details.histogram_after)
    )
    return Bars(tuple(edges[:-1]), tuple(edges[1:]), tuple(before), tuple(after))


def _picture(details: TensorDetails) -> Picture:
    before, after, error = details.block_before, details.block_after, details.block_error
    limit = float(max(np.abs(before).max(), np.abs(after).max())) or 1.0
    largest = float(error.max()) or 1.0
    height, width = error.shape
    worst = np.unravel_index(int(error.argmax()), error.shape)
    same = float(np.mean(np.sign(before) == np.sign(after)))
    rows, cols = details.rows, details.cols

    def span(place: int, count: int, size: int) -> str:
        return f"{place * size // count:,}–{max((place + 1) * size // count - 1, place * size // count):,}"

    words = (
        f"{height} × {width} blocks of about {fig.significant(rows / height, 2)} × "
        f"{fig.significant(cols / width, 2)} weights; each shows its mean before and after, and the root "
        "mean square of the error.",
        f"{fig.percent(same, 0)} of the blocks keep the sign of their mean. Error from "
        f"{fig.significant(float(error.min()))} to {fig.significant(largest)}, largest in rows "
        f"{span(int(worst[0]), height, rows)}, columns {span(int(worst[1]), width, cols)}.",
    )
    twins = {
        "before": ("Mean weight before", _twin(before)),
        "after": ("Mean weight after", _twin(after)),
        "error": ("Root mean square error", _twin(np.square(error.astype(np.float64)), np.sqrt)),
    }
    return Picture(before, after, error, limit, largest, words, twins)


def _twin(
    blocks: np.ndarray, of_mean: Callable[[float], float] = lambda mean: mean
) -> tuple[tuple[str, ...], ...]:
    """Means on a grid of at most 8 x 8, as text; `of_mean` makes of each what is written."""
    bands = [
        np.array_split(band, min(8, blocks.shape[1]), axis=1)
        for band in np.array_split(blocks.astype(np.float64), min(8, blocks.shape[0]), axis=0)
    ]
    return tuple(tuple(fig.significant(float(of_mean(cell.mean())), 2) for cell in row) for row in bands)
