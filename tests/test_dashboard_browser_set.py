"""A worker at work, told from the Tuning tab: what it presses afterwards has the setting, what it pressed
before has not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_helpers import button, number, wait_for_status, wait_until
from packed_decoder import decode
from tritpress.config import CompressionConfig
from tritpress.events import EventReader
from tritpress.plan import Plan
from tritpress.reference import reference_model_path
from tritpress.runs.directory import RunDirectory
from tritpress.runs.launch import launch

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

SPARSITY, THRESHOLD = 0.15, 0.25
LAST = "model.layers.5."


def happened(run: RunDirectory) -> list[dict[str, Any]]:
    return EventReader(run.events_path).poll()


def named(events: list[dict[str, Any]], kind: str) -> list[str]:
    return [event["name"] for event in events if event["type"] == kind]


def choose_value(page: Any, mode: str, slider: str, steps: int, in_url: str) -> None:
    """Move the slider of that mode so many steps up from its lower end."""
    # The form of a new run has a button of that name too, which rests while a run is at work.
    page.get_by_role("button", name=mode, exact=True, disabled=False).click()
    handle = page.get_by_role("slider", name=re.compile(slider))
    handle.wait_for()
    handle.focus()
    page.keyboard.press("Home")
    for _ in range(steps):
        page.keyboard.press("ArrowRight")
    wait_until(page, lambda: in_url in page.url, f"{page.url} instead of {in_url}")


def apply(page: Any) -> int:
    """Press the button that sets; of how many tensors it speaks."""
    found = page.get_by_role("button", name=re.compile(r"Set for \d+ tensors? not begun"))
    wait_until(page, found.is_enabled, "there is something to set")
    count = int(number(found.inner_text()))
    found.click()
    return count


def test_what_is_set_from_the_page_is_what_a_worker_presses(page: Any, server: str, runs_dir: Path) -> None:
    config = CompressionConfig(
        method="gptq", planes=1, evaluate=False, finetune=False, outputs="packed", calibration_tokens=8192
    )
    run = launch(reference_model_path(), None, config, runs_dir, name="Told meanwhile")
    page.goto(f"{server}?run={run.id}&tab=tuning")
    wait_until(page, lambda: len(named(happened(run), "layer.finished")) >= 5, "some tensors", seconds=240)
    button(page, "Pause").click()
    wait_for_status(page, "paused", seconds=60)
    paused = happened(run)
    every = [target["name"] for event in paused if event["type"] == "model" for target in event["targets"]]
    begun = named(paused, "layer.started")
    rest = [name for name in every if name not in begun]
    last = [name for name in rest if name.startswith(LAST)]
    assert len(every) == 42 and len(begun) >= 5 and len(last) == 7, f"paused too late: {begun}"

    choose_value(page, "Sparsity", "Zero codes", 30, f"sparsity={SPARSITY:g}")
    assert apply(page) == len(rest)
    page.get_by_text(f"Worker: {len(rest)} tensors will be pressed with sparsity {SPARSITY:g}").wait_for()
    page.get_by_role("combobox", name="Layer", exact=True).click()
    page.get_by_role("menuitem", name="Layer 5", exact=True).click()
    choose_value(page, "Threshold", "Threshold", 25, f"threshold={THRESHOLD:g}")
    assert apply(page) == len(last)
    page.get_by_text(f"Worker: {len(last)} tensors will be pressed with threshold {THRESHOLD:g}").wait_for()
    assert named(happened(run), "layer.started") == begun, "a paused run begins nothing"
    button(page, "Resume").click()
    wait_for_status(page, "finished", seconds=300)

    report = json.loads(run.report_path.read_text())
    zeros = {layer["name"]: layer["sparsity"] for layer in report["layers"]}
    assert set(zeros) == set(every)
    told = {event["name"]: event["sparsity"] for event in happened(run) if event["type"] == "layer.finished"}
    assert told == pytest.approx(zeros)
    # With one plane a weight of the file is 0 where its code is.
    for name, weight in decode(run.path / "out" / "packed").items():
        if name in zeros:
            assert np.mean(weight == 0) == pytest.approx(zeros[name], abs=1e-4), name
    for planned in (Plan.load(run.work / "plan.json"), Plan.model_validate(report["plan"])):
        setting = {name: (t.threshold, t.sparsity) for name, t in planned.tensors.items()}
        assert {setting[name] for name in begun} == {(None, None)}
        assert {setting[name] for name in rest if name not in last} == {(None, SPARSITY)}
        assert {setting[name] for name in last} == {(THRESHOLD, None)}
    for name in every:
        if name in begun:
            assert zeros[name] > 0.25, f"{name} was begun before: {zeros[name]}"
        elif name in last:
            # A normal distribution has 15.8 % of its weights below a quarter of their mean size.
            assert zeros[name] == pytest.approx(0.158, abs=0.03), name
        else:
            assert zeros[name] == pytest.approx(SPARSITY, abs=0.005), name
