"""The start page: all runs there are."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tritpress.dashboard.components.html import Fragment, Markup, empty, join, panel
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views.runs import RunLine, run_lines


class Runs(Tab):
    key = "runs"
    title = "Runs"
    interests = frozenset({"runs"})
    listed = -1

    @property
    def pending(self) -> bool:
        return self.built and self.page.store.list_version != self.listed

    def take_up(self) -> None:
        self.update(None, None)

    def build(self) -> list[Any]:
        self.list = Fragment()
        return [self.list.pane]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.listed = self.page.store.list_version
        self.list.set(_start(run_lines(self.page.store.runs)))


def _start(lines: list[RunLine]) -> Markup:
    if not lines:
        return empty(
            "No runs yet", "Choose a model at the left and press Start: every run will be listed here."
        )
    head = Markup("<tr>{}</tr>").format(
        join(
            Markup('<th class="{}">{}</th>').format("left" if name in ("State", "Model") else "", name)
            for name in (
                "Run",
                "State",
                "Model",
                "Ratio",
                "Bits a weight",
                "Perplexity change",
                "Gates",
                "Started",
            )
        )
    )
    body = join(
        Markup(
            '<tr><td><a href="?run={}">{}</a></td><td class="left {}">{} {}</td>'
            '<td class="left wide">{}</td><td>{}</td>'
            "<td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>"
        ).format(
            quote(line.id, safe=""),
            line.name,
            line.tone,
            line.mark,
            line.label,
            line.model,
            line.ratio,
            line.bits,
            line.perplexity,
            line.gates,
            line.started,
        )
        for line in lines
    )
    intro = Markup('<p class="soft" style="margin-bottom:14px">{}</p>').format(
        "Choose a model at the left and press Start, or open a run."
    )
    table = Markup('<div class="scroll"><table class="runs"><thead>{}</thead><tbody>{}</tbody></table></div>')
    return intro + panel("Runs", table.format(head, body))
