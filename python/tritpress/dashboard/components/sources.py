"""Data of a chart, brought up to date with as little traffic as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import ColumnDataSource


def sync(source: ColumnDataSource, columns: Mapping[str, Sequence[Any]]) -> str:
    """Make `source` hold `columns`: nothing, a patch of single cells, a stream of new rows, or all of it.

    Returns which of the four it was. Never two of them at once: the browser takes them in one by one and may
    draw in between, with columns of different lengths.
    """
    new = {name: list(values) for name, values in columns.items()}
    old = {name: list(values) for name, values in source.data.items()}
    length = len(next(iter(new.values()), []))
    before = len(next(iter(old.values()), []))
    if set(new) != set(old) or length < before:
        source.data = new
        return "all"
    patches = {
        name: [(i, new[name][i]) for i in range(before) if not _same(old[name][i], new[name][i])]
        for name in new
    }
    patches = {name: changes for name, changes in patches.items() if changes}
    changed = sum(len(changes) for changes in patches.values())
    if not patches and length == before:
        return "nothing"
    if not patches and before:
        source.stream({name: values[before:] for name, values in new.items()})
        return "stream"
    if length > before or changed > before * len(new) / 2:
        source.data = new
        return "all"
    source.patch(patches)
    return "patch"


def _same(a: Any, b: Any) -> bool:
    return a == b or (a != a and b != b)
