"""What a page says in its corner, and the presets of its sidebar, without a browser."""

from __future__ import annotations

import dataclasses
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dashboard_log import make_run
from tritpress.dashboard.components.toasts import AlertWatch, Toasts
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
from tritpress.dashboard.views.form import Form, chosen
from tritpress.errors import UsageError
from tritpress.events import EventWriter


def told(toasts: Toasts) -> list[tuple[str, str]]:
    return [(one.notification_type, one.message) for one in toasts.area.notifications]


def test_a_notice_has_its_tone_and_stays_the_longer_the_graver() -> None:
    toasts = Toasts()
    for tone in ("bad", "warning", "good", "live", "neutral", "of no name"):
        toasts.show(tone, f"it is {tone}")
    assert [kind for kind, _ in told(toasts)] == ["error", "warning", "success", "info", "info", "info"]
    bad, warning, good, *_ = (one.duration for one in toasts.area.notifications)
    assert bad > warning > good > 0


def test_alerts_are_told_once_and_not_those_from_before() -> None:
    watch = AlertWatch()
    old = [{"t": 5.0, "level": "critical", "message": "old"}]
    watch.begin(old)
    assert watch.new(old) == []
    later = [*old, {"t": 6.0, "level": "critical", "message": "new"}, {"t": 7.0, "rule": "speed"}, {"t": 8.0}]
    assert watch.new(later) == [
        ("bad", "Alert: new"),
        ("warning", "Alert: speed"),
        ("warning", "Alert: without a message"),
    ]
    assert watch.new(later) == []
    watch.begin([])
    assert len(watch.new(later)) == 4, "another run was opened"
    assert watch.new([{"message": "without a time"}]) == []


def test_an_alert_of_the_open_run_shows_in_the_corner(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    writer = EventWriter(run.path)
    writer.emit("alert", rule="nan", level="critical", message="from before")
    writer.flush()
    session = Session(RunStore(tmp_path))
    session.context.open_run("r")
    assert told(session.toasts) == []
    writer.emit("alert", rule="speed", level="warning", message="slower than before")
    writer.close()
    assert session.feed is not None
    session.feed.poll(time.monotonic() + 60)
    session.tick()
    session.tick()
    assert told(session.toasts) == [("warning", "Alert: slower than before")]
    session.say("live", "not to be missed by no one")
    assert len(told(session.toasts)) == 1, "what goes on stands under the buttons alone"
    session.say("good", "done")
    assert told(session.toasts)[-1] == ("success", "done")


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


def test_a_page_that_only_shows_keeps_no_presets(tmp_path: Path) -> None:
    session = Session(RunStore(tmp_path), may_act=False, why_not="Sign in first.")
    sidebar: Any = session.sidebar
    sidebar.preset_name.value_input = "mine"
    assert sidebar.preset_save.disabled
    sidebar._change_presets(sidebar._save_preset)
    assert told(session.toasts) == [("error", "Sign in first.")] and not (tmp_path / FILE).exists()
