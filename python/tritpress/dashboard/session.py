"""One open page: which run and tab it shows, and the loop that pulls what changed since it last looked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import panel as pn
import panel_material_ui as pmui
from panel.util import edit_readonly

from tritpress.dashboard.components.html import Fragment, Markup
from tritpress.dashboard.components.viewport import Viewport
from tritpress.dashboard.sidebar import Sidebar
from tritpress.dashboard.store import Feed, RunStore
from tritpress.dashboard.tabs.base import CLOCK, Shown, Tab
from tritpress.dashboard.tabs.metrics import Metrics
from tritpress.dashboard.tabs.outputs import Outputs
from tritpress.dashboard.tabs.overview import Overview
from tritpress.dashboard.tabs.progress import Progress
from tritpress.dashboard.tabs.quality import Quality
from tritpress.dashboard.theme import THEME
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.form import Form, config_of, controls, default_model, form_of
from tritpress.dashboard.views.runs import run_options
from tritpress.dashboard.views.status import headline, status_of
from tritpress.errors import TritpressError

log = logging.getLogger(__name__)

TICK = 150
"""Milliseconds between two looks at the store."""

WORKERS = ThreadPoolExecutor(2, thread_name_prefix="tritpress-launch")

ACK_PATIENCE = 20.0
"""Seconds after which the page says that the worker has not answered yet."""


class Session:
    """The page of one browser tab."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.feed: Feed | None = None
        self.seen = -1
        self.seen_list = -1
        self.pending: dict[str, Any] | None = None  # the command that waits for its acknowledgement
        self.job: tuple[Future[Any], Callable[[Any], None], str] | None = None
        self.visible = True
        self.clock = 0.0
        self._navigating = False
        self.default = Form(model=default_model())
        self.sidebar = Sidebar(
            self.default,
            {"start": self.start, "toggle": self.toggle, "stop": self.stop, "reset": self.ask_reset},
        )
        self.sidebar.on_checked = self._apply_controls  # type: ignore[method-assign]
        overview = Overview(lambda: self.store.runs, on_navigate=self._push_url)
        self.tabs: list[Tab] = [
            overview,
            *(kind(on_navigate=self._push_url) for kind in (Progress, Metrics, Quality, Outputs)),
        ]
        self._build()

    def _build(self) -> None:
        self.selector = pmui.Select(
            label="Run",
            options={"New run": ""},
            value="",
            size="small",
            margin=0,
            width=300,
            styles={"flex": "0 1 300px", "min-width": "200px"},
        )
        self.selector.param.watch(self._selected, "value")
        self.bar = Fragment()
        self.bar.pane.styles = {"flex": "1 1 420px", "min-width": "0"}
        self.strip = pn.FlexBox(
            self.selector,
            self.bar.pane,
            sizing_mode="stretch_width",
            align_items="center",
            gap="10px 18px",
            margin=(16, 20, 6, 20),
        )
        self.shown_tabs = pmui.Tabs(
            *((tab.title, tab.holder) for tab in self.tabs),
            sizing_mode="stretch_width",
            margin=(0, 12, 0, 12),
        )
        self.shown_tabs.param.watch(self._tab_chosen, "active")
        self.dialog = self._reset_dialog()
        self.viewport = Viewport()
        self.viewport.param.watch(lambda event: setattr(self, "visible", bool(event.new)), "visible")
        self.page = pmui.Page(
            title="tritpress",
            sidebar=self.sidebar.objects,
            main=[self.strip, self.shown_tabs, self.dialog, self.viewport],
            sidebar_width=320,
            sidebar_resizable=False,
            busy_indicator=None,
            theme_config=THEME,
            meta_description="Live page of model compression runs",
            site_url="?",
        )

        with edit_readonly(self.page):
            self.page.busy = False  # not panel's counter: the page would be searched through at every event

    def attach(self) -> Any:
        """Open what the URL names and start the loop. Returns what is to be served."""
        self.store.join()
        pn.state.on_session_destroyed(self._gone)
        location = pn.state.location
        query = location.query_params if location is not None else {}
        self._refresh_list()
        self._go(query)
        if location is not None:
            location.param.watch(self._url_changed, "search")
        # What is sent while a page still loads is lost: the loop begins when the page stands.
        # The document's own timer: panel's would mark the page busy and idle again at every tick.
        doc = pn.state.curdoc

        def begin() -> None:
            assert doc is not None
            doc.add_periodic_callback(self.tick, TICK)

        pn.state.onload(begin)
        return self.page

    # The loop

    def tick(self) -> None:
        """Pull what changed, in one batch. A page that nobody sees does nothing."""
        if not self.visible:
            return
        now = time.time()
        feed = self.feed
        version = feed.version if feed is not None else -1
        list_changed = self.store.list_version != self.seen_list
        clock = (
            now - self.clock >= 1.0 and feed is not None and feed.state["status"] in ("created", "running")
        )
        tab = self.tabs[self.shown_tabs.active]
        waiting = self.pending or self.job or tab.pending
        if version == self.seen and not list_changed and not clock and not waiting:
            return
        with pn.io.hold(pn.state.curdoc):
            if list_changed:
                self._refresh_list()
            self._refresh(clock, list_changed)
            self._look_for_job()
            if tab.pending:
                tab.take_up()
            if self.pending is not None:
                self._look_for_ack(now)
        if clock:
            self.clock = now

    def _refresh(self, clock: bool = False, list_changed: bool = False, everything: bool = False) -> None:
        feed, tab = self.feed, self.tabs[self.shown_tabs.active]
        version = feed.version if feed is not None else -1
        fresh = everything or version != self.seen
        self.seen = version
        if fresh:
            self._show_bar()
            self._apply_controls()
        changed: set[str] | None = None
        if tab.seen >= 0 and feed is not None and not everything:
            changed = feed.changed_since(tab.seen)
        elif tab.seen == -2 and feed is None and not everything:
            changed = set()
        if changed is not None:
            changed |= ({CLOCK} if clock else set()) | ({"runs"} if list_changed else set())
        if changed is None or changed:
            tab.refresh(self._shown(), changed)
        tab.seen = version if feed is not None else -2

    def _shown(self) -> Shown | None:
        feed = self.feed
        if feed is None:
            return None
        return Shown(feed.state, feed.lost, time.time(), dict(feed.progress_base), feed.path)

    def _show_bar(self) -> None:
        feed = self.feed
        if feed is None:
            self.bar.set(Markup('<div class="bar"><span class="soft">No run is open.</span></div>'))
            return
        status, head = status_of(feed.state, feed.lost), headline(feed.state)
        figure = Markup("")
        if head.ratio != fig.NOTHING:
            figure = Markup(
                '<span class="headline" data-headline><b>{}</b> smaller · {} · {}</span>'
                '<span class="soft small">{}</span>'
            ).format(head.ratio, head.bits, head.planes, head.note)
        self.bar.set(
            Markup(
                '<div class="bar"><span class="chip {}" data-status="{}">{} {}</span>'
                '<span class="name">{}</span>{}</div>'
            ).format(
                status.tone,
                "lost" if feed.lost else feed.state["status"],
                status.mark,
                status.label,
                feed.state.get("name") or feed.id,
                figure,
            )
        )

    def _apply_controls(self) -> None:
        feed = self.feed
        state = feed.state if feed is not None else None
        self.sidebar.apply(
            controls(
                state, feed is not None and feed.lost, self.sidebar.check.ok, bool(self.pending or self.job)
            )
        )

    # Which run, which tab

    def open(self, run_id: str) -> None:
        """Show that run, or no run when it is "" or there is none of that name."""
        if self.feed is not None and self.feed.id == run_id:
            return
        if self.feed is not None:
            self.store.close(self.feed)
        self.feed = self.store.open(run_id) if run_id else None
        self.pending = None
        for tab in self.tabs:
            tab.seen, tab.built = -1, False  # charts of another run are made anew
            if isinstance(tab, Progress):
                tab.wanted_page, tab.follow, tab.mapped = 0, True, None
        if self.feed is not None:
            self.sidebar.fill(form_of(self.feed.state, self.default))
            self.sidebar.say("neutral", "")
        elif run_id:
            self.sidebar.say("bad", f"There is no run {run_id!r} in {self.store.runs_dir}.")
        self._refresh_list()
        self._refresh(everything=True)

    def _selected(self, event: Any) -> None:
        if not self._navigating:
            self.open(event.new)
            self._push_url()

    def _tab_chosen(self, event: Any) -> None:
        if not self._navigating:
            self._refresh()
            self._push_url()

    def _go(self, query: dict[str, Any]) -> None:
        """Show what the query part of the URL names."""
        self._navigating = True
        try:
            keys = [tab.key for tab in self.tabs]
            wanted = str(query.get("tab", "overview"))
            self.shown_tabs.active = keys.index(wanted) if wanted in keys else 0
            run_id = query.get("run", "")
            if str(run_id) != (self.feed.id if self.feed else ""):
                self.open(str(run_id))
            page = query.get("page")
            progress = next(tab for tab in self.tabs if isinstance(tab, Progress))
            if isinstance(page, int) and page >= 1:
                progress.wanted_page, progress.follow = page - 1, False
            self._refresh_list()
            self._refresh(everything=True)
        finally:
            self._navigating = False

    def _url(self) -> dict[str, Any]:
        progress = next(tab for tab in self.tabs if isinstance(tab, Progress))
        tab = self.tabs[self.shown_tabs.active]
        found: dict[str, Any] = {}
        if self.feed is not None:
            found["run"] = self.feed.id
        if tab.key != "overview":
            found["tab"] = tab.key
        if tab.key == "progress" and progress.wanted_page and not progress.follow:
            found["page"] = progress.wanted_page + 1
        return found

    def _push_url(self) -> None:
        from urllib.parse import urlencode

        location = pn.state.location
        if location is None:
            return
        found = self._url()
        self._navigating = True
        try:
            location.search = f"?{urlencode(found)}" if found else ""
        finally:
            self._navigating = False

    def _url_changed(self, event: Any) -> None:
        if self._navigating:
            return
        location = pn.state.location
        assert location is not None
        query = location.query_params
        if {key: str(value) for key, value in query.items()} != {k: str(v) for k, v in self._url().items()}:
            self._go(query)

    def _refresh_list(self) -> None:
        self.seen_list = self.store.list_version
        open_run = self.feed.id if self.feed is not None else ""
        options = run_options(self.store.runs, open_run)
        navigating, self._navigating = self._navigating, True
        try:
            if options != self.selector.options or self.selector.value != open_run:
                # The browser knows the value by its label alone: a run whose label changed is chosen anew.
                self.selector.param.update(options=options, value="")
                self.selector.value = open_run
        finally:
            self._navigating = navigating

    # What the buttons do

    def start(self) -> None:
        """Start a run with what the sidebar says and follow it."""
        self._act(self._start, "The run could not be started")

    def _start(self) -> None:
        from tritpress.runs.launch import launch

        self.sidebar.look()
        if not self.sidebar.check.ok:
            self.sidebar.say("bad", self.sidebar.check.lines[0])
            return
        form = self.sidebar.form()
        config = config_of(form)

        def started(run: Any) -> None:
            self.sidebar.say("neutral", "")
            self.store.refresh_list()
            self.open(run.id)
            self._push_url()

        self._in_background(
            lambda: launch(form.model, None, config, self.store.runs_dir),
            started,
            "The worker process is starting.",
            "The run could not be started",
        )

    def toggle(self) -> None:
        """Pause, or go on."""
        feed = self.feed
        if feed is None:
            return
        if feed.lost or feed.state["status"] in ("stopped", "failed"):
            self._act(self._take_up, "The run could not be taken up again")
        else:
            self._command("resume" if feed.state["status"] == "paused" else "pause")

    def _take_up(self) -> None:
        from tritpress.runs.directory import RunDirectory
        from tritpress.runs.launch import resume

        assert self.feed is not None
        run = RunDirectory(self.feed.path)
        self._in_background(
            lambda: resume(run),
            lambda _: self.sidebar.say("neutral", ""),
            "A new worker takes the run up where it was.",
            "The run could not be taken up again",
        )

    def stop(self) -> None:
        """Ask the worker to stop; the run can be resumed."""
        self._command("stop")

    def _command(self, name: str) -> None:
        self._act(lambda: self._send(name), f"The {name} command could not be sent")

    def _send(self, name: str) -> None:
        from tritpress.runs.commands import send
        from tritpress.runs.directory import RunDirectory

        if self.feed is None:
            return
        command = send(RunDirectory(self.feed.path), name)
        self.pending = {"id": command, "name": name, "since": time.time(), "said": False}
        self.sidebar.say("live", f"Sent: {name}. The worker answers between two tensors or training steps.")
        self._apply_controls()

    def _look_for_ack(self, now: float) -> None:
        pending, feed = self.pending, self.feed
        if pending is None or feed is None:
            self.pending = None
            return
        ack = feed.state["acks"].get(pending["id"])
        if ack is not None:
            self.pending = None
            if ack.get("ok", True):
                self.sidebar.say("neutral", "")
            else:
                self.sidebar.say(
                    "bad",
                    f"The worker refused to {pending['name']}: {ack.get('detail') or 'no reason given'}",
                )
            self._apply_controls()
        elif feed.lost or feed.state["status"] in ("finished", "failed", "stopped"):
            self.pending = None
            self.sidebar.say("warning", f"The run was over before it could {pending['name']}.")
            self._apply_controls()
        elif now - pending["since"] > ACK_PATIENCE and not pending["said"]:
            pending["said"] = True
            self.sidebar.say(
                "warning",
                f"The worker has not answered to {pending['name']} yet; it is busy with one large tensor.",
            )

    def ask_reset(self) -> None:
        """Go back to the empty page; a run at work is asked about first."""
        feed = self.feed
        if feed is not None and not feed.lost and feed.state["status"] in ("created", "running", "paused"):
            self.dialog.open = True
        else:
            self._reset()

    def _reset(self) -> None:
        self.dialog.open = False
        self.open("")
        self.sidebar.fill(self.default)
        self.sidebar.say("neutral", "")
        self._apply_controls()
        self._push_url()

    def _stop_and_reset(self) -> None:
        self.dialog.open = False
        feed = self.feed
        if feed is not None:
            self.stop()
            name = feed.state.get("name") or feed.id
            self._reset()
            self.sidebar.say("warning", f"{name} was asked to stop; it stays in the list and can be resumed.")

    def _reset_dialog(self) -> pmui.Dialog:
        text = Fragment(
            Markup(
                "<p>A stopped run keeps what is finished and can be resumed. "
                "It can also go on by itself while this page starts another.</p>"
            )
        )
        button: dict[str, Any] = {"margin": (16, 8, 8, 0), "disable_elevation": True}
        return pmui.Dialog(
            text.pane,
            pn.FlexBox(
                pmui.Button(
                    label="Stop it and reset",
                    color="primary",
                    on_click=lambda _: self._stop_and_reset(),
                    **button,
                ),
                pmui.Button(
                    label="Leave it at work", variant="outlined", on_click=lambda _: self._reset(), **button
                ),
                pmui.Button(
                    label="Cancel",
                    variant="text",
                    on_click=lambda _: self.dialog.param.update(open=False),
                    **button,
                ),
            ),
            title="This run is still at work",
            title_variant="h6",
            close_on_click=True,
        )

    def _in_background(
        self, work: Callable[[], Any], then: Callable[[Any], None], meanwhile: str, what: str
    ) -> None:
        """Do what takes a second or two beside the server's loop; the next tick takes up its result."""
        self.job = (WORKERS.submit(work), then, what)
        self.sidebar.say("live", meanwhile)
        self._apply_controls()

    def _look_for_job(self) -> None:
        if self.job is None or not self.job[0].done():
            return
        future, then, what = self.job
        self.job = None
        self._act(lambda: then(future.result()), what)
        self._apply_controls()

    def _act(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
        except TritpressError as error:
            self.sidebar.say("bad", str(error))
        except (OSError, ValueError) as error:
            log.exception("%s", what)
            self.sidebar.say("bad", f"{what}: {error}")

    def _gone(self, _: Any) -> None:
        if self.feed is not None:
            self.store.close(self.feed)
            self.feed = None
        self.store.leave()
