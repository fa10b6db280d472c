"""One open page: which run and tab it shows, and the loop that pulls what changed since it last looked."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import panel as pn
import panel_material_ui as pmui
from panel.util import edit_readonly

from tritpress.dashboard.appearance import TEMPLATE, wants_dark
from tritpress.dashboard.components.export import ChartExport
from tritpress.dashboard.components.history import History
from tritpress.dashboard.components.html import Fragment, Markup
from tritpress.dashboard.components.statusbar import status_bar
from tritpress.dashboard.components.toasts import Toasts
from tritpress.dashboard.components.viewport import Viewport
from tritpress.dashboard.context import PageContext
from tritpress.dashboard.in_order import send_in_order, send_waiting
from tritpress.dashboard.pacing import Pacing
from tritpress.dashboard.routing import Routing
from tritpress.dashboard.shell import use_template
from tritpress.dashboard.sidebar import Sidebar
from tritpress.dashboard.starting import Starting
from tritpress.dashboard.steering import Steering
from tritpress.dashboard.store import Feed, RunStore
from tritpress.dashboard.tabs import make_tabs
from tritpress.dashboard.tabs.base import CLOCK, WORDS_EVERY, Tab, shown_of
from tritpress.dashboard.theme import THEME
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.form import Form, controls, default_model, form_of
from tritpress.dashboard.views.runs import OLDER, run_options
from tritpress.dashboard.views.title import page_title

log = logging.getLogger(__name__)

TICK = 150
"""Milliseconds between two looks at the store."""

UNSEEN_EVERY = 1.0
"""Least seconds between two changes of the tab's title while nobody sees the page."""

TAKE_UP_AGAIN = 5.0
"""Seconds until a tab that could not take up what has come is asked again, unless more comes before."""

AT_ONCE = 4
"""At most so many alerts are told at once."""


class Session:
    """The page of one browser tab."""

    def __init__(self, store: RunStore, may_act: bool = True, why_not: str = "") -> None:
        self.store = store
        self.context = PageContext(store, may_act, why_not)
        self.context.bind(self)
        self.feed: Feed | None = None
        self.seen = -1
        self.seen_list = -1
        self.seen_alert = store.watch.number
        self.visible = True
        self.clock = self.told = 0.0
        self.pacing = Pacing()
        self.broken: set[tuple[str, str]] = set()
        self.logged: set[tuple[str, str, str]] = set()
        self.behind: set[str] = set()  # tabs that could not show what came last
        self.resting: dict[str, float] = {}  # tabs that could not take up something, and until when
        self.untold = False
        self.joined = False
        self.standing: tuple[str, str, bool, bool] | None = None
        self.default = Form(model=default_model())
        self.routing, self.steering = Routing(self), Steering(self)
        self.starting = Starting(self)
        self.sidebar = Sidebar(
            self.context,
            self.default,
            {
                "start": self.starting.start,
                "another": self.starting.another,
                "pause": self.steering.pause,
                "resume": self.steering.resume,
                "stop": self.steering.stop,
                "reset": self.steering.ask_reset,
            },
        )
        self.sidebar.on_checked = self.apply_controls  # type: ignore[method-assign]
        self.tabs: list[Tab] = make_tabs(self.context)
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
        self.banner = Fragment(_read_only(self.context.why_not) if not self.context.may_act else "")
        self.banner.pane.visible = not self.context.may_act
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
        self.toasts = Toasts()
        self.viewport = Viewport()
        self.viewport.param.watch(lambda event: setattr(self, "visible", bool(event.new)), "visible")
        self.viewport.param.watch(self._drawn, "drawn")
        self.page = pmui.Page(
            title="tritpress",
            sidebar=self.sidebar.objects,
            main=[
                self.banner.pane,
                self.strip,
                self.shown_tabs,
                self.steering.dialog,
                self.starting.dialog,
                self.toasts.area,
                self.viewport,
                ChartExport(),
                History(),
            ],
            sidebar_width=320,
            sidebar_resizable=False,
            busy_indicator=None,
            theme_config=THEME,
            dark_theme=wants_dark(),
            template=TEMPLATE,
            meta_description="Live page of model compression runs",
            site_url="?",
        )

        # Not panel's counter: the page would be searched through at every event, and the counter, of which
        # there is one for the whole process, would hold every page that ever was.
        with edit_readonly(self.page):
            self.page.busy = False
        references = self.page._param__private
        for watched, watcher in references.ref_watchers:
            if watched == ("busy",):
                pn.state.param.unwatch(watcher)
        references.ref_watchers = [pair for pair in references.ref_watchers if pair[0] != ("busy",)]

    def attach(self, wait: bool = False) -> Any:
        """Open what the URL names and start the loop; with `wait` only once `enter` is called. Returns what
        is to be served.
        """
        pn.state.on_session_destroyed(self._gone)
        # What is sent while a page still loads is lost: the loop begins when the page stands.
        # The document's own timer: panel's would mark the page busy and idle again at every tick.
        doc = pn.state.curdoc
        assert doc is not None
        use_template(self.page, doc)
        if not wait:
            self.enter()

        # Weak: a page that is never loaded must not be kept by what waits for it.
        held, page = weakref.ref(doc), weakref.ref(self)

        def begin() -> None:
            there, session = held(), page()
            if there is not None and session is not None:
                send_in_order(there)
                there.add_periodic_callback(session.beat, TICK)

        pn.state.onload(begin)
        return self.page

    def enter(self) -> None:
        """Someone sees the page: show what its URL names."""
        self.store.join()
        self.joined = True
        self.seen_alert = self.store.watch.number
        self.sidebar.list_presets()  # a page that was built ahead may know old ones
        self.refresh_list()
        self.routing.attach()

    # The loop

    def beat(self) -> None:
        """Tick, unless the last one was too near or is not drawn yet."""
        if (doc := pn.state.curdoc) is not None:
            send_waiting(doc)
        if self.pacing.may_send(time.monotonic(), self.store.pace, self.steering.busy):
            self.tick()

    def _drawn(self, event: Any) -> None:
        self.pacing.answer(event.new, time.monotonic())

    def tick(self) -> bool:
        """Pull what changed, in one batch; True when there was any. Of a page that nobody sees only the
        browser's tab is kept up to date.
        """
        if not self.visible:
            if time.monotonic() - self.told >= UNSEEN_EVERY:
                self.told, self.untold = time.monotonic(), True
                self._entitle()
            return False
        now = time.time()
        feed = self.feed
        version = feed.version if feed is not None else -1
        list_changed = self.store.list_version != self.seen_list
        moving = feed is not None and feed.state["status"] in ("created", "queued", "running")
        clock = moving and now - self.clock >= 1.0
        alerted = self.store.watch.number != self.seen_alert
        waiting = self.steering.busy or self._pending or self.untold or alerted
        if version == self.seen and not list_changed and not clock and not waiting:
            return False
        with pn.io.hold(pn.state.curdoc):
            if list_changed:
                self.refresh_list()
            if alerted:
                self._tell_alerts()
            self.refresh(clock, list_changed)
            self.steering.look(now)
            self._take_up()
            if (number := self.pacing.question(time.monotonic())) is not None:
                self.viewport.asked = number
        if clock:
            self.clock = now
        return True

    def refresh(
        self,
        clock: bool = False,
        list_changed: bool = False,
        everything: bool = False,
        chosen: bool = False,
    ) -> None:
        """Show what changed. `chosen`: someone came to the tab."""
        feed, tab = self.feed, self.tab
        version = feed.version if feed is not None else -1
        fresh = everything or version != self.seen
        self.seen = version
        standing = None if feed is None else (feed.id, feed.state["status"], feed.lost, feed.gone)
        turned = everything or standing != self.standing
        self.untold = self.untold or fresh
        if self.untold and (turned or time.monotonic() - self.told >= WORDS_EVERY):
            self.told, self.untold = time.monotonic(), False
            self._show_standing()
        if fresh and turned:  # nothing else of a run moves the buttons
            self.standing = standing
            self.apply_controls()
        changed: set[str] | None = None
        if tab.seen >= 0 and feed is not None and not everything:
            changed = feed.changed_since(tab.seen)
        elif tab.seen == -2 and feed is None and not everything:
            changed = set()
        if changed is not None:
            changed |= ({CLOCK} if clock else set()) | ({"runs"} if list_changed else set())
        if tab.key in self.behind and (changed or chosen):  # what it missed is not told of again
            changed = None
        if changed is None or changed - {CLOCK}:
            self.resting.pop(tab.key, None)
        if changed is None or changed:
            failed = True
            with self._going_on(tab.title, tab.key):  # the buttons work on, too
                tab.refresh(shown_of(feed), changed)
                failed = False
            (self.behind.add if failed else self.behind.discard)(tab.key)
        tab.seen = version if feed is not None else -2

    @property
    def _pending(self) -> bool:
        """Whether the tab has something of its own to take up; of one that could not be made never."""
        if time.monotonic() < self.resting.get(self.tab.key, 0.0):
            return False
        with self._going_on(self.tab.title, self.tab.key):
            return self.tab.built and self.tab.pending
        return False

    def _take_up(self) -> None:
        if self._pending:
            tab = self.tab
            self.resting[tab.key] = time.monotonic() + TAKE_UP_AGAIN
            with self._going_on(tab.title, tab.key):
                tab.take_up()
                self.resting.pop(tab.key, None)

    def _show_standing(self) -> None:
        """Above the tabs, and in the browser's tab."""
        with self._going_on("The line above the tabs"):
            there = self.store.path_of(self.context.missing) is not None
            self.bar.set(status_bar(self.feed, self.context.missing, there))
        self._entitle()

    @contextmanager
    def _going_on(self, title: str, key: str = "") -> Iterator[None]:
        """Where that part of the page fails, the rest goes on; the server's log says each error once."""
        try:
            yield
        except Exception as error:
            which = (key or title, self.feed.id if self.feed is not None else "", repr(error))
            if which not in self.logged:
                self.logged.add(which)
                log.exception("%s could not be made", title)
            self._tell_broken(key or title, title)

    def _tell_broken(self, key: str, title: str) -> None:
        """Say once for each run that a part of the page does not show what came."""
        which = (key, self.feed.id if self.feed is not None else "")
        if which not in self.broken:
            self.broken.add(which)
            why = "could not be brought up to date and may be old: the server's output says why."
            self.toasts.show("bad", f"{title} {why}")

    def _tell_alerts(self) -> None:
        """Those that came since the last look, of whichever run."""
        alerts = self.store.watch.after(self.seen_alert)
        self.seen_alert = alerts[-1].number
        if len(alerts) > AT_ONCE:
            self.toasts.show("warning", f"{fig.plural(len(alerts) - AT_ONCE, 'earlier alert')} came too.")
        for alert in alerts[-AT_ONCE:]:
            name = self.store.names.get(alert.run, alert.run)
            self.toasts.show(alert.tone, f"Alert in {name}: {alert.message}")
        self._entitle()

    def _entitle(self) -> None:
        """Say in the browser's tab how the run stands."""
        feed, unseen = self.feed, self.store.watch.number - self.seen_alert
        with self._going_on("The title of the browser's tab"):
            if feed is None:
                self.viewport.tab_title = page_title(None, unseen=unseen)
            else:
                self.viewport.tab_title = page_title(feed.state, feed.name, feed.lost, feed.gone, unseen)

    def apply_controls(self) -> None:
        feed = self.feed
        state = feed.state if feed is not None else None
        self.sidebar.apply(
            controls(
                state,
                feed is not None and feed.lost,
                self.sidebar.ready,
                self.steering.waiting,
                self.context.may_act,
                self.context.why_not,
                feed is not None and feed.remote,
                feed is not None and feed.gone,
            )
        )

    def say(self, tone: str, text: str) -> None:
        """Say something below the buttons, and in the corner too when it must not be missed."""
        self.sidebar.say(tone, text)
        if text and tone in ("bad", "warning", "good"):
            self.toasts.show(tone, text)

    # Which run, which tab

    @property
    def tab(self) -> Tab:
        """The tab that is shown."""
        return self.tabs[self.shown_tabs.active]

    def open(self, run_id: str, runs: tuple[str, ...] | None = None) -> None:
        """Show that run, or none when it is "" or there is none of that name. `runs`: all the URL names."""
        if self.feed is not None and self.feed.id == run_id:
            return
        if self.feed is not None:
            self.store.close(self.feed)
            self.feed = None  # it is given back once, whatever comes of the next
        self.feed = self.store.open(run_id) if run_id else None
        self.context.runs = (runs or (run_id,)) if self.feed is not None else ()
        self.context.missing = run_id if self.feed is None else ""
        self.steering.pending = None
        self.behind.clear()
        self.resting.clear()
        for tab in self.tabs:
            tab.forget()
        if self.feed is not None:
            form = form_of(self.feed.state, self.default, None if self.feed.remote else self.feed.path)
            self.sidebar.fill(form, (form.model, *form.text) if self.feed.remote else ())
            self.sidebar.say("neutral", "")
        elif run_id:
            there = self.store.path_of(run_id) is not None
            why = f"The run {run_id!r} cannot be read: the server's output says why."
            self.say("bad", why if there else f"There is no run {run_id!r} in {self.store.runs_dir}.")
        self.refresh_list()
        self.refresh(everything=True)

    def _selected(self, event: Any) -> None:
        if self.routing.busy:
            return
        if event.new == OLDER:
            self.context.open_run(",".join(self.context.runs), "runs")
        else:
            self.context.open_run(event.new)

    def _tab_chosen(self, event: Any) -> None:
        if not self.routing.busy:
            self.refresh(chosen=True)
            self._take_up()
            self.routing.push()

    def refresh_list(self) -> None:
        self.seen_list = self.store.list_version
        open_run = self.feed.id if self.feed is not None else ""
        options = run_options(self.store.runs, open_run)
        busy, self.routing.busy = self.routing.busy, True
        try:
            if options != self.selector.options or self.selector.value != open_run:
                # The browser knows the value by its label alone: a run whose label changed is chosen anew.
                self.selector.param.update(options=options, value="")
                self.selector.value = open_run
        finally:
            self.routing.busy = busy

    def _gone(self, _: Any) -> None:
        if self.feed is not None:
            self.store.close(self.feed)
            self.feed = None
        if self.joined:
            self.joined = False
            self.store.leave()


def _read_only(why_not: str) -> Markup:
    return Markup(
        '<div class="note warning" role="status" data-read-only style="margin:14px 20px 0"><span>'
        "<b>This page only shows runs.</b> {}</span></div>"
    ).format(why_not)
