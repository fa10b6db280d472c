"""Starting runs in a real browser: presets, and the question of what to do while other runs are at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser_helpers import button, open_page, patient, set_number, wait_until
from dashboard_log import write_run
from tritpress.dashboard.presets import load_presets
from tritpress.reference import reference_model_path
from tritpress.runs.history import list_runs

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("menuitem", name=option, exact=True).click()


def test_a_preset_is_saved_chosen_and_deleted(page: Any, server: str, runs_dir: Path) -> None:
    open_page(page, server)
    page.get_by_text("More settings").click()
    page.get_by_role("button", name="Presets", exact=True).click()
    assert button(page, "Save preset").is_disabled() and button(page, "Delete").is_disabled()
    set_number(page, "Calibration tokens", 2048)
    name = page.get_by_role("textbox", name="Name of a preset")
    name.fill("<b>mine</b>")
    wait_until(page, button(page, "Save preset").is_enabled, "a name makes it one that can be saved")
    button(page, "Save preset").click()
    page.get_by_role("combobox", name="Preset").get_by_text("<b>mine</b>").wait_for()
    assert load_presets(runs_dir)["<b>mine</b>"]["calibration_tokens"] == 2048

    other = patient(page.context.browser.new_page())
    other.set_default_timeout(60_000)
    open_page(other, server)
    choose(other, "Preset", "<b>mine</b>")
    other.get_by_text("More settings").click()
    field = other.get_by_role("textbox", name="Calibration tokens", exact=True)
    wait_until(other, lambda: field.input_value().replace(",", "") == "2048", "what the preset says")
    other.close()

    wait_until(page, button(page, "Delete").is_enabled, "a preset of one's own can be deleted")
    button(page, "Delete").click()
    wait_until(page, lambda: load_presets(runs_dir) == {}, "it is gone from the file")


def test_a_second_run_is_queued_or_runs_beside(page: Any, server: str, runs_dir: Path) -> None:
    first = write_run(runs_dir, "at-work", name="<i>first</i>", until="finetune.step")
    before = {run["id"] for run in list_runs(runs_dir)}
    open_page(page, f"{server}?run=at-work")
    assert button(page, "Start").count() == 0 and page.get_by_label("Model folder").is_disabled()
    button(page, "New run…").click()
    page.get_by_text("<i>first</i> goes on.").wait_for()
    assert button(page, "Start").is_visible() and "run=" not in page.url
    wait_until(page, page.get_by_label("Model folder").is_enabled, "the form is free")
    page.get_by_label("Model folder").fill(str(reference_model_path()))
    wait_until(page, button(page, "Start").is_enabled, "with a model there is something to start")
    page.get_by_text("More settings").click()
    for label in ("Calibration tokens", "Evaluation tokens"):
        set_number(page, label, 512)
    set_number(page, "Tokens of training", 512)

    def begun() -> list[dict[str, Any]]:
        return [run for run in list_runs(runs_dir) if run["id"] not in before]

    button(page, "Start").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("1 run is at work or waiting: <i>first</i>.").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert begun() == [], "to look away is no answer"

    button(page, "Start").click()
    dialog.get_by_role("button", name="Queue it").click()
    page.locator('[data-status="queued"]').wait_for()
    (queued,) = begun()
    assert queued["status"] == "queued" and queued["after"] == [first.path.name]
    button(page, "Stop").click()
    page.locator('[data-status="stopped"]').wait_for()

    before.add(queued["id"])
    open_page(page, server)
    page.get_by_text("More settings").click()
    set_number(page, "Calibration tokens", 512)
    button(page, "Start").click()
    dialog.get_by_role("button", name="Run beside").click()
    page.locator('[data-status="running"]').wait_for()
    (beside,) = begun()
    assert beside["status"] == "running" and not beside["after"]
    button(page, "Stop").click()
    page.locator('[data-status="stopped"]').wait_for()
