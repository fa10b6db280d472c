"""What can be taken away from the page, in a real browser: charts as PNG, SVG and CSV from their own menus,
tables as CSV. The page is dark; what is saved is for white paper.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser_helpers import patient, wait_until
from PIL import Image
from report_helper import METRIC, write_whole_run
from tritpress.dashboard.components.export import FILES
from tritpress.dashboard.report.facts import read_facts
from tritpress.runs.details import load_details
from tritpress.runs.diff import ordered, tensor_diffs
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import list_runs

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SVG = "{http://www.w3.org/2000/svg}"
TENSOR = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def run(runs_dir: Path) -> Iterator[RunDirectory]:
    write_whole_run(runs_dir, "other", name="The other one", steps=60)
    yield write_whole_run(runs_dir, "exports", name="Exports")


@pytest.fixture
def page(browser: Any, server: str, run: RunDirectory) -> Iterator[Any]:
    """A dark page that fails the test when it throws an error or asks another host for anything."""
    made = patient(
        browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme="dark", accept_downloads=True)
    )
    problems: list[str] = []
    host = server.removesuffix("/dashboard")
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    made.on(
        "request",
        lambda asked: None if asked.url.startswith((host, "blob:", "data:")) else problems.append(asked.url),
    )
    made.set_default_timeout(60_000)
    yield made
    made.close()
    assert not problems, problems


GROUND = """() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"""

CHARTS = """() => {
  // Every chart that is seen: what it must show, and its size on the page.
  const found = []
  for (const view of Bokeh.index.query((one) => one.model.type === "Figure")) {
    const {width, height} = view.bbox, {model} = view
    if (!view.el.getBoundingClientRect().width || !model.visible) continue
    const parts = [...model.above, ...model.below, ...model.left, ...model.right, ...model.center]
    const axes = parts.filter((part) => part.type.endsWith("Axis") && part.visible)
    const legends = parts.filter((part) => part.type === "Legend" && part.visible)
    const button = view.shadow_el.querySelector("[data-export]")
    found.push({
      name: button && button.dataset.export, label: button && button.getAttribute("aria-label"),
      title: model.title.text, width, height, axes: axes.map((axis) => axis.axis_label ?? ""),
      coloured: model.renderers.some(({glyph}) => glyph.color_mapper
        || Object.values(glyph.attributes).some((value) => value?.transform?.type.endsWith("ColorMapper"))),
      bars: parts.filter((part) => part.type === "ColorBar" && part.visible).map((bar) => bar.title ?? ""),
      legend: legends.flatMap((legend) => legend.items.filter((item) => item.visible)
        .map((item) => item.label.value ?? item.label)),
    })
  }
  return found
}"""


def opened(page: Any, server: str, tab: str, query: str = "", run: str = "exports") -> None:
    page.goto(f"{server}?run={run}&tab={tab}{query}")
    page.locator(f'[data-tab="{tab}"]').first.wait_for(state="attached")
    if page.evaluate(GROUND) > 100:
        page.locator("header button").last.click()
    wait_until(page, lambda: page.evaluate(GROUND) < 60, "the dark theme")


def charts(page: Any, count: int) -> list[dict[str, Any]]:
    """All charts of the tab, once there are so many and each has its menu."""
    wait_until(
        page,
        lambda: len(found := page.evaluate(CHARTS)) == count and all(chart["name"] for chart in found),
        f"{count} charts with a menu each",
        seconds=60,
    )
    return list(page.evaluate(CHARTS))


def saved(page: Any, chart: dict[str, Any], kind: str) -> tuple[str, bytes]:
    """Choose that line of the chart's menu: the name and content of the file."""
    page.get_by_role("button", name=chart["label"], exact=True).click()
    with page.expect_download() as download:
        page.locator(f'[data-export-menu] [role="menuitem"][data-kind="{kind}"]').click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def lightness(colour: str) -> float:
    """0 to 1, of `rgb(r,g,b)` or `#rrggbb`."""
    if colour.startswith("#"):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    else:
        red, green, blue = (float(part) for part in re.findall(r"[\d.]+", colour)[:3])
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def check_png(content: bytes, chart: dict[str, Any]) -> None:
    """Twice the chart's size on the page, ink on white."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (round(2 * chart["width"]), round(2 * chart["height"])), chart["name"]
        grey = picture.convert("L")
        for corner in ((1, 1), (grey.width - 2, 1), (1, grey.height - 2), (grey.width - 2, grey.height - 2)):
            assert grey.getpixel(corner) > 250, (chart["name"], corner)
        shares = grey.histogram()
        assert sum(shares[240:]) > 0.15 * sum(shares), "the ground is white"
        assert sum(shares[:90]) > 200, "words are dark"


def check_svg(content: bytes, chart: dict[str, Any]) -> None:
    """It parses, holds title, axes and legend, and these are dark; the ground is white."""
    drawn = ElementTree.fromstring(content)
    assert drawn.tag == f"{SVG}svg"
    assert (float(drawn.get("width", 0)), float(drawn.get("height", 0))) == pytest.approx(
        (chart["width"], chart["height"]), abs=1
    )
    painted: dict[str, list[float]] = {}
    for part in drawn.iter(f"{SVG}text"):
        if part.get("fill", "none") != "none":
            painted.setdefault("".join(part.itertext()), []).append(lightness(part.get("fill", "")))
    for words in (chart["title"], *chart["axes"], *chart["legend"]):
        assert words in painted, (chart["name"], words, list(painted))
        assert min(painted[words]) < 0.4, (chart["name"], words, painted[words])
    assert chart["axes"] and all(chart["axes"]), (chart["name"], "an axis without a title", chart["axes"])
    scales = [painted[words] for words in chart["bars"] if words]
    assert all(min(found) < 0.4 for found in scales), (chart["name"], chart["bars"])
    assert bool(chart["bars"]) == chart["coloured"], (chart["name"], "colours without their scale")
    assert bool(list(drawn.iter(f"{SVG}image"))) == chart["coloured"], chart["name"]
    for image in drawn.iter(f"{SVG}image"):  # the colour bar
        assert any(value.startswith("data:image/png") for value in image.attrib.values()), image.attrib
    grounds = [
        part
        for part in drawn.iter()
        if part.tag in (f"{SVG}rect", f"{SVG}path") and part.get("fill") != "none"
    ]
    assert lightness(grounds[0].get("fill", "#000000")) > 0.98, ElementTree.tostring(grounds[0])


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def check_charts(page: Any, count: int) -> dict[str, list[dict[str, str]]]:
    """Save every chart of the tab in each format; the rows of their CSV by name."""
    found = charts(page, count)
    assert len({chart["name"] for chart in found}) == count, "each has a name of its own"
    made = {}
    for chart in found:
        for kind, check in (("png", check_png), ("svg", check_svg)):
            name, content = saved(page, chart, kind)
            assert name.endswith(f"-{chart['name']}.{kind}") and name.startswith("exports"), name
            check(content, chart)
        made[chart["name"]] = rows(saved(page, chart, "csv")[1])
        assert made[chart["name"]], chart["name"]
    return made


def layers_of(run: RunDirectory) -> dict[str, dict[str, Any]]:
    found = map(json.loads, run.events_path.read_text().splitlines())
    return {event["name"]: event for event in found if event["type"] == "layer.finished"}


def test_charts_of_progress(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "progress", f"&tensor={TENSOR}")
    made = check_charts(page, 5)
    layers, details = layers_of(run), load_details(run.path, TENSOR)
    assert details is not None
    grid = [row for row in made["layers-and-parameters"] if row["name"]]
    assert {row["name"]: float(row["value"]) for row in grid} == {
        name: pytest.approx(layer["ratio"]) for name, layer in layers.items()
    }
    assert len(made["zeros-by-layer"]) == 6
    shares = [float(row["top"]) for row in made["weights-before"]]
    assert shares == pytest.approx(
        [float(n) / details.histogram_before.sum() for n in details.histogram_before]
    )


def test_the_minimap(page: Any, server: str, run: RunDirectory, runs_dir: Path) -> None:
    from dashboard_log import write_run

    write_run(runs_dir, "exports-tall", layers=40, steps=1, name="Tall")
    opened(page, server, "progress", run="exports-tall")
    made = check_charts(page, 3)
    assert len(made["whole-model"]) >= 40 * 7
    (chart,) = [chart for chart in charts(page, 3) if chart["name"] == "whole-model"]
    assert (chart["axes"], chart["bars"]) == (["Layer"], ["Ratio"])
    page.get_by_role("button", name="Sparsity", exact=True).click()
    wait_until(page, lambda: charts(page, 3)[0]["bars"] == ["Sparsity"], "the scale of what is shown")
    content = saved(page, charts(page, 3)[0], "svg")[1]
    words = {"".join(part.itertext()) for part in ElementTree.fromstring(content).iter(f"{SVG}text")}
    assert {"Whole model", "Layer", "Sparsity", "20 %", "50 %"} <= words, words


def test_charts_of_metrics(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "metrics")
    made = check_charts(page, 7)
    points = read_facts(run.path).state["finetune"]
    losses = [row for row in made["metrics-loss"] if row["series"] == "Training"]
    assert [float(row["y"]) for row in losses] == [point["loss"] for point in points]
    own = next(found for name, found in made.items() if name.endswith("accuracy"))
    assert [float(row["y"]) for row in own if row["y"]] == [0.5, 0.25, 0.125], METRIC


def test_charts_of_quality_and_tuning(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "quality")
    norms = read_facts(run.path).state["gradients"]
    made = check_charts(page, 1)["quality-gradients"]
    assert {row["name"]: float(row["norm"]) for row in made if row["name"]} == norms
    opened(page, server, "tuning")
    check_charts(page, 3)


def test_charts_of_compare_and_diff(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "compare", run="exports,other")
    made = check_charts(page, 7)
    assert {row["series"] for row in made["compare-loss"]} == {"Exports", "The other one"}
    opened(page, server, "diff", f"&tensor={TENSOR}")
    made = check_charts(page, 5)
    blocks = made["blocks-error"]
    assert len(blocks) == 64 * 64 and all(float(row["value"]) >= 0 for row in blocks)


def test_the_menu_by_keyboard(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "quality")
    (chart,) = charts(page, 1)
    button = page.get_by_role("button", name=chart["label"], exact=True)
    button.focus()
    page.keyboard.press("Enter")
    menu = page.locator("[data-export-menu]")
    menu.wait_for()
    assert [item.inner_text() for item in menu.get_by_role("menuitem").all()] == [
        "PNG picture", "SVG drawing", "CSV of its data"
    ]  # fmt: skip
    page.keyboard.press("ArrowDown")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".svg")
    assert not menu.is_visible() and button.evaluate("it => it.getRootNode().activeElement === it")
    page.keyboard.press("Enter")
    menu.wait_for()
    page.keyboard.press("Escape")
    wait_until(page, lambda: not menu.is_visible(), "closed")


# Tables


def table(page: Any, name: str) -> tuple[str, list[list[str]]]:
    """Click that table's CSV button: the name of the file and its rows."""
    with page.expect_download() as download:
        page.locator(f'[data-csv="{name}"]').first.click()
    text = Path(download.value.path()).read_bytes().decode()
    return download.value.suggested_filename, list(csv.reader(io.StringIO(text, newline="")))


def shown(page: Any, selector: str) -> list[list[str]]:
    """The cells of a table as they are read, without its buttons."""
    return page.locator(selector).first.evaluate(
        """(it) => Array.from(it.rows, (row) => Array.from(row.cells, (cell) => {
          const copy = cell.cloneNode(true)
          copy.querySelectorAll("[data-no-csv]").forEach((part) => part.remove())
          return copy.textContent.replace(/\\s+/g, " ").trim().replaceAll("−", "-")
        }))"""
    )


def test_a_cell_of_numbers_below_zero_is_no_formula(browser: Any) -> None:
    cells = {
        "−1.20 % (−2.0 to −0.4 %)": "-1.20 % (-2.0 to -0.4 %)",
        "−3.4 %": "-3.4 %",
        "+3.42 % (+2.9 to +4.0 %)": "+3.42 % (+2.9 to +4.0 %)",
        "−cmd|' /C calc'!A0": "'-cmd|' /C calc'!A0",
        "-1+HYPERLINK(A1)": "'-1+HYPERLINK(A1)",
        "=1−1": "'=1-1",
    }
    page = browser.new_page()
    try:
        page.add_script_tag(content=f"{FILES}; window.table_csv = table_csv")
        written = page.evaluate(
            """(cells) => {
              const table = document.createElement("table")
              for (const cell of cells) table.insertRow().insertCell().textContent = cell
              return window.table_csv(table)
            }""",
            list(cells),
        )
    finally:
        page.close()
    assert written.splitlines() == list(cells.values())


def test_tables_of_metrics_and_compare(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "metrics")
    name, found = table(page, "before-after")
    assert name == "exports-before-after.csv"
    assert found == shown(page, "table")
    by_title = {row[0]: row[1:] for row in found}
    assert by_title["Perplexity held-out text"] == ["9.381", "9.702", "9.691"]
    page.get_by_text("As tables").click()
    page.locator('[data-twin="loss"]').wait_for()
    name, found = table(page, "curve-loss")
    assert found[0][1:] == ["Training", "Validation"] or len(found[0]) >= 2
    assert found == shown(page, '[data-twin="loss"]')
    opened(page, server, "compare", run="exports,other")
    name, found = table(page, "figures")
    assert name == "exports-and-other-figures.csv"
    assert {row[0]: row[1] for row in found}["Perplexity, packed"].startswith("9.702")


def test_tables_of_progress_and_quality(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "progress", f"&tensor={TENSOR}")
    page.locator("summary").get_by_text("This page as a table").click()
    page.locator("[data-grid]").wait_for()
    _, found = table(page, "grid-ratio")
    layers = layers_of(run)
    assert found[0][1] == "q" and len(found) == 7
    assert float(found[1][1]) == pytest.approx(
        layers["model.layers.0.self_attn.q_proj.weight"]["ratio"], abs=0.06
    )
    page.locator("summary").get_by_text("These charts as tables").click()
    _, found = table(page, f"{TENSOR}-scales")
    assert found == shown(page, "[data-scales]") and found[0] == ["Plane", "Least", "Median", "Largest"]


def test_steps_and_events_as_csv(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server, "overview")
    _, found = table(page, "steps")
    assert found[0] == ["Step", "Title", "State", "Time", "About"] and len(found) == 8
    assert found[2][:3] == ["2", "Baseline", "done"] and found[2][3].endswith(" s")
    page.locator("li[data-level]").first.wait_for()
    _, found = table(page, "events")
    told = page.locator("li[data-level]").evaluate_all("items => items.map(i => i.dataset.level)")
    assert found[0] == ["Time", "About", "Level", "Event"]
    assert [line[2] for line in found[1:]] == told and len(told) > 20


def test_every_tensor_and_every_run_as_csv(page: Any, server: str, run: RunDirectory, runs_dir: Path) -> None:
    opened(page, server, "diff", "&find=mlp&sort=cosine")
    button = page.get_by_role("button", name="All as CSV")
    with page.expect_download() as download:
        button.click()
    found = rows(Path(download.value.path()).read_bytes())
    diffs = [d for d in tensor_diffs(read_facts(run.path).state) if "mlp" in d.name]
    assert [row["name"] for row in found] == [diff.name for diff in ordered(diffs, "cosine")]
    assert [float(row["error"]) for row in found] == [diff.error for diff in ordered(diffs, "cosine")]
    assert download.value.suggested_filename == "exports-diff.csv"
    opened(page, server, "runs")
    with page.expect_download() as download:
        page.locator('[data-download="csv"]').last.click()
    found = rows(Path(download.value.path()).read_bytes())
    assert {row["id"] for row in found} == {one["id"] for one in list_runs(runs_dir)}
    assert next(row["ratio_file"] for row in found if row["id"] == "exports") == "6.4123"
