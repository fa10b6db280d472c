"""What a page says in its corner, and the presets of its sidebar, without a browser."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
import tomllib
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dashboard_log import events, make_run, write_run
from tritpress.dashboard.components.toasts import Toasts
from tritpress.dashboard.presets import (
    BUILT_IN,
    FILE,
    MOST,
    NAME_LENGTH,
    apply_preset,
    delete_preset,
    load_presets,
    save_preset,
)
from tritpress.dashboard.session import Session
from tritpress.dashboard.sidebar import NO_PRESET
from tritpress.dashboard.store import RunStore
from tritpress.dashboard.tabs.compare import Compare
from tritpress.dashboard.views.form import Form, chosen
from tritpress.dashboard.views.status import Headline, headline
from tritpress.dashboard.views.title import page_title
from tritpress.dashboard.watch import AlertWatch
from tritpress.errors import InputError, UsageError
from tritpress.events import EventWriter, fold, initial_state
from tritpress.events.rules import DEFAULT_RULES
from tritpress.reference import reference_model_path
from tritpress.runs.comparison import MOST as MOST_RUNS
from tritpress.runs.directory import REMOTE, RunDirectory


def told(toasts: Toasts) -> list[tuple[str, str]]:
    return [(one.notification_type, one.message) for one in toasts.area.notifications]


def test_a_notice_has_its_tone_and_stays_the_longer_the_graver() -> None:
    toasts = Toasts()
    for tone in ("bad", "warning", "good", "live", "neutral", "of no name"):
        toasts.show(tone, f"it is {tone}")
    assert [kind for kind, _ in told(toasts)] == ["error", "warning", "success", "info", "info", "info"]
    bad, warning, good, *_ = (one.duration for one in toasts.area.notifications)
    assert bad > warning > good > 0


def beat(session: Session) -> None:
    """As the store's thread and the page's loop do."""
    session.store.refresh_list()
    session.store.watch.look(session.store.runs, session.store.watch._next)
    session.tick()


def test_alerts_of_every_run_at_work_show_in_the_corner(tmp_path: Path) -> None:
    writers = {}
    for run_id in ("open", "other"):
        run = make_run(tmp_path, run_id, name=f"the {run_id} one")
        writers[run_id] = EventWriter(run.path)
        writers[run_id].emit("alert", rule="nan", level="critical", message="from before")
        writers[run_id].flush()
    store = RunStore(tmp_path)
    session = Session(store)
    session.context.open_run("open")
    beat(session)
    assert told(session.toasts) == []
    writers["open"].emit("alert", rule="speed", level="warning", message="slower than before")
    writers["open"].flush()
    beat(session)
    beat(session)
    assert told(session.toasts) == [("warning", "Alert in the open one: slower than before")]
    writers["other"].emit("alert", rule="nan", level="critical", message="not a number")
    writers["other"].flush()
    beat(session)
    assert told(session.toasts)[-1] == ("error", "Alert in the other one: not a number")
    session.context.open_run("other")
    beat(session)
    session.context.open_run("")
    for number in range(6):
        writers["other"].emit("alert", rule="nan", level="warning", message=f"number {number}")
    writers["other"].close()
    RunDirectory(tmp_path / "other").update_run(status="failed")
    beat(session)
    found = [text for _, text in told(session.toasts)][2:]
    last = [f"Alert in the other one: number {number}" for number in range(2, 6)]
    assert found == ["2 earlier alerts came too.", *last]
    session.say("live", "not to be missed by no one")
    assert len(told(session.toasts)) == 7, "what goes on stands under the buttons alone"
    session.say("good", "done")
    assert told(session.toasts)[-1] == ("success", "done")
    writers["open"].close()


def test_what_came_while_nobody_looked_is_no_news_and_what_a_hidden_page_missed_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", name="a model")
    writer = EventWriter(run.path)
    session = Session(RunStore(tmp_path))
    beat(session)
    writer.emit("alert", rule="nan", level="critical", message="unheard")
    writer.flush()
    session.store.watch._begun = time.time() + 1  # as if the page had opened then
    session.store.watch._fresh = True
    beat(session)
    assert told(session.toasts) == []
    session.visible = False
    writer.emit("alert", rule="nan", level="critical", message="unseen")
    writer.close()
    session.told = 0.0
    beat(session)
    assert told(session.toasts) == [] and session.viewport.tab_title == "(1) tritpress"
    session.visible = True
    beat(session)
    assert told(session.toasts) == [("error", "Alert in a model: unseen")]
    assert session.viewport.tab_title == "tritpress"


def test_only_whole_lines_of_a_log_are_looked_at(tmp_path: Path) -> None:
    run, watch = make_run(tmp_path, "r"), AlertWatch()
    listed = [{"id": "r", "status": "running", "path": str(run.path)}]
    watch.look(listed, 0.0)
    event = {"seq": 1, "t": time.time(), "type": "alert", "message": "whole"}
    line = json.dumps({**event, "type": "log", "message": '"alert"'}) + "\n" + json.dumps({**event, "seq": 2})
    run.events_path.write_text(line)
    watch.look(listed, 1.0)
    assert watch.last == ()
    with open(run.events_path, "a") as file:
        file.write("\n{broken\n")
    watch.look(listed, 1.1)
    assert watch.last == (), "not looked at again so soon"
    watch.look(listed, 2.0)
    assert [(alert.run, alert.message, alert.tone) for alert in watch.last] == [("r", "whole", "warning")]
    assert watch.after(0) == list(watch.last) and watch.after(watch.number) == []


def test_the_browsers_tab_says_how_the_run_stands(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", name="Llama")
    state = initial_state("r")
    seen = {}
    for seq, (kind, fields) in enumerate(events(run, name="Llama")):
        fold(state, {"v": 1, "run": "r", "seq": seq, "t": 1000.0 + seq, "type": kind, **fields})
        seen[page_title(state, "Llama")] = None
    assert next(iter(seen)) == "● Llama running" and list(seen)[-1] == "✓ Llama"
    assert "● Llama · step 1 of 7" in seen and "50 % · Llama · step 4 of 7" in seen
    assert page_title(None) == "tritpress" and page_title(None, unseen=3) == "(3) tritpress"
    for status, title in {
        "failed": "✕ Llama failed",
        "stopped": "■ Llama stopped",
        "paused": "❚❚ Llama paused",
        "queued": "◷ Llama queued",
    }.items():
        assert page_title({**state, "status": status}, "Llama") == title
    at_work = {**state, "status": "running"}
    assert page_title(at_work, "Llama", lost=True) == "✕ Llama: worker gone"
    assert page_title(at_work, "Llama", gone=True) == "○ Llama deleted"
    queued = make_run(tmp_path, "q", name="next", status="queued")
    store = RunStore(tmp_path)
    store.refresh_list()
    session = Session(store)
    session.context.open_run(queued.id)
    assert session.viewport.tab_title == "● next starting", "the list knows the name of what has not begun"
    state["gates"]["ratio"]["passed"] = False
    assert page_title(state, "Llama", unseen=1) == "(1) ! Llama"


FORM = Form(model="/models/m", planes=2, method="fast", finetune=False, text=('a "b"', "c\\d"), seed=7)


def test_a_preset_is_kept_without_its_model(tmp_path: Path) -> None:
    assert load_presets(tmp_path) == {}
    assert save_preset(tmp_path, '  my   "own"  ', FORM) == 'my "own"'
    save_preset(tmp_path, "plain", Form())
    kept = load_presets(tmp_path)
    assert list(kept) == ['my "own"', "plain"] and kept['my "own"'] == chosen(FORM)
    assert tomllib.loads((tmp_path / FILE).read_text()) == kept
    default = Form(amount=5000)
    made = apply_preset(Form(model="/models/other", seed=3), kept['my "own"'], default)
    assert made == dataclasses.replace(FORM, model="/models/other", amount=5000)
    assert apply_preset(FORM, kept["plain"], default).seed == 0, (
        "what a preset does not name is the default's"
    )
    save_preset(tmp_path, "plain", FORM)
    assert len(load_presets(tmp_path)) == 2 and load_presets(tmp_path)["plain"] == chosen(FORM)
    delete_preset(tmp_path, "plain")
    assert list(load_presets(tmp_path)) == ['my "own"']


def test_a_preset_of_before_settings_without_effect_were_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('["x"]\noptimizer = "muon"\ngrokfast_lambda = 0.2\ntask_limit = 3\n')
    form = apply_preset(Form(model="/m"), load_presets(tmp_path)["x"], Form())
    assert chosen(form) == {"optimizer": "muon", "finetune": True, "tokens": 100_000}


def test_what_is_no_preset(tmp_path: Path) -> None:
    for name in ("", "  ", "x" * (NAME_LENGTH + 1), "a\x00b", *BUILT_IN):
        with pytest.raises(UsageError):
            save_preset(tmp_path, name, FORM)
    with pytest.raises(UsageError, match="no own preset"):
        delete_preset(tmp_path, "nothing")
    assert not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_text("".join(f'["{number}"]\n' for number in range(MOST)))
    with pytest.raises(UsageError, match="delete one first"):
        save_preset(tmp_path, "one more", FORM)
    save_preset(tmp_path, "3", FORM)
    for text, words in {
        "[x": "cannot be read",
        "planes = 2": "outside",
        '["x"]\nplanes = 9': "planes",
    }.items():
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UsageError, match=words):
            load_presets(tmp_path)
    (tmp_path / FILE).write_text('["x"]\nplanes = 2\nalert_command = "rm -rf /"\n')
    assert load_presets(tmp_path) == {"x": {"planes": 2}}, "a file of settings starts no program"


def test_presets_in_the_sidebar(tmp_path: Path) -> None:
    sidebar: Any = Session(RunStore(tmp_path)).sidebar
    assert sidebar.preset.options == [NO_PRESET, *BUILT_IN] and sidebar.preset_save.disabled
    sidebar.fill(dataclasses.replace(sidebar.form(), planes=3, seed=11))
    sidebar.preset_name.value_input = "mine"
    assert not sidebar.preset_save.disabled and sidebar.preset_delete.disabled
    sidebar._change_presets(sidebar._save_preset)
    assert sidebar.preset.value == "mine" and load_presets(tmp_path)["mine"]["planes"] == 3
    sidebar.preset.value = "Smallest (1.58-bit)"
    assert (sidebar.form().planes, sidebar.form().seed) == (1, 0) and sidebar.preset_name.value == ""
    sidebar.preset.value = "mine"
    assert (sidebar.form().planes, sidebar.form().seed) == (3, 11) and sidebar.preset_name.value == "mine"
    sidebar.preset_name.value_input = "mine"
    assert not sidebar.preset_delete.disabled
    sidebar._change_presets(sidebar._delete_preset)
    assert sidebar.preset.options == [NO_PRESET, *BUILT_IN] and sidebar.preset.value == NO_PRESET
    assert load_presets(tmp_path) == {}


def test_the_paths_of_another_machine_are_not_looked_at_on_this_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text", encoding="utf-8")
    text = [str(tmp_path / "notes.txt"), "~nobody-here/x"]
    run = make_run(tmp_path / "runs", "pushed", status="finished", text=text)
    run.update_run(origin=REMOTE)
    writer = EventWriter(run.path)
    writer.emit("run.started", model=str(tmp_path), config=run.read_run()["config"], name="pushed")
    writer.emit("run.finished", status="finished")
    writer.close()
    session = Session(RunStore(tmp_path / "runs"))
    session.open("pushed")
    sidebar: Any = session.sidebar
    assert sidebar.form().model == str(tmp_path) and sidebar.form().text == tuple(text)
    assert sidebar.ready and "on the machine that works on this run" in sidebar.check.lines[0]
    assert sidebar.text_check.words == "2 texts on that machine; Start looks for them here."
    sidebar.fields.model.value = str(reference_model_path())
    assert sidebar.ready and sidebar.check.reference, "a path of this machine is looked at"
    session.starting.start()
    assert not sidebar.ready and "~nobody-here/x" in told(session.toasts)[-1][1]


def test_alerts_in_the_sidebar(tmp_path: Path) -> None:
    sidebar: Any = Session(RunStore(tmp_path)).sidebar
    fields = sidebar.fields
    assert fields.alerts.value == "default" and not fields.rules.visible
    fields.alerts.value = "own"
    assert fields.rules.visible and sidebar.form().alerts == DEFAULT_RULES, "the usual ones to begin with"
    assert "gate:NAME" in fields.rules_words.pane.object and "--alert" not in sidebar.equal_command.text
    fields.rules.value = "gate\n\n metric:loss>9 \nstaled:5"
    assert "staled:5" in fields.rules_words.pane.object and "is no rule" in sidebar.wrong.pane.object
    assert "--alert" not in sidebar.equal_command.text
    fields.rules.value = "gate\n\n metric:loss>9 "
    assert sidebar.wrong.pane.object == "" and sidebar.form().alerts == ("gate", "metric:loss>9")
    assert "--alert gate --alert 'metric:loss>9'" in sidebar.equal_command.text
    fields.webhook.value = "ftp://example.org"
    assert "alert_webhook must be" in sidebar.wrong.pane.object
    fields.webhook.value = " https://example.org/hook "
    assert 'alert_webhook = "https://example.org/hook"' in sidebar.equal_toml.text
    mine = sidebar.form()
    fields.alerts.value = "none"
    assert sidebar.form().alerts == () and "--alert none" in sidebar.equal_command.text
    sidebar.fill(mine)
    assert sidebar.form() == mine and fields.alerts.value == "own" and not sidebar.fields.extra
    sidebar.fill(sidebar.default)
    assert fields.alerts.value == "default" and fields.webhook.value == ""


def test_the_filters_weight_is_for_the_optimizer_that_has_it(tmp_path: Path) -> None:
    sidebar: Any = Session(RunStore(tmp_path)).sidebar
    fields = sidebar.fields
    assert fields.optimizer.value == "adamw" and fields.grokfast.disabled
    for optimizer, disabled in (("mugrokfast", False), ("muon", True), ("mugrokfast", False)):
        fields.optimizer.value = optimizer
        assert fields.grokfast.disabled == disabled and not fields.weight_decay.disabled
    fields.finetune.value = False
    assert fields.grokfast.disabled and fields.optimizer.disabled


def test_a_page_that_only_shows_keeps_no_presets(tmp_path: Path) -> None:
    session = Session(RunStore(tmp_path), may_act=False, why_not="Sign in first.")
    sidebar: Any = session.sidebar
    sidebar.preset_name.value_input = "mine"
    assert sidebar.preset_save.disabled
    sidebar._change_presets(sidebar._save_preset)
    assert told(session.toasts) == [("error", "Sign in first.")] and not (tmp_path / FILE).exists()


@pytest.mark.parametrize("until", ["layer.started", None])
def test_a_deleted_run_offers_nothing_that_needs_it(tmp_path: Path, until: str | None) -> None:
    write_run(tmp_path, "a-run", until=until)
    store = RunStore(tmp_path)
    session = Session(store)
    session.context.open_run("a-run", "overview")
    shutil.rmtree(tmp_path / "a-run")
    session.feed.poll(time.monotonic() + 60)
    session.tick()
    assert session.feed.gone and session.sidebar.pause.disabled and session.sidebar.stop.disabled
    shown = session.tab.status.pane.object
    assert "no longer there" in shown and "data-next" not in shown and "At work" not in shown


def test_a_missing_run_is_forgotten_when_the_page_goes_on(tmp_path: Path) -> None:
    session = Session(RunStore(tmp_path))
    session.routing.go({"run": "not-there"})
    assert session.context.missing == "not-there"
    session.context.open_run("")
    assert session.context.missing == ""


def test_a_missing_run_opens_once_it_is_there(tmp_path: Path) -> None:
    session = Session(RunStore(tmp_path))
    session.routing.go({"run": "later"})
    assert session.feed is None and session.context.missing == "later"
    write_run(tmp_path, "later")
    session.context.open_run("later")
    assert session.feed is not None and session.context.missing == "" and session.context.runs == ("later",)


@pytest.mark.parametrize("odd", ["²", "1" * 5000, "-1", "0", "1e3", "nan", "", " 2", "٣"])
def test_a_link_with_odd_numbers_opens_the_plain_view(tmp_path: Path, odd: str) -> None:
    write_run(tmp_path, "a-run")
    store = RunStore(tmp_path)
    store.refresh_list()
    session = Session(store)
    session.open("a-run")
    keys = ("page", "layer", "metrics", "smooth", "threshold", "sparsity", "x", "sort", "order", "state")
    for tab in session.tabs:
        tab.go(dict.fromkeys(keys, odd))
        session.shown_tabs.active = session.tabs.index(tab)
        assert tab.built and isinstance(tab.query(), dict)


def test_a_tab_that_breaks_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, "a-run")
    store = RunStore(tmp_path)
    store.refresh_list()
    session = Session(store)
    session.open("a-run")

    def fails(*given: object) -> None:
        raise KeyError("a figure")

    monkeypatch.setattr(type(session.tab), "update", fails)
    caplog.clear()
    for _ in range(3):
        session.refresh(everything=True)
    assert [bool(record.exc_info) for record in caplog.records] == [True], "the server's log has it once"

    def fails_otherwise(*given: object) -> None:
        raise KeyError("another figure")

    monkeypatch.setattr(type(session.tab), "update", fails_otherwise)
    session.refresh(everything=True)
    assert len(caplog.records) == 2, "another error is another"
    broken = [message for _, message in told(session.toasts) if "could not be brought up to date" in message]
    assert len(broken) == 1 and broken[0].startswith(session.tab.title)


def test_a_tab_that_breaks_leaves_the_buttons_and_shows_all_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "r", until="gate")
    session = Session(RunStore(tmp_path))
    session.routing.go({"run": "r", "tab": "overview"})
    feed, tab, asked = session.feed, session.tab, []
    later = itertools.count(time.monotonic() + 60, 60)
    assert feed is not None

    def update(_: object, shown: object, changed: set[str] | None) -> None:
        asked.append(changed)
        if len(asked) == 1:
            raise KeyError("a figure")

    monkeypatch.setattr(type(tab), "update", update)

    def happens(kind: str, **fields: Any) -> None:
        with closing(EventWriter(tmp_path / "r")) as writer:
            writer.emit(kind, **fields)
        assert feed.poll(next(later))

    done: list[str] = []
    session.steering.background(lambda: "done", done.append, "", "no")
    session.steering.jobs[0].future.result()
    happens("step.progress", step=7, done=1, total=9)
    assert session.tick() and done == ["done"], "what was pressed is taken up"
    assert tab.seen == feed.version
    happens("step.progress", step=7, done=2, total=9)
    session.tick()
    assert asked[1] is None, "it has missed something"
    happens("step.progress", step=7, done=3, total=9)
    session.tick()
    assert asked[2] is not None and "step.progress" in asked[2]


def test_a_tab_that_failed_shows_what_it_missed_at_the_next_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "r", until="gate")
    session = Session(RunStore(tmp_path))
    session.routing.go({"run": "r", "tab": "overview"})
    asked: list[set[str] | None] = []

    def update(_: object, shown: object, changed: set[str] | None) -> None:
        asked.append(changed)
        if len(asked) == 1:
            raise KeyError("a figure")

    monkeypatch.setattr(type(session.tab), "interests", frozenset({"step.progress"}))
    monkeypatch.setattr(type(session.tab), "update", update)
    with closing(EventWriter(tmp_path / "r")) as writer:
        writer.emit("step.progress", step=7, done=1, total=9)
    assert session.feed is not None and session.feed.poll(time.monotonic() + 60)
    session.refresh()
    assert asked == [{"step.progress"}]
    session.refresh(clock=True)
    assert asked[1:] == [None] and not session.behind
    session.refresh(clock=True)
    assert len(asked) == 2, "it has caught up: the clock alone is nothing to it"


@pytest.mark.parametrize("run", ["r", ""])
@pytest.mark.parametrize("part", ["build", "update"])
def test_a_tab_that_failed_is_made_when_someone_comes_back_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, run: str
) -> None:
    def fails(*given: object) -> None:
        raise KeyError("a part")

    write_run(tmp_path, "r")
    session = Session(RunStore(tmp_path))
    session.routing.go({"run": run})
    place = next(n for n, tab in enumerate(session.tabs) if tab.key == "overview")
    tab, other = session.tabs[place], (place + 1) % len(session.tabs)
    session.shown_tabs.active = other
    tab.forget()
    with monkeypatch.context() as broken:
        broken.setattr(type(tab), part, fails)
        session.shown_tabs.active = place
        assert session.behind == {"overview"}
    session.shown_tabs.active = other
    session.shown_tabs.active = place
    assert tab.built and len(tab.holder.objects) > 1 and not session.behind


def test_a_tab_that_cannot_take_up_what_came_is_not_asked_at_every_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "r", until="gate")
    session = Session(RunStore(tmp_path))
    session.routing.go({"run": "r", "tab": "progress"})
    tab: Any = session.tab
    tab.lookup = Future()
    tab.lookup.set_exception(OSError("the log"))
    assert session._pending
    session._take_up()
    assert tab.lookup is None and not tab.pending

    asked = []

    def fails(_: object) -> None:
        asked.append(1)
        raise OSError("the log")

    monkeypatch.setattr(type(tab), "pending", True)
    monkeypatch.setattr(type(tab), "take_up", fails)
    session.resting.clear()
    for _ in range(4):
        session._take_up()
    session.refresh(clock=True)
    assert len(asked) == 1 and not session._pending
    with closing(EventWriter(tmp_path / "r")) as writer:
        writer.emit("step.progress", step=7, done=1, total=9)
    assert session.feed is not None and session.feed.poll(time.monotonic() + 60)
    session.refresh()
    session._take_up()
    assert len(asked) == 2, "something more came"
    session.resting["progress"] = time.monotonic() - 1
    session._take_up()
    assert len(asked) == 3, "some time has passed"


def test_a_tab_that_cannot_be_made_leaves_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise KeyError("a part")

    write_run(tmp_path, "r")
    session = Session(RunStore(tmp_path))
    tab = next(tab for tab in session.tabs if tab.key == "compare")
    monkeypatch.setattr(type(tab), "build", fails)
    session.routing.go({"run": "r", "tab": "compare"})
    session.tick()
    assert not tab.built and session.feed is not None
    session.shown_tabs.active = 0
    assert session.tabs[0].built


@pytest.mark.parametrize("runs", ["a,b,a", "a,b,c,d,e,f,g", "a,,b", "a,nope,b"])
def test_odd_links_to_compare_are_worked_on_once(tmp_path: Path, runs: str) -> None:
    for name in "abcdefg":
        make_run(tmp_path, name)
    session = Session(RunStore(tmp_path))
    session.store.refresh_list()
    session.routing.go({"run": runs, "tab": "compare"})
    tab = session.tab
    assert isinstance(tab, Compare) and len(tab.ids) == len(set(tab.ids)) <= MOST_RUNS
    tab.compared = float("-inf")
    assert not tab.pending


def test_a_run_is_said_to_be_asked_to_stop_only_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> str:
        raise InputError("the disk is full")

    run = write_run(tmp_path, "r", until="gate")
    session = Session(RunStore(tmp_path))
    session.open("r")
    monkeypatch.setattr("tritpress.runs.commands.send", fails)
    session.steering.ask_reset()
    assert session.steering.dialog.open
    session.steering._stop_and_reset()
    said = [message for _, message in told(session.toasts)]
    assert said == ["the disk is full"] and session.feed is not None, "it is still open and at work"
    monkeypatch.undo()
    session.steering._stop_and_reset()
    assert session.feed is None and "was asked to stop" in told(session.toasts)[-1][1]
    assert '"stop"' in (run.path / "commands.jsonl").read_text()

    watching = Session(RunStore(tmp_path), may_act=False, why_not="this page only shows runs")
    watching.open("r")
    watching.steering.ask_reset()
    assert not watching.steering.dialog.open and watching.feed is None, "nothing is asked that it may not do"


def test_a_line_or_title_that_breaks_leaves_the_rest_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object, **named: object) -> None:
        raise KeyError("a figure")

    write_run(tmp_path, "a-run")
    store = RunStore(tmp_path)
    store.refresh_list()
    session = Session(store)
    monkeypatch.setattr("tritpress.dashboard.session.status_bar", fails)
    monkeypatch.setattr("tritpress.dashboard.session.page_title", fails)
    session.open("a-run")
    session.refresh(everything=True)
    assert session.tab.seen == session.feed.version, "the tab shows the run"  # type: ignore[union-attr]
    broken = [message for _, message in told(session.toasts) if "could not be brought up to date" in message]
    assert len(broken) == 2 and "above the tabs" in broken[0] and "title" in broken[1]


def test_a_plan_or_a_model_of_few_words_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path, "few")
    writer = EventWriter(run.path)
    writer.emit("run.started", model="m", config={}, name="few")
    writer.emit("model", model={}, targets=[{"name": "t", "layer": "x"}, {"name": "u", "layer": 1}])
    writer.emit("plan", tensors=[{"name": "t", "planes": 2}, {"name": "u", "planes": 1}], predicted_ratio=6.0)
    writer.emit("gradient", layer="t", norm=1.0)
    writer.close()
    session = Session(RunStore(tmp_path))
    session.open("few")
    assert session.feed is not None
    assert headline(session.feed.state) == Headline("6.00×", "–", "–", False, "planned")
    assert "6.00×" in str(session.bar.pane.object)
    for tab in session.tabs:
        session.shown_tabs.active = session.tabs.index(tab)
        assert tab.built
    none = {"tensors": [{"name": "t", "planes": 2, "rows": 0, "cols": 0, "bits": 1}], "predicted_ratio": 6.0}
    assert headline({**session.feed.state, "plan": none}).bits == "–"


def test_runs_worked_on_elsewhere_are_no_reason_to_queue(tmp_path: Path) -> None:
    pushed = write_run(tmp_path, "pushed", until="gate")
    pushed.update_run(origin="remote", host="remote", pid=0, heartbeat=time.time())
    session: Any = Session(RunStore(tmp_path))
    session.store.refresh_list()
    assert [(run["alive"], run["status"]) for run in session.store.runs] == [(True, "running")]
    started, asked = [], []
    session.starting._launch = lambda wanted, queue: started.append((wanted.name, queue))
    session.starting.question.ask = asked.append
    session.starting.start_run("/models/m", {}, "beside it")
    assert (started, asked) == ([("beside it", False)], [])
    write_run(tmp_path, "here", name="mine", until="gate")
    session.starting.start_run("/models/m", {}, "asked about")
    assert len(started) == 1
    (question,) = asked
    assert "1 run is" in question and "<b>mine</b>" in question


def test_a_run_that_cannot_be_read_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "odd")
    write_run(tmp_path, "whole")
    session: Any = Session(store := RunStore(tmp_path))
    plain = store.open
    monkeypatch.setattr(store, "open", lambda run: None if run == "odd" else plain(run))
    for tab in ("overview", "compare"):
        for run, words in (
            ("odd", "The run &#39;odd&#39; cannot be read"),
            ("no", "There is no run &#39;no"),
        ):
            session.context.open_run(run, tab)
            assert words in session.bar.pane.object
            if tab == "overview":
                assert words in session.tab.status.pane.object
    session.context.open_run("whole,odd", "compare")
    assert "The run &#39;odd&#39; cannot be read." in session.tab.settings.pane.object


def offered(session: Any) -> list[str]:
    """Which of Pause and Resume the page shows."""
    return [name for name in ("pause", "resume") if session.sidebar.hints[name].visible]


def test_of_two_pages_that_pause_at_once_the_second_resumes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    pages: list[Any] = [Session(store := RunStore(tmp_path)), Session(store)]
    with closing(EventWriter(run.path)) as writer:
        writer.emit("run.started", model="/models/m", out="o", config={})
        for page in pages:
            page.context.open_run("r")
        feed = pages[0].feed
        assert pages[1].feed is feed and offered(pages[1]) == ["pause"]

        def sent() -> list[str]:
            lines = run.commands_path.read_text().splitlines() if run.commands_path.exists() else []
            return [json.loads(line)["command"] for line in lines]

        pages[0].sidebar.pause.clicks += 1
        pages[0].sidebar.pause.clicks += 1
        assert sent() == ["pause"], "a second click while the first is awaited is none"
        writer.emit("run.paused")
        feed.poll(time.monotonic() + 60)
        pages[1].sidebar.pause.clicks += 1  # before its button was changed
        assert sent() == ["pause"]
        assert told(pages[1].toasts)[-1][1] == "Nothing was sent, as the run changed meanwhile: paused."
        assert offered(pages[1]) == ["resume"]
        pages[1].sidebar.pause.clicks += 1  # it was changed here, and the browser still shows the old one
        assert sent() == ["pause"]
        pages[1].sidebar.resume.clicks += 1
        assert sent() == ["pause", "resume"]
        writer.emit("run.finished", status="finished", exit_code=0)
        feed.poll(time.monotonic() + 120)
        pages[1].steering.pending = None
        pages[1].sidebar.pause.clicks += 1
        assert sent() == ["pause", "resume"] and "finished" in told(pages[1].toasts)[-1][1]


def test_a_reset_says_only_of_a_run_that_was_asked_to_stop_that_it_was(tmp_path: Path) -> None:
    write_run(tmp_path, "r", name="mine", until="gate")
    session: Any = Session(RunStore(tmp_path))
    session.context.open_run("r")
    session.feed.path.joinpath("run.json").unlink()
    session.steering._stop_and_reset()
    said = told(session.toasts)
    assert session.feed is not None and said and not any("was asked to stop" in words for _, words in said)

    write_run(tmp_path, "s", name="other", until="gate")
    session.context.open_run("s")
    session.steering._stop_and_reset()
    assert session.feed is None and "other was asked to stop" in told(session.toasts)[-1][1]

    watcher: Any = Session(RunStore(tmp_path), may_act=False, why_not="only to be looked at")
    watcher.context.open_run("s")
    asked: list[Any] = []
    watcher.steering.question.ask = asked.append
    watcher.steering.ask_reset()
    assert not asked and watcher.feed is None
