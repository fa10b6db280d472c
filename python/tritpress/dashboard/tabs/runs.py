"""The start page: all runs there are, to search, open, compare, label and put away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tritpress.dashboard.components.dialogs import LabelsDialog, Question
from tritpress.dashboard.components.export import CSV, Downloads
from tritpress.dashboard.components.html import Fragment, Markup, empty
from tritpress.dashboard.components.runtable import RunTable
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.report.tables import runs_csv
from tritpress.dashboard.tabs.base import Shown, Tab
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.runs import (
    ORDERS,
    STATES,
    RunList,
    Search,
    compare_words,
    found_runs,
    run_list,
    run_row,
)
from tritpress.errors import TritpressError, UsageError
from tritpress.runs.directory import RunDirectory
from tritpress.runs.labels import edit_labels, load_labels
from tritpress.runs.trash import FOLDER, delete_run, list_trash, restore_run

IN_TRASH = 100
"""So many of the last deleted runs are listed."""


class Runs(Tab):
    key = "runs"
    title = "Runs"
    interests = frozenset({"runs"})

    def __init__(self, page: PageContext) -> None:
        super().__init__(page)
        self.search, self.at_page = Search(), 0
        self.listed = -1
        self.picked: list[str] = []
        self.asked = ""  # the run that a dialog is about
        self._quiet = False
        self._trash_asked = 0

    # The URL

    def query(self) -> dict[str, str]:
        found = {
            "find": self.search.words,
            "state": self.search.state,
            "tag": self.search.tag,
            "order": self.search.order,
            "page": str(self.at_page + 1) if self.at_page else "",
        }
        return {key: value for key, value in found.items() if value}

    def go(self, query: Mapping[str, str]) -> None:
        state, order, page = query.get("state", ""), query.get("order", ""), query.get("page", "")
        self.search = Search(
            query.get("find", ""),
            state if state in STATES else "",
            query.get("tag", ""),
            order if order in ORDERS else "",
        )
        self.at_page = fig.page(page)
        if self.built:
            self._show_search()

    def forget(self) -> None:
        """Another run is open: this page is about all of them and stays as it is."""

    # The list follows the folder, not the open run

    @property
    def pending(self) -> bool:
        return self.built and self.page.store.list_version != self.listed

    def take_up(self) -> None:
        self.update(None, None)

    def build(self) -> list[Any]:
        field: dict[str, Any] = {"size": "small", "margin": 0, "sizing_mode": "stretch_width"}
        self.find = pmui.TextInput(
            label="Search",
            placeholder="name, model, tag, note or id",
            styles={"flex": "2 1 200px", "width": "auto"},
            **field,
        )
        self.state = pmui.Select(
            label="State",
            options={title: key for key, title in STATES.items()},
            styles={"flex": "1 1 150px", "width": "auto"},
            **field,
        )
        self.tag = pmui.Select(
            label="Tag",
            options={"Any tag": ""},
            value="",
            styles={"flex": "1 1 110px", "width": "auto"},
            **field,
        )
        self.order = pmui.Select(
            label="Order",
            options={title: key for key, title in ORDERS.items()},
            styles={"flex": "1 1 150px", "width": "auto"},
            **field,
        )
        self.compare = pmui.Button(
            label="Compare",
            icon="compare_arrows",
            variant="outlined",
            disabled=True,
            description=compare_words(0),
            margin=0,
            on_click=lambda _: self.page.open_run(",".join(self.picked), tab="compare"),
        )
        self.csv = Downloads(self._give, sizing_mode=None)
        self.csv.show([["csv", "CSV", ""]])
        tools = pn.FlexBox(
            self.find,
            self.state,
            self.tag,
            self.order,
            self.compare,
            self.csv,
            sizing_mode="stretch_width",
            gap="10px 12px",
            align_items="center",
            margin=(0, 0, 12, 0),
        )
        self.tools = tools
        self.words, self.nothing = Fragment(), Fragment()
        self.words.pane.margin = (0, 0, 6, 0)
        why_not = "" if self.page.may_act else self.page.why_not
        self.table = RunTable(self._act, why_not=why_not)
        self.pages = pmui.Pagination(
            count=1, value=0, show_first_button=True, show_last_button=True, size="small", margin=(10, 0)
        )
        self.trash = RunTable(self._act, kind="trash", why_not=why_not)
        self.trash_words = Fragment()
        self.bin = pmui.Accordion(
            ("Trash", pn.Column(self.trash_words.pane, self.trash, sizing_mode="stretch_width", margin=0)),
            sizing_mode="stretch_width",
            margin=(18, 0, 0, 0),
            title_variant="body2",
            disable_gutters=True,
        )
        self.labels = LabelsDialog(self._save)
        self.question = Question("Delete this run?", [("Move to the trash", self._delete)])
        self._show_search()
        self.find.param.watch(lambda event: self._searched(words=event.new.strip()), "value_input")
        for part, key in ((self.state, "state"), (self.tag, "tag"), (self.order, "order")):
            part.param.watch(lambda event, key=key: self._searched(**{key: event.new or ""}), "value")
        self.pages.param.watch(self._turned, "value")
        self.table.param.watch(self._ticked, "picked")
        self.bin.param.watch(lambda _: self._show_trash(), "active")
        return [
            self.tools,
            self.words.pane,
            self.table,
            self.nothing.pane,
            self.pages,
            self.bin,
            self.labels.dialog,
            self.question.dialog,
        ]

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.listed = self.page.store.list_version
        runs = self.page.store.runs
        made = run_list(runs, self.search, self.at_page)
        self.at_page = made.page
        known = {run["id"] for run in runs}
        kept = [run_id for run_id in self.picked if run_id in known]
        if kept != self.picked:
            self.picked = self.table.picked = kept
            self._show_compare()
        rows = [asdict(row) for row in made.rows]
        if rows != self.table.rows:
            self.table.rows = rows
        self.tools.visible = bool(made.total)
        self.table.visible = bool(rows)
        self.pages.visible = made.pages > 1
        self._quiet = True
        try:
            if (self.pages.count, self.pages.value) != (made.pages, made.page):
                self.pages.param.update(count=made.pages, value=made.page)
            tags = {"Any tag": "", **{tag: tag for tag in made.tags}}
            if self.search.tag and self.search.tag not in tags:
                tags[self.search.tag] = self.search.tag
            if tags != self.tag.options:
                self.tag.param.update(options=tags, value=self.search.tag)
        finally:
            self._quiet = False
        self.words.set(_words(made))
        self.nothing.set(self._empty(made))
        self._show_bin()

    def _give(self, key: str) -> None:
        """The runs that the search finds, all pages of them."""
        self.csv.send_file("runs.csv", runs_csv(found_runs(self.page.store.runs, self.search)), CSV)

    def _empty(self, made: RunList) -> Markup:
        if made.rows:
            return Markup("")
        if made.total:
            return empty("No run matches", "Change the search above, or choose another state or tag.")
        return Markup(
            '<div class="empty"><b>No runs yet</b>'
            "<p>Choose a model at the left and press Start: every run will be listed here.</p>"
            '<p style="margin-top:8px">On the command line <code class="mono">tritpress demo --runs {}</code>'
            " presses the built-in model.</p></div>"
        ).format(self.page.store.runs_dir)

    # Searching

    def _show_search(self) -> None:
        self._quiet = True
        try:
            if self.search.tag and self.search.tag not in self.tag.options.values():
                self.tag.options = {**self.tag.options, self.search.tag: self.search.tag}
            self.find.value = self.search.words
            self.state.value, self.tag.value = self.search.state, self.search.tag
            self.order.value = self.search.order
        finally:
            self._quiet = False

    def _searched(self, **changes: str) -> None:
        search = Search(**{**asdict(self.search), **changes})
        if self._quiet or search == self.search:
            return
        self.search, self.at_page = search, 0
        self.update(None, None)
        self.page.navigate()

    def _turned(self, event: Any) -> None:
        if not self._quiet and event.new is not None:
            self.at_page = event.new
            self.update(None, None)
            self.page.navigate()

    def _ticked(self, event: Any) -> None:
        self.picked = list(event.new)
        self._show_compare()

    def _show_compare(self) -> None:
        why = compare_words(len(self.picked))
        self.compare.param.update(
            disabled=bool(why),
            description=why or "See the ticked runs side by side",
            label=f"Compare {len(self.picked)}" if self.picked else "Compare",
        )

    # What is done to a run

    def _act(self, act: str, run_id: str) -> None:
        path = self.page.store.path_of(run_id)
        if act == "open":
            self.page.open_run(run_id, tab="overview")
        elif not self.page.may_act:
            self.page.say("bad", self.page.why_not)
        elif act == "restore":
            self._restore(run_id)
        elif path is None:
            self.page.say("warning", f"The run {run_id} is no longer there.")
        elif act == "edit":
            self.asked = run_id
            self.labels.edit(self._name(run_id), load_labels(path))
        elif act == "delete":
            self.asked = run_id
            self.question.ask(
                Markup(
                    "<p><b>{}</b> ({}) goes to the trash with all it has written into its own folder. "
                    "It can be restored from there.</p>"
                ).format(self._name(run_id), run_id)
            )

    def _name(self, run_id: str) -> str:
        return next((str(run["name"]) for run in self.page.store.runs if run["id"] == run_id), run_id)

    def _save(self, name: str, tags: str, note: str) -> str:
        path = self.page.store.path_of(self.asked)
        if path is None:
            return "This run is no longer there."
        started_as = RunDirectory(path).read_run().get("name")
        try:
            edit_labels(path, name="" if name.strip() == started_as else name, tags=[tags], note=note)
        except (UsageError, OSError) as error:
            return str(error)
        self.page.store.refresh_list()
        self.update(None, None)
        return ""

    def _delete(self) -> None:
        run_id, name = self.asked, self._name(self.asked)
        path = self.page.store.path_of(run_id)
        if path is None:
            return
        try:
            delete_run(RunDirectory(path))
        except TritpressError as error:
            self.page.say("bad", str(error))
            return
        self.page.store.refresh_list()
        self.page.say("neutral", f"{name} lies in the trash now.")
        if run_id in self.page.runs:
            self.page.open_run("")
        self.update(None, None)
        self._show_trash()

    def _restore(self, run_id: str) -> None:
        try:
            run = restore_run(run_id, self.page.store.runs_dir)
        except TritpressError as error:
            self.page.say("bad", str(error))
            return
        self.page.store.refresh_list()
        self.page.say("good", f"{self._name(run.id)} is back in the list.")
        self.update(None, None)
        self._show_trash()

    def _show_bin(self) -> None:
        trash = self.page.store.runs_dir / FOLDER
        count = sum(1 for _ in trash.iterdir()) if trash.is_dir() else 0
        self.bin.visible = count > 0
        self.trash_words.set(
            Markup('<p class="soft small">{}</p>').format(
                f"{fig.plural(count, 'run')} in {trash}. Empty that folder by hand to free the disk."
                + (f" The last {IN_TRASH} are listed." if count > IN_TRASH else "")
            )
        )

    def _show_trash(self) -> None:
        if not self.bin.active:
            return
        self._trash_asked += 1
        asked, folder = self._trash_asked, self.page.store.runs_dir

        def rows() -> list[dict[str, Any]]:
            return [asdict(run_row(run, when="deleted")) for run in list_trash(folder, IN_TRASH)]

        def show(found: list[dict[str, Any]]) -> None:
            if asked == self._trash_asked:  # else a later look is under way, or came first
                self.trash.rows = found

        self.page.background(rows, show, what="The trash could not be listed")


def _words(made: RunList) -> Markup:
    if not made.total:
        return Markup("")
    found = fig.plural(made.total, "run")
    if made.found != made.total:
        found = f"{made.found:,} of {found}"
    if made.pages > 1:
        found += f" · page {made.page + 1} of {made.pages}"
    return Markup('<p class="soft small" data-found>{}</p>').format(found)
