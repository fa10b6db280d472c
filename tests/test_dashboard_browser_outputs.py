"""The Outputs tab in a real browser, what it hands out, and the report opened from a disk, offline."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser_helpers import wait_until
from dashboard_log import make_run, write_run
from PIL import Image
from report_helper import write_whole_run
from tritpress.dashboard.report.charts import pictures
from tritpress.dashboard.report.facts import read_facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.report.tables import tables
from tritpress.dashboard.views.outputs import ZIPPED_TENSORS
from tritpress.events import EventWriter
from tritpress.runs.directory import RunDirectory

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(runs_dir: Path) -> Iterator[RunDirectory]:
    """A finished run whose output directory is there, with the files that its log names."""
    run = write_whole_run(runs_dir, "outputs", name="Outputs")
    for output in read_facts(run.path).state["outputs"]:
        path = Path(output["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    yield run


def opened(page: Any, server: str, run: str = "outputs") -> None:
    page.goto(f"{server}?run={run}&tab=outputs")
    page.locator('[data-tab="outputs"]').wait_for(state="attached")
    page.locator("[data-model]").first.wait_for()


def download(page: Any, key: str) -> tuple[str, bytes]:
    with page.expect_download(timeout=60_000) as made:
        page.locator(f'[data-download="{key}"]').click()
    return made.value.suggested_filename, Path(made.value.path()).read_bytes()


def test_both_models_side_by_side(page: Any, server: str, run: RunDirectory) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(page, server)
    outputs = read_facts(run.path).state["outputs"]
    boxes = [page.locator(f'[data-model="{key}"]').bounding_box() for key in ("packed", "dequantized")]
    assert abs(boxes[0]["y"] - boxes[1]["y"]) < 2 and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    for key in ("packed", "dequantized"):
        card = page.locator(f'[data-model="{key}"]')
        files = {o["path"].rsplit("/", 1)[1]: o for o in outputs if f"/{key}/" in o["path"]}
        found = [row.locator("td").all_inner_texts() for row in card.locator("tbody tr").all()]
        assert {row[0] for row in found} == set(files)
        with page.expect_download() as made:
            card.locator("[data-csv]").click()
        told = list(csv.reader(io.StringIO(Path(made.value.path()).read_text(), newline="")))
        assert told[0] == ["File", "Size", "sha256"]
        assert {row[0]: row[2] for row in told[1:]} == {name: o["sha256"] for name, o in files.items()}
        for wanted in (files["model.safetensors"]["sha256"], f"{run.path}/out/{key}"):
            button = card.locator(f'[data-copy="{wanted}"]').first
            button.click()
            wait_until(page, lambda: button.inner_text() == "Copied", "copied")  # noqa: B023
            assert page.evaluate("navigator.clipboard.readText()") == wanted
            wait_until(page, lambda: button.inner_text() == "Copy", "the button's own word again")  # noqa: B023
        load = card.locator("pre").inner_text()
        assert f'("{run.path}/out/{key}")' in load
        card.locator('[aria-label^="Copy: how to load"]').click()
        wait_until(page, lambda: page.evaluate("navigator.clipboard.readText()") == load, "the code")  # noqa: B023
    assert "3.41 MB" in page.locator('[data-model="packed"]').inner_text()


def test_tree_and_checklist(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server)
    tree = page.locator(".tree").inner_text()
    assert tree.startswith(f"{run.path}/out") and "packed/" in tree and "dequantized/" in tree
    assert tree.count("5 B") == 7, "sizes are those on the disk"
    checks = page.locator(".checks").inner_text()
    assert "packed directory reads back" in checks and "4 files, checksums agree" in checks


def test_runs_that_broke_off_or_are_at_work(page: Any, server: str, runs_dir: Path) -> None:
    failed = write_run(
        runs_dir, "failed-out", layers=2, until="evaluation", name="<img src=x onerror=alert(1)>"
    )
    writer = EventWriter(failed.path)
    writer.emit("run.failed", error="no space left", exit_code=1, write_seconds=0.0, seconds=1.0)
    writer.close()
    failed.update_run(status="failed")
    opened(page, server, "failed-out")
    said = page.locator(".note").inner_text()
    assert said == "The run failed: no space left. Nothing was written."
    assert page.locator('[data-download="json"]').is_disabled()
    page.get_by_text("report.json is written when a run finishes").wait_for()
    name, content = download(page, "html")
    assert name == "failed-out-report.html" and b"<img" not in content
    live = make_run(runs_dir, "live-out", name="Live")
    EventWriter(live.path).close()
    opened(page, server, "live-out")
    assert "The run is at work" in page.locator(".note").inner_text()
    assert page.locator("[data-model] .empty").count() == 2


def test_reports_are_those_of_the_run(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server)
    name, content = download(page, "json")
    assert name == "outputs-report.json" and content == run.report_path.read_bytes()
    name, content = download(page, "html")
    assert name == "outputs-report.html"
    facts = read_facts(run.path)
    body = content.decode().split("<footer>")[0]
    assert body == report_html(facts, now=facts.state["finished"]).split("<footer>")[0]


def test_the_zip_holds_every_chart_and_table(page: Any, server: str, run: RunDirectory) -> None:
    opened(page, server)
    name, content = download(page, "zip")
    assert name == "outputs-charts.zip"
    facts = read_facts(run.path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        held = {one: archive.read(one) for one in archive.namelist()}
    drawn = {picture.key: picture for picture in pictures(facts, ZIPPED_TENSORS)}
    assert sum(key.startswith("blocks-") for key in drawn) == len(facts.state["layers"]) == 42
    charts = {f"charts/outputs-{key}.{kind}" for key in drawn for kind in ("svg", "png")}
    made = {f"tables/outputs-{table.key}.csv": table for table in tables(facts)}
    assert set(held) == charts | set(made) | {
        "README.txt",
        "outputs-report.html",
        "outputs-report.json",
    }
    assert "drawn of every tensor (42)" in held["README.txt"].decode()
    for key, picture in drawn.items():
        svg = ElementTree.fromstring(held[f"charts/outputs-{key}.svg"])
        assert svg.findtext("{http://www.w3.org/2000/svg}title") == picture.title
        with Image.open(io.BytesIO(held[f"charts/outputs-{key}.png"])) as image:
            image.load()
            drawing = picture.drawing
            for found, size in zip(image.size, (drawing.width, drawing.height)):
                assert abs(found - 2 * size) <= 2, key
            assert image.convert("L").getpixel((1, 1)) > 250
    for path, table in made.items():
        assert held[path].decode() == table.csv()


# The report from a disk


@pytest.fixture
def offline(browser: Any, run: RunDirectory, tmp_path: Path) -> Iterator[Any]:
    """The report opened as a file, the network off; whatever it asks for or complains of is a failure."""
    file = tmp_path / "report.html"
    file.write_text(report_html(read_facts(run.path)))
    context = browser.new_context(viewport={"width": 1440, "height": 900}, offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("request", lambda asked: problems.append(asked.url))
    page.on("console", lambda said: problems.append(said.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert problems == [file.as_uri()], problems


def test_the_report_renders_offline(offline: Any, run: RunDirectory) -> None:
    wanted = {p.key for p in pictures(read_facts(run.path))}
    here = offline.locator("[data-chart]").evaluate_all("found => found.map((one) => one.dataset.chart)")
    assert wanted <= set(here)
    for width in (1440, 800, 360):
        offline.set_viewport_size({"width": width, "height": 900})
        wide = offline.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{width} pixels: something sticks out"
        for figure in offline.locator("figure:visible").all():
            box = figure.locator("svg").bounding_box()
            assert box["width"] > 200 and box["height"] > 80
    offline.set_viewport_size({"width": 1440, "height": 900})
    with Image.open(io.BytesIO(offline.locator('[data-chart="grid-ratio"]').screenshot())) as picture:
        assert len(picture.convert("RGB").getcolors(100_000)) > 50, "the grid is drawn"
    assert offline.locator('[data-chart="grid-ratio"]').is_visible()
    offline.get_by_text("Planes", exact=True).first.click()
    assert offline.locator('[data-chart="grid-planes"]').is_visible()
    assert not offline.locator('[data-chart="grid-ratio"]').is_visible()


def test_the_report_is_light_on_paper_and_dark_where_asked(offline: Any) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    ink = "getComputedStyle(document.querySelector('svg .ink')).fill"
    offline.emulate_media(color_scheme="dark")
    assert offline.evaluate(ground) == "rgb(17, 24, 29)" and offline.evaluate(ink) == "rgb(230, 235, 238)"
    offline.emulate_media(color_scheme="dark", media="print")
    assert offline.evaluate(ground) == "rgb(255, 255, 255)" and offline.evaluate(ink) == "rgb(27, 35, 40)"
    offline.set_viewport_size({"width": 703, "height": 1000})  # what A4 leaves between its margins
    assert offline.evaluate("document.documentElement.scrollWidth") <= 703
    assert not offline.locator("nav").is_visible()
    pdf = offline.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF") and 3 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 12
