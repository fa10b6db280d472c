"""HTML that escapes by itself, with the standard library alone: what is no `Markup` is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tritpress.dashboard.report.svg import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()

    def __add__(self, other: str) -> Markup:
        return Markup(str.__add__(self, _safe(other)))


def markup(template: str, *values: Any) -> Markup:
    """`template` with its `{}` filled in, each value escaped unless it is Markup."""
    return Markup(template.format(*map(_safe, values)))


def join(parts: Iterable[str]) -> Markup:
    """The parts in a row."""
    return Markup("".join(_safe(part) for part in parts))


def empty(title: str, words: str) -> Markup:
    """What stands where there is nothing, and why."""
    return markup('<p class="empty"><b>{}.</b> {}</p>', title.rstrip("."), words)


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], kinds: Sequence[str] = (), about: str = ""
) -> Markup:
    """A table; `kinds` are the classes of its columns, the first column is the rows' heading."""
    classes = [*kinds, *[""] * (len(head) - len(kinds))]
    titles = join(
        markup('<th scope="col"{}>{}</th>', _class("left" if kind in ("wide", "left") else ""), title)
        for title, kind in zip(head, classes)
    )
    body = join(
        markup("<tr>{}</tr>", join(
            markup('<th scope="row"{}>{}</th>' if at == 0 else "<td{}>{}</td>", _class(kind), cell)
            for at, (cell, kind) in enumerate(zip(row, classes))
        ))
        for row in rows
    )  # fmt: skip
    return markup(
        '<div class="scroll"><table{}><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>',
        _class(about),
        titles,
        body,
    )


def _class(name: str) -> Markup:
    return Markup(f' class="{name}"') if name else Markup("")


def _safe(value: Any) -> str:
    return str.__str__(value) if isinstance(value, Markup) else escape(value)
