"""Diff: every pressed tensor before and after, worst first; one of them in pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.export import CSV, Downloads
from tritpress.dashboard.components.html import Fragment, Markup, empty
from tritpress.dashboard.components.pictures import TensorPictures
from tritpress.dashboard.components.sorttable import SortTable
from tritpress.dashboard.report.facts import file_name
from tritpress.dashboard.report.tables import csv_text
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.diff import COLUMNS, diff_list, diff_page, page_holding, tensor_view
from tritpress.dashboard.views.ending import broke_off, over
from tritpress.dashboard.views.status import status_of
from tritpress.runs.details import load_details, stamp
from tritpress.runs.diff import SORTS, TensorDiff

KINDS = {"name": "left wide", "kind": "left"}


class Diff(Tab):
    key = "diff"
    title = "Diff"
    interests = frozenset(
        {"run.started", "run.finished", "run.failed", "liveness", "model", "layer.finished", "step.started"}
    )

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self._plain()

    def _plain(self) -> None:
        self.sort, self.descending, self.number = "error", SORTS["error"], 0
        self.search, self.chosen = "", ""
        self.drawn: Any = None  # name and stamp of the details on the page
        self.last: Shown | None = None

    def forget(self) -> None:
        super().forget()
        self._plain()

    def query(self) -> dict[str, str]:
        found = {}
        if (self.sort, self.descending) != ("error", SORTS["error"]):
            found["sort"] = self.sort + ("" if self.descending == SORTS[self.sort] else ".reverse")
        if self.number:
            found["page"] = str(self.number + 1)
        if self.search:
            found["find"] = self.search
        if self.chosen:
            found["tensor"] = self.chosen
        return found

    def go(self, query: Mapping[str, str]) -> None:
        sort, _, reverse = query.get("sort", "error").partition(".")
        self.sort = sort if sort in SORTS else "error"
        self.descending = SORTS[self.sort] != (reverse == "reverse")
        page = query.get("page", "")
        self.number = fig.page(page)
        self.search, self.chosen = query.get("find", "")[:200], query.get("tensor", "")[:500]
        if self.built:
            self._quietly(self.find, value=self.search, value_input=self.search)

    def build(self) -> list[Any]:
        self.words, self.placeholder = Fragment(), Fragment()
        self.words.pane.sizing_mode = None
        self.find = pmui.TextInput(
            label="Find a tensor", value=self.search, placeholder="layers.3 down", size="small", width=260,
            margin=(0, 12, 0, 0),
        )  # fmt: skip
        self.find.param.watch(self._searched, "value_input")
        self.pages = pmui.Pagination(
            count=1, value=0, show_first_button=True, show_last_button=True, size="small",
            margin=(4, 12, 0, 0),
        )  # fmt: skip
        self.pages.param.watch(self._turned, "value")
        self.csv = Downloads(self._give, sizing_mode=None)
        self.csv.show([["csv", "All as CSV", ""]])
        self.tools = pn.FlexBox(
            self.find, self.pages, self.words.pane, self.csv, sizing_mode="stretch_width",
            align_items="center", gap="8px", margin=(0, 0, 10, 0),
        )  # fmt: skip
        self.table = SortTable(
            [(key, title, KINDS.get(key, "")) for key, title in COLUMNS.items()],
            "Tensors before and after pressing",
            self._sorted,
            self._chosen,
        )
        self.pictures = TensorPictures()
        self.drawn = None
        return [self.placeholder.pane, self.tools, self.table, self.pictures.column]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        layers = shown.state["layers"] if shown is not None else {}
        self.tools.visible = self.table.visible = bool(layers)
        self.placeholder.pane.visible = not layers
        if shown is None or not layers:
            self.pictures.say(None)
            self.placeholder.set(_nothing(shown))
            return
        self._show_table(shown)
        self._show_tensor(shown)

    def _show_table(self, shown: Shown) -> None:
        made = diff_page(shown.state, self.sort, self.descending, self.number, self.search)
        if made.found:
            self.number = made.page
        self.table.show(made.lines, self.sort, self.descending, self.chosen)
        self.words.set(Markup('<span class="soft small" data-diff-words>{}</span>').format(made.words))
        self.pages.visible = made.pages > 1
        self._quietly(self.pages, count=made.pages, value=made.page)

    def _show_tensor(self, shown: Shown) -> None:
        name = self.chosen
        if not name:
            self.drawn = None
            self.pictures.say(None)
            return
        layer, mark = shown.state["layers"].get(name), (name, stamp(shown.path, name))
        if layer is not None and self.drawn == mark:
            return
        details = load_details(shown.path, name) if layer is not None else None
        if layer is None:
            words = ("Not pressed", "") if over(shown.state, shown.lost) else ("Not pressed yet", " so far")
            self.pictures.say(empty(words[0], f"There are no figures of {name} in this run{words[1]}."))
        elif details is None:
            self.pictures.say(
                empty("Nothing recorded", f"The run kept no details of {name}: it is of an older version.")
            )
        else:
            self.pictures.show(tensor_view(name, layer, details))
        self.drawn = mark if details is not None else None

    _quiet = False

    def _quietly(self, part: Any, **values: Any) -> None:
        changed = {key: value for key, value in values.items() if getattr(part, key) != value}
        if not changed:
            return
        self._quiet = True
        try:
            part.param.update(**changed)
        finally:
            self._quiet = False

    def _sorted(self, column: str) -> None:
        if column not in SORTS:
            return
        self.descending = not self.descending if column == self.sort else SORTS[column]
        self.sort, self.number = column, 0
        self._again()

    def _chosen(self, name: str) -> None:
        self.chosen = "" if name == self.chosen else name
        self._again()

    def _searched(self, event: Any) -> None:
        if not self._quiet and event.new != self.search:
            self.search, self.number = event.new or "", 0
            self._again()

    def _turned(self, event: Any) -> None:
        if not self._quiet and event.new is not None:
            self.number = event.new
            self._again()

    def _give(self, key: str) -> None:
        """Every tensor that the search finds, in the order of the table, with unrounded figures."""
        if self.last is None:
            self.csv.fail("No run is open.")
            return
        found = diff_list(self.last.state, self.sort, self.descending, self.search)
        head = [field.name for field in fields(TensorDiff)]
        text = csv_text(head, [astuple(diff) for diff in found])
        self.csv.send_file(f"{file_name(self.last.path.name)}-diff.csv", text, CSV)

    def _again(self) -> None:
        self.update(self.last, None)
        self.page.navigate()

    def show_tensor(self, name: str) -> None:
        """Choose a tensor and turn to its page."""
        self.chosen = name
        if self.last is not None:
            page = page_holding(self.last.state, self.sort, self.descending, self.search, name)
            self.number = page if page is not None else self.number


def _nothing(shown: Shown | None) -> Markup:
    if shown is None:
        return empty("No run is open", "Each tensor before and after pressing stands here, worst first.")
    if broke_off(shown.state, shown.lost):
        status = status_of(shown.state, shown.lost, remote=shown.remote)
        return empty("No tensor was pressed", status.sentence)
    return empty("No tensor is pressed yet", "Each one appears here as soon as step 4 has finished it.")
