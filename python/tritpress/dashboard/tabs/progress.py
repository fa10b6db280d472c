"""Progress: the model as a grid of layers and parameters that fills while it is pressed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import panel as pn

from tritpress.dashboard.components.html import Fragment, Markup, empty
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.tabs.base import CLOCK, WORDS_EVERY, Shown, Tab
from tritpress.dashboard.tabs.progress_parts import Parts, legend, now_bar, table_twin, where_words
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.ending import broke_off
from tritpress.dashboard.views.layer import Found, layer_view, look_through, look_up, place_words
from tritpress.dashboard.views.progress import (
    LAYERS_A_PAGE,
    Board,
    Cell,
    at_work,
    map_targets,
    page_of,
    row_of_layer,
    sparsity_target,
    window,
)
from tritpress.dashboard.views.shades import SHADES, cell_words
from tritpress.dashboard.views.status import status_of

LOOKUPS = ThreadPoolExecutor(2, thread_name_prefix="tritpress-lookup")

TWIN_EVERY = 1.0
"""Least seconds between two tables sent for the grid's twin while it is open."""

BESIDE_EVERY = 1.0
"""Least seconds between two changes of minimap and bars while a run is at work: the grid shows every cell at
once, and to draw the whole model beside it costs as much again."""

LIVE = frozenset({CLOCK, "layer.started", "layer.finished", "step.progress"})


class Progress(Tab):
    key = "progress"
    title = "Progress"
    interests = frozenset(
        {
            *LIVE,
            "liveness",
            "run.started",
            "run.paused",
            "run.resumed",
            "run.finished",
            "run.failed",
            "model",
            "plan",
            "step.started",
            "step.finished",
        }
    )

    def __init__(self, page: PageContext) -> None:
        super().__init__(page)
        self._plain()

    def _plain(self) -> None:
        self.board = Board(map_targets([]))
        self.mapped: list[Any] | None = None
        self.number, self.follow, self.shade = 0, True, "ratio"
        self.layer: int | None = None
        self.tensor, self.cursor, self.moved = "", (0, 0), False
        self.last: Shown | None = None
        self.over = False  # no worker is at it: nothing to follow
        self.lookup: Future[Found] | None = None
        self.looked_at: Any = None  # what the snapshot had of the tensor when it was looked up
        self.twin_sent = self.beside_sent = self.now_sent = 0.0
        self.due: tuple[set[int], set[int]] = (set(), set())  # cells and rows that minimap and bars lack
        self.quiet, self.placed = False, False

    # The URL

    def query(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if not self.follow or (self.over and self.number > 0):
            found["page"] = str(self.number + 1)
        if self.shade != "ratio":
            found["colour"] = self.shade
        if self.layer is not None:
            found["layer"] = str(self.layer)
        if self.tensor:
            found["tensor"] = self.tensor
        return found

    def go(self, query: Mapping[str, str]) -> None:
        page, layer = query.get("page", ""), query.get("layer", "")
        self.shade = query.get("colour", "") if query.get("colour") in SHADES else "ratio"
        self.tensor = query.get("tensor", "")
        self.looked_at, self.placed, self.moved = None, False, False
        self.layer, number = fig.whole(layer), fig.whole(page)
        self.follow = not (number is not None or self.layer is not None or self.tensor)
        self.number = max(number - 1, 0) if number is not None else -1  # -1: where the layer or tensor lies

    def forget(self) -> None:
        super().forget()
        self._plain()

    # What is shown

    def build(self) -> list[Any]:
        self.now, self.placeholder = Fragment(), Fragment()
        self.now.pane.margin = (0, 0, 14, 0)
        self.parts = parts = Parts()
        parts.metric.param.watch(self._act(lambda event: self._set_shade(event.new)), "value")
        parts.pages.param.watch(self._act(lambda event: self._turn(event.new)), "value")
        parts.layer.param.watch(self._act(lambda event: self._go_to_layer(event.new)), "value")
        parts.follow.param.watch(self._act(lambda event: self._set_follow(event.new)), "value")
        parts.twin.param.watch(self._act(lambda _: self._show_twin(force=True)), "open")
        parts.heatmap.on_click(self._act(lambda cell: self._open_cell(cell)))
        parts.minimap.on_click(self._act(lambda row: self._turn(row // LAYERS_A_PAGE)))
        parts.keys.on_key(self._act(self._key))
        parts.twin.on_open(self._act(self._open))
        parts.panel.chosen = self._act(self._open)
        self.mapped = None
        return [self.now.pane, self.placeholder.pane, *parts.objects]

    def _act(self, handler: Callable[[Any], None]) -> Callable[[Any], None]:
        """A handler of what the reader did: all that it changes goes to the browser in one batch."""

        def handle(event: Any) -> None:
            if self.quiet:
                return
            with pn.io.hold(pn.state.curdoc):
                handler(event)

        return handle

    def update(self, shown: Shown | None, changed: set[str] | None) -> None:
        self.last = shown
        if shown is None or not shown.state["targets"]:
            self._nothing(shown)
            return
        fresh = self.mapped is None or (
            self.mapped is not shown.state["targets"] and "model" in (changed or ())
        )
        if fresh:
            self._set_model(shown.state["targets"])
        quickly = changed is not None and changed <= LIVE
        if not quickly or fresh or time.monotonic() - self.now_sent >= WORDS_EVERY:
            self.now_sent = time.monotonic()
            self.now.set(now_bar(shown))
        if changed is not None and not changed - {CLOCK} and not fresh:
            self._show_beside()
            self._show_twin()
            return
        self._show(everything=changed is None or fresh, quickly=quickly)
        self._show_twin(force=not quickly)
        if self.over != shown.over:
            self.over = shown.over
            if self.follow and self.number > 0:
                self.page.navigate()  # where the work ended is a page of its own from now on

    def _set_model(self, targets: list[Any]) -> None:
        self.board, self.mapped = Board(map_targets(targets)), targets
        self.parts.set_board(self.board)
        self.placeholder.pane.visible = False
        self.placed = False

    def _place(self) -> None:
        """Put the cursor where the URL says: on a tensor, or on a layer's first cell."""
        cell = self.board.cell_of(self.tensor) if self.tensor else None
        row = row_of_layer(self.board.where, self.layer) if self.layer is not None else None
        if cell is not None:
            self.cursor = (cell.y, cell.x)
        elif row is not None:
            self.cursor = (row, next(c.x for c in self.board.cells if c.y == row))
        if self.number < 0:
            self.number = 0 if cell is None and row is None else self.cursor[0] // LAYERS_A_PAGE
        self.placed = True

    def _show(self, everything: bool = False, quickly: bool = False) -> None:
        """The grid as it is now: what changed is patched. `quickly`: minimap and bars may come later."""
        shown, parts, board = self.last, self.parts, self.board
        if shown is None or self.mapped is None:
            return
        cells, rows = board.update(shown.state, shown.lost)
        current = at_work(shown.state, shown.lost)[0] or (shown.state.get("current") or {}).get("name")
        if current is None and cells and self.placed:
            # The work came to its end since the last look: follow it there.
            current = next(reversed(shown.state["layers"]), None)
        if self.follow and current and (page := page_of(board.where, current)) is not None:
            self.number = page
        if not self.placed:
            self._place()
        view, shade = window(board.where, self.number), SHADES[self.shade]
        self.number = view.page
        self.quiet = True
        try:
            first = board.where.rows[view.first] if board.where.rows else ""
            layer = self.layer if self.layer is not None else int(first) if first.isdecimal() else None
            parts.show_tools(view, self.shade, self.follow, layer, shown)
        finally:
            self.quiet = False
        parts.where.set(where_words(view, board.where))
        parts.heatmap.show(view, shade, cells)
        parts.minimap.move(view)
        self.due[0].update(cells)
        self.due[1].update(rows)
        self._show_beside(everything, force=not quickly)
        parts.legend.set(legend(board))
        self._show_cursor()
        if self.tensor:
            self._show_tensor()
        else:
            parts.panel.hide()

    def _show_beside(self, everything: bool = False, force: bool = False) -> None:
        """Minimap and bars, where they lack something."""
        shown, now, (cells, rows) = self.last, time.monotonic(), self.due
        if shown is None or not (force or ((cells or rows) and now - self.beside_sent >= BESIDE_EVERY)):
            return
        self.beside_sent, self.due = now, (set(), set())
        target = sparsity_target(shown.state["config"], shown.state["plan"])
        view = window(self.board.where, self.number)
        self.parts.bars.show(self.board, view, target, sorted(rows), everything)
        self.parts.minimap.show(self.board, sorted(cells))

    def _show_cursor(self) -> None:
        cell = self.board.at(*self.cursor)
        marked = bool(self.tensor) or self.layer is not None or self.moved
        self.parts.heatmap.choose(cell if marked else None)
        self.parts.keys.words = cell_words(cell) if cell is not None and marked else ""

    def _show_twin(self, force: bool = False) -> None:
        twin, now = self.parts.twin, time.monotonic()
        if twin.open and (force or now - self.twin_sent >= TWIN_EVERY):
            self.twin_sent = now
            twin.show(table_twin(self.board, window(self.board.where, self.number), SHADES[self.shade]))

    def _nothing(self, shown: Shown | None) -> None:
        self.parts.hide()
        self.mapped = None
        self.placeholder.pane.visible = True
        self.now.set(Markup(""))
        if shown is None:
            text = empty(
                "No run is open", "The grid of layers and parameters fills while a model is pressed."
            )
        elif broke_off(shown.state, shown.lost):
            status = status_of(shown.state, shown.lost, remote=shown.remote)
            text = empty("Nothing was pressed", status.sentence)
        else:
            text = empty("Reading the model", "Its layers appear here as soon as step 1 has found them.")
        self.placeholder.set(text)

    # What the reader does

    def _again(self) -> None:
        self._show()
        self._show_twin(force=True)
        self.page.navigate()

    def _set_shade(self, key: str) -> None:
        self.shade = key
        self._again()

    def _turn(self, page: int | None) -> None:
        if page is None:
            return
        self.number, self.follow, self.layer = page, False, None
        self._again()

    def _set_follow(self, on: bool) -> None:
        self.follow = on
        if on:
            self.layer = None
        self._again()

    def _go_to_layer(self, layer: int | None) -> None:
        row = None if layer is None else row_of_layer(self.board.where, layer)
        if row is None:
            return
        self.layer, self.follow, self.number = layer, False, row // LAYERS_A_PAGE
        self.cursor = (row, self.cursor[1])
        self._again()

    def _open_cell(self, cell: Cell) -> None:
        self._open("" if self.tensor in cell.names else cell.names[0])

    def _open(self, name: str) -> None:
        """Open that tensor below the grid; "" closes it."""
        self.tensor = name
        cell = self.board.cell_of(name)
        if cell is not None:
            self.cursor, self.number, self.follow = (cell.y, cell.x), cell.y // LAYERS_A_PAGE, False
        self._again()
        if name:
            self.parts.panel.reveal()

    def _key(self, key: str) -> None:
        y, x = self.cursor
        rows, columns = len(self.board.where.rows), len(self.board.where.columns)
        if key == "Enter":
            cell = self.board.at(y, x)
            if cell is not None:
                self._open_cell(cell)
            return
        if key == "Escape":
            self._open("")
            return
        step = {"ArrowUp": (-1, 0), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowRight": (0, 1)}.get(key)
        if step is None:
            jump = {"PageUp": -LAYERS_A_PAGE, "PageDown": LAYERS_A_PAGE, "Home": -rows, "End": rows}[key]
            y = min(max(y + jump, 0), rows - 1)
        elif not self.moved and not self.tensor and self.layer is None:
            y, x = max(self.number, 0) * LAYERS_A_PAGE, 0  # the first key shows where the cursor is
            while self.board.at(y, x) is None and x < columns - 1:
                x += 1
        else:
            y, x = self._next(y, x, *step)
        self.cursor, self.moved = (y, x), True
        self.number, self.follow, self.layer = y // LAYERS_A_PAGE, False, None
        self._again()

    def _next(self, y: int, x: int, dy: int, dx: int) -> tuple[int, int]:
        """The nearest cell in that direction; the present one at the edge."""
        rows, columns = len(self.board.where.rows), len(self.board.where.columns)
        at = (y + dy, x + dx)
        while 0 <= at[0] < rows and 0 <= at[1] < columns:
            if self.board.at(*at) is not None:
                return at
            at = (at[0] + dy, at[1] + dx)
        return y, x

    # The tensor that is open

    def _show_tensor(self) -> None:
        shown, panel = self.last, self.parts.panel
        assert shown is not None
        cell, layer = self.board.cell_of(self.tensor), shown.state["layers"].get(self.tensor)
        if panel.name != self.tensor or not panel.row.visible:
            self.looked_at = None
            names = cell.names if cell is not None else ()
            panel.open(
                self.tensor,
                names,
                place_words({"layer": _layer_of(cell), "kind": cell.column}) if cell else "",
            )
        if cell is None:
            panel.say("No such tensor", "This run presses no tensor of that name.")
        elif layer is None:
            word = {"current": "Being pressed now", "failed": "The run broke off here"}.get(
                at_work(shown.state, shown.lost)[1]
                if at_work(shown.state, shown.lost)[0] == self.tensor
                else ""
            )
            if broke_off(shown.state, shown.lost):
                panel.say(word or "Not pressed", "The run ended before it was.")
            else:
                panel.say(word or "Not pressed yet", "Its figures stand here once it is pressed.")
        elif layer is not self.looked_at:
            self.looked_at = layer
            found = look_up(shown.path, self.tensor)
            if found.details is not None:
                panel.show(layer_view(layer, found, shown.state))
                return
            panel.say("Reading the log", "This run recorded no details of its tensors.")
            self.lookup = LOOKUPS.submit(look_through, shown.path, self.tensor)

    @property
    def pending(self) -> bool:
        return self.lookup is not None and self.lookup.done()

    def take_up(self) -> None:
        """Show the tensor that was looked up."""
        if self.lookup is None or self.last is None:
            return
        lookup, self.lookup = self.lookup, None  # one that failed is not pending for ever
        try:
            found = lookup.result()
        except Exception:
            self.parts.panel.say("The log could not be read", "The server's output says why.")
            raise
        layer = self.last.state["layers"].get(found.name)
        if found.name == self.tensor and layer is not None:
            self.parts.panel.show(layer_view(layer, found, self.last.state))


def _layer_of(cell: Cell) -> int | None:
    return int(cell.row) if cell.row.isdecimal() else None
