"""Metrics and Quality in a real browser: curves that grow, smoothing, a zoom that stays, alerts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import number, patient, wait_until
from dashboard_log import make_run, write_run
from tritpress.events import EventReader, EventWriter
from tritpress.runs.directory import RunDirectory

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CURVES = """() => {
  const found = {}
  for (const doc of Bokeh.documents) for (const model of doc._all_models.values()) {
    if (model.type !== "ColumnDataSource" || !model.name || !/^(curve|gradient):/.test(model.name)) continue
    found[model.name] = Object.fromEntries(
      Object.entries(model.data).map(([key, values]) => [key, Array.from(values)]))
  }
  return found
}"""

RANGE = """(name) => {
  for (const doc of Bokeh.documents) for (const model of doc._all_models.values())
    if (model.type === "Figure" && model.name === name)
      return [model.x_range.start, model.x_range.end, model.y_range.start, model.y_range.end]
  return null
}"""

CANVAS = """(name) => {
  const find = (view) => {
    if (view.model && view.model.type === "Figure" && view.model.name === name) return view
    for (const child of view.children()) { const hit = find(child); if (hit) return hit }
    return null
  }
  for (const root of Bokeh.index.roots) {
    const view = find(root)
    if (view) {
      view.el.scrollIntoView({block: "center"})
      const box = view.el.getBoundingClientRect()
      const inner = view.frame.bbox
      return {x: box.x + inner.left, y: box.y + inner.top, width: inner.width, height: inner.height}
    }
  }
  return null
}"""


def curves_of(page: Any) -> dict[str, dict[str, list[float]]]:
    return dict(page.evaluate(CURVES))


def points(page: Any, key: str) -> int:
    return len(curves_of(page).get(f"curve:{key}", {}).get("x", []))


class Live:
    """A run that this process is at work on, event by event."""

    def __init__(self, runs_dir: Path, run_id: str) -> None:
        self.run: RunDirectory = make_run(runs_dir, run_id, name="A live one")
        self.writer = EventWriter(self.run.path)
        self.emit = self.writer.emit
        self.emit("run.started", model="/models/m", out="o", config=self.run.read_run()["config"], name="L")
        self.emit("step.started", step=5, name="fine-tuning")
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            loss = 2.0 / self.step + 0.1 * (self.step % 2)
            self.emit(
                "finetune.step",
                step=self.step,
                steps=500,
                epoch=1,
                tokens=512 * self.step,
                loss=loss,
                ce=loss + 2,
                kl=loss,
                lr=2e-3,
                grad_norm=0.5,
                tokens_per_s=1000.0 + self.step,
            )


@pytest.fixture
def live(runs_dir: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    made = Live(runs_dir, f"live-{abs(hash(request.node.name)) % 10_000}")
    yield made
    made.writer.close()
    made.run.update_run(status="finished", exit_code=0)


def open_tab(page: Any, server: str, run: str, tab: str, query: str = "") -> None:
    page.goto(f"{server}?run={run}&tab={tab}{query}")
    page.locator(f'[data-tab="{tab}"]').first.wait_for(state="attached")


def test_many_custom_metrics_have_pages_and_each_a_link(page: Any, server: str, live: Live) -> None:
    for i in range(30):
        live.emit("metric", name=f"m{i}", value=float(i))
    open_tab(page, server, live.run.id, "metrics")
    wait_until(page, lambda: points(page, "metric:m23:value") == 1, "the first page's charts")
    assert points(page, "metric:m24:value") == 0
    page.get_by_text("1 to 24 of 30").wait_for()
    page.get_by_role("button", name="Go to page 2").click()
    wait_until(page, lambda: points(page, "metric:m29:value") == 1, "the second page's charts")
    page.get_by_text("25 to 30 of 30").wait_for()
    wait_until(page, lambda: "metrics=2" in page.url, "the link")
    page.goto(page.url)
    wait_until(page, lambda: points(page, "metric:m29:value") == 1, "the second page by its link")


def test_custom_metrics_and_training_appear_live_and_a_zoom_stays(page: Any, server: str, live: Live) -> None:
    open_tab(page, server, live.run.id, "metrics")
    page.get_by_text("No training curves").wait_for()
    live.train(40)
    live.emit("metric", name="<b>queue</b>", value=3.5)
    wait_until(page, lambda: points(page, "loss:loss") == 40, "the loss")
    wait_until(page, lambda: points(page, "metric:<b>queue</b>:value") == 1, "the custom metric's chart")
    assert page.locator('[data-custom="1"]').count() == 1
    live.emit("metric", name="<b>queue</b>", value=4.5)
    live.train(5)
    wait_until(page, lambda: points(page, "metric:<b>queue</b>:value") == 2, "its second value")
    wait_until(page, lambda: points(page, "loss:loss") == 45, "five more steps")
    shown = curves_of(page)["curve:loss:loss"]
    log = [e for e in EventReader(live.run.events_path).poll() if e["type"] == "finetune.step"]
    assert shown["y"] == [event["loss"] for event in log] and shown["x"] == [e["step"] for e in log]
    assert shown["s"] == shown["y"]  # nothing is smoothed

    box = page.evaluate(CANVAS, "metrics-loss")
    page.wait_for_timeout(300)
    box = page.evaluate(CANVAS, "metrics-loss")
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.9, steps=6)
    page.mouse.up()
    wait_until(page, lambda: page.evaluate(RANGE, "metrics-loss")[0] > 5, "zoomed in")
    zoomed = page.evaluate(RANGE, "metrics-loss")
    assert 10 < zoomed[0] < 20 and 22 < zoomed[1] < 32, zoomed
    before = page.evaluate(RANGE, "metrics-kl")
    live.train(30)
    wait_until(page, lambda: points(page, "loss:loss") == 75, "thirty more steps")
    page.wait_for_timeout(300)
    assert page.evaluate(RANGE, "metrics-loss") == zoomed, "the zoom stays while data arrives"
    assert page.evaluate(RANGE, "metrics-kl")[1] > before[1], "a chart that is not zoomed follows"


def test_smoothing_the_axes_and_the_table(page: Any, server: str, live: Live) -> None:
    live.train(60)
    open_tab(page, server, live.run.id, "metrics")
    wait_until(page, lambda: points(page, "loss:loss") == 60, "the loss")
    slider = page.get_by_role("slider", name="Smoothing")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    wait_until(page, lambda: "smooth=" in page.url, page.url)
    data = curves_of(page)["curve:loss:loss"]
    share = float(re.search(r"smooth=([\d.]+)", page.url).group(1))  # type: ignore[union-attr]
    wanted, total, weight = [], 0.0, 0.0
    for value in data["y"]:
        total, weight = share * total + (1 - share) * value, share * weight + 1 - share
        wanted.append(total / weight)
    wait_until(
        page, lambda: curves_of(page)["curve:loss:loss"]["s"] == pytest.approx(wanted, rel=1e-9), "smoothed"
    )
    live.train(10)
    wait_until(page, lambda: points(page, "loss:loss") == 70, "more of it, smoothed too")
    page.get_by_role("button", name="Tokens", exact=True).last.click()
    wait_until(page, lambda: "x=tokens" in page.url, page.url)
    wait_until(page, lambda: curves_of(page)["curve:kl:kl"]["x"][-1] == 70 * 512, "the x axis by tokens")
    page.get_by_label("As tables").click()
    table = page.locator('[data-twin="loss"]')
    table.wait_for()
    assert "35,840" in table.inner_text() and "Tokens trained on" in table.inner_text()
    open_tab(page, server, live.run.id, "metrics", "&x=time&log=1")
    wait_until(page, lambda: points(page, "loss:loss") == 70, "by time")
    assert page.get_by_role("switch", name="Log axis").or_(page.get_by_label("Log axis")).first.is_checked()


def test_gates_gradients_and_alerts_are_those_of_the_log(page: Any, server: str, runs_dir: Path) -> None:
    run = write_run(runs_dir, "forty", layers=40, failing_gate="ratio", name="Forty")
    dead, exploding = "model.layers.39.mlp.up_proj.weight", "model.layers.38.mlp.up_proj.weight"
    writer = EventWriter(run.path)
    writer.emit("gradient", layer=dead, norm=0.0, original=1.0)
    writer.emit("gradient", layer=exploding, norm=500.0, original=1.0)
    advice = "Press harder. Run tritpress compress /models/m -o out --ratio 6 --overwrite."
    writer.emit("gate", name="ratio", target=6.0, actual=5.5, passed=False, advice=advice)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_tab(page, server, run.id, "quality")
    gates = {e["name"]: e for e in EventReader(run.events_path).poll() if e["type"] == "gate"}
    for name, gate in gates.items():
        card = page.locator(f'[data-gate="{name}"]')
        card.wait_for()
        scale = 1 if name == "ratio" else 100
        assert number(card.locator(".value").inner_text()) == pytest.approx(scale * gate["actual"], abs=0.051)
    card = page.locator('[data-gate="ratio"]')
    assert "✕ failed" in card.inner_text() and "0.50× below the target" in card.inner_text()
    card.get_by_role("button", name="Copy").click()
    card.get_by_text("Copied").wait_for()
    command = "tritpress compress /models/m -o out --ratio 6 --overwrite"
    assert page.evaluate("navigator.clipboard.readText()") == command

    norms = {e["layer"]: e["norm"] for e in EventReader(run.events_path).poll() if e["type"] == "gradient"}

    def shown() -> dict[str, float]:
        found = curves_of(page)
        return {
            name: norm
            for key, data in found.items()
            if key.startswith("gradient:") and "name" in data
            for name, norm in zip(data["name"], data["norm"])
        }

    wait_until(page, lambda: len(shown()) == 32 * 7, "the first page of layers")
    assert {name: norms[name] for name in shown()} == shown()
    page.get_by_label("Go to page 2").click()
    wait_until(page, lambda: len(shown()) == 8 * 7, "the second page")
    wait_until(page, lambda: "page=2" in page.url, page.url)
    marks = curves_of(page)["gradient:marks"]["text"]
    assert sorted(marks) == ["▲ exploding", "✕ dead"]
    assert "1 dead · 1 exploding" in page.locator("[data-gradients]").inner_text()
    page.get_by_label("As a table").click()
    table = page.locator("[data-gradient-table]")
    table.wait_for()
    assert table.locator("tbody tr").count() == 56 and "✕ dead" in table.inner_text()

    page.get_by_text("No alerts.").wait_for()
    alert = {"rule": "metric:x>1", "name": "x", "level": "warning", "message": "<i>x</i> is 2"}
    writer.emit("alert", **alert, value=2, limit=1, step=4)
    line = page.locator('[data-alert="metric:x>1"]')
    line.wait_for()
    assert "<i>x</i> is 2" in line.inner_text() and "! warning" in line.inner_text()
    writer.close()


def test_what_a_plugin_adds_is_on_the_page_and_a_broken_one_breaks_nothing(
    browser: Any, runs_dir: Path, tmp_path: Path
) -> None:
    """A server of its own, whose environment has two plug-ins."""
    import time
    import urllib.request

    from browser_helpers import free_port
    from test_dashboard_plugins import BROKEN, example, install

    install(tmp_path, "best", "best_loss", example())
    install(tmp_path, "broken", "broken_plugin", BROKEN)
    write_run(runs_dir, "with-plugins", name="With plug-ins")
    port = free_port()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tritpress.dashboard.app import serve; "
        f"serve({str(runs_dir)!r}, {port}, require_token=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        url = f"http://127.0.0.1:{port}/dashboard"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        other = patient(browser.new_page())
        open_tab(other, url, "with-plugins", "quality")
        other.locator('[data-plugin="best"]').wait_for()
        assert "TypeError: gave a int" in other.locator('[data-plugin-error="broken"]').first.inner_text()
        assert other.locator("[data-gate]").count() == 5
        other.get_by_role("tab", name="Overview").click()
        other.locator('[data-figure="ratio"]').wait_for()
        other.locator('[data-plugin="best"]').first.wait_for()
        assert "ZeroDivisionError" in other.locator('[data-plugin-error="broken"]').first.inner_text()
        open_tab(other, url, "with-plugins", "metrics")
        wait_until(other, lambda: points(other, "plugin:best:0:line0") == 120, "the plug-in's chart")
        other.locator('[data-export*="plugin"]').wait_for()
        other.locator('[data-plugin-error="broken"]').first.wait_for()
        tabs = other.get_by_role("tab").all_inner_texts()
        assert tabs[-3:] == ["Losses", "Bad", "Odd"]
        other.get_by_role("tab", name="Losses").click()
        other.locator('[data-tab="plugin-losses"]').wait_for(state="attached")
        other.get_by_text("of 120 steps").wait_for()
        wait_until(other, lambda: "tab=plugin-losses" in other.url, other.url)
        other.get_by_role("tab", name="Bad").click()
        other.get_by_text("ZeroDivisionError").first.wait_for()
        other.close()
    finally:
        process.terminate()
        process.wait(20)
