"""The report of a run as data: facts, drawings, one HTML file, CSV, the zip."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from dashboard_log import events, make_run, write_run
from report_helper import write_whole_run
from tritpress.dashboard.report.bundle import bundle
from tritpress.dashboard.report.charts import pictures
from tritpress.dashboard.report.facts import Facts, file_name, read_facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.report.picture import CIVIDIS, colour
from tritpress.dashboard.report.save import _why_no_json
from tritpress.dashboard.report.svg import decades, escape, steps
from tritpress.dashboard.report.tables import csv_text, runs_csv, tables
from tritpress.events import EventWriter
from tritpress.runs.directory import REMOTE, RunDirectory
from tritpress.runs.history import list_runs
from tritpress.runs.labels import edit_labels

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>\x00\x1b"
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "input", "br", "hr", "img", "link"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(runs: Path) -> RunDirectory:
    return write_whole_run(runs, "whole")


@pytest.fixture(scope="module")
def hostile(runs: Path) -> RunDirectory:
    """A run that failed; every text that its log can hold is an attack."""
    run = make_run(runs, "hostile", name=HOSTILE)
    run.update_run(model=HOSTILE)
    writer = EventWriter(run.path)
    for kind, fields in events(run, layers=2, steps=30, name=HOSTILE):
        if kind == "model":
            fields["model"].update(path=HOSTILE, architecture=HOSTILE, source_dtype=HOSTILE)
        if kind in ("layer.finished", "layer.started"):
            fields = {**fields, "name": fields["name"] + HOSTILE}
        if kind == "output":
            fields = {**fields, "path": f"{run.path}/out/packed/{HOSTILE.replace('/', '')}"}
        if kind == "handoff":
            fields = {"items": [{"name": HOSTILE, "passed": False, "detail": HOSTILE}]}
        if kind == "gate":
            fields = {**fields, "name": HOSTILE, "passed": False, "advice": HOSTILE}
        if kind == "run.finished":
            break
        writer.emit(kind, **fields)
    writer.emit("metric", name=HOSTILE, value=1.0, step=1)
    writer.emit("metric", name=HOSTILE, value=2.0, step=2)
    writer.emit("alert", rule=HOSTILE, level="critical", message=HOSTILE)
    writer.emit("run.failed", error=HOSTILE, exit_code=1, write_seconds=0.0, seconds=1.0)
    writer.close()
    run.update_run(status="failed")
    edit_labels(run.path, name=None, tags=["<b>tag</b>"], note="<i>note</i> javascript:alert(3)")
    return run


class Checker(HTMLParser):
    """Reads a page: its tags, attributes and texts; a tag that is closed wrongly is a failure."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def assert_harmless(text: str) -> Checker:
    """Nothing runs, nothing is fetched, and the browser is told to refuse what would be."""
    page = Checker(text)
    assert not set(page.tags) & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "action", "formaction", "xlink:href", "data"), (tag, name)
        assert name != "href" or value.startswith("#"), value
    assert "url(" not in text and "@import" not in text
    policy = next(
        value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default")
    )
    assert "default-src 'none'" in policy and "script" not in policy
    return page


def test_the_page_holds_the_runs_figures(whole: RunDirectory) -> None:
    facts = read_facts(whole.path)
    text = report_html(facts, now=facts.state["finished"])
    page = assert_harmless(text)
    assert "://" not in text, "an address in a file that is read offline"
    assert text.count("<svg") == text.count("data-chart=") and "<title>Whole one · tritpress</title>" in text
    for words in (
        "6.41× smaller than float32",
        "4.56 bits a weight",
        "41.9 %",
        "9.702",
        "+3.42 % (+2.9 to +4.0)",
        "98.76 %",
        "packed directory reads back",
        "a processor",
        "the library",
        "ab" * 32,
    ):
        assert words in page.text, words
    for output in facts.state["outputs"]:
        assert output["sha256"] in page.text
    for name in facts.state["layers"]:
        assert name in page.text
    charts = {value for tag, name, value in page.attributes if name == "data-chart"}
    assert charts >= {
        "grid-ratio",
        "grid-sparsity",
        "grid-error",
        "grid-planes",
        "grid-bits",
        "zeros",
        "error",
        "training-loss",
        "training-kl",
        "gradient-norms",
        "metric-validation-accuracy",
    }
    assert sum(chart.startswith("histogram-") for chart in charts) == 6
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert len(set(ids)) == len(ids) and links and set(links) <= set(ids)


def test_every_text_of_a_hostile_run_shows_as_text(hostile: RunDirectory) -> None:
    facts = read_facts(hostile.path)
    text = report_html(facts)
    page = assert_harmless(text)
    shown = HOSTILE.replace("\x00", "�").replace("\x1b", "�")
    for words in (shown, f"Error. {shown}", "<b>tag</b>", "<i>note</i> javascript:alert(3)"):
        assert words in page.text, words
    assert "<img" not in text and "<script" not in text and "\x00" not in text
    for picture in pictures(facts):
        drawn = ElementTree.fromstring(picture.drawing.render(alone=True).encode())
        assert {part.tag.removeprefix(SVG) for part in drawn.iter()} <= {
            "svg",
            "title",
            "style",
            "rect",
            "text",
            "line",
            "path",
            "g",
        }
        assert re.fullmatch(r"[a-z0-9-]+", picture.key), picture.key
    for path, content in bundle(facts).files:
        assert re.fullmatch(r"(tables/)?[A-Za-z0-9._-]+", path), path
        assert "\x00" not in content


def test_of_a_run_elsewhere_no_worker_is_told(runs: Path) -> None:
    run = write_run(runs, "elsewhere", layers=3, until="layer.finished", name="Elsewhere")
    run.update_run(origin=REMOTE, host=REMOTE, pid=0)
    facts = read_facts(run.path, lost=True)
    page = assert_harmless(report_html(facts))
    assert "Nothing more was heard of the run before this was known." in page.text
    assert "worker was gone" not in page.text
    assert _why_no_json(facts) == "nothing more is heard of it"


def test_a_run_that_broke_off_says_so(runs: Path) -> None:
    run = write_run(runs, "early", layers=3, until="layer.finished", name="Early")
    facts = read_facts(run.path, lost=True)
    page = assert_harmless(report_html(facts))
    for words in (
        "Worker gone",
        "The worker was gone before this was known.",
        "– not judged",
        "– not reached",
        "Not written: the run ended before it was.",
    ):
        assert words in page.text, words
    assert "waiting" not in page.text
    bare = make_run(runs, "bare", name="Bare", status="created")
    EventWriter(bare.path).close()
    page = assert_harmless(report_html(read_facts(bare.path)))
    assert "No tensors are known" in page.text
    assert not [picture for picture in pictures(read_facts(bare.path)) if "metric" in picture.key]


@pytest.mark.parametrize(
    "report",
    [
        [1],
        {"text": 7, "versions": [1], "machine": "x", "fine_tuning": "x"},
        {"fine_tuning": {"steps": "many"}},
    ],
)
def test_a_damaged_report_json_breaks_nothing(runs: Path, report: Any) -> None:
    run = write_run(runs, "damaged", layers=1, steps=2, name="Damaged")
    run.report_path.write_text(json.dumps(report))
    assert "Damaged" in assert_harmless(report_html(read_facts(run.path))).text


def test_secrets_of_alerts_are_not_handed_on(runs: Path) -> None:
    config = {"alert_webhook": "https://hooks.example/T0/secret", "alert_command": "notify --key secret"}
    run = write_run(runs, "alerts", layers=1, steps=2, config=config)
    text = report_html(read_facts(run.path))
    assert "secret" not in text and "hooks.example (rest not shown)" in text
    settings = next(table for table in tables(read_facts(run.path)) if table.key == "configuration")
    assert "secret" not in settings.csv()


# Drawings


def words_of(svg: str) -> list[str]:
    drawn = ElementTree.fromstring(svg.encode())
    return ["".join(part.itertext()) for part in drawn.iter(f"{SVG}text")]


def test_drawings_have_title_axes_and_legend(whole: RunDirectory) -> None:
    facts = read_facts(whole.path)
    found = {picture.key: picture for picture in pictures(facts)}
    wanted = {
        "grid-ratio": ["Parameter", "Layer", "q", "down", "0", "5", "×"],
        "zeros": ["Share of codes that are zero", "Layer", "30 %"],
        "error": ["Layer", "Squared error / squared norm", "q", "k", "v", "o", "gate", "up", "down"],
        "training-loss": ["Training step", "Nats a token", "Training", "Validation"],
        "gradient-norms": ["Layer", "Gradient norm", "q", "down"],
        "metric-validation-accuracy": ["Training step", "Value", "validation/accuracy"],
    }
    for key, words in wanted.items():
        svg = found[key].drawing.render(alone=True)
        drawn = ElementTree.fromstring(svg.encode())
        shown = words_of(svg)
        assert drawn.findtext(f"{SVG}title") == found[key].title == shown[0]
        assert set(words) <= set(shown), (key, shown)
        background = drawn.find(f"{SVG}rect")
        assert background is not None and background.get("fill") == "#ffffff"
        width, height = float(drawn.get("width", 0)), float(drawn.get("height", 0))
        assert drawn.get("viewBox") == f"0 0 {width:g} {height:g}"
        for part in drawn.iter(f"{SVG}text"):
            x, y = float(part.get("x", -1)), float(part.get("y", -1))
            assert 0 <= x <= width and 0 <= y <= height, (key, part.text)
        for part in drawn.iter():
            for name in ("x", "y", "x1", "y1", "x2", "y2", "width", "height", "d"):
                assert not re.search(r"nan|inf", part.get(name, "")), (key, part.attrib)


def test_the_grids_numbers_are_the_logs(whole: RunDirectory) -> None:
    layers = read_facts(whole.path).state["layers"]
    found = {picture.key: picture for picture in pictures(read_facts(whole.path))}
    words = words_of(found["grid-ratio"].drawing.render(alone=True))
    for layer in layers.values():
        assert f"{layer['ratio']:.1f}" in words
    words = words_of(found["grid-planes"].drawing.render(alone=True))
    assert sum(word == "3" for word in words) >= sum(layer["planes"] == 3 for layer in layers.values())


def test_a_model_of_many_layers_is_drawn_in_pages(runs: Path) -> None:
    run = write_run(runs, "tall", layers=126, steps=2, name="Tall")
    found = {picture.key: picture.title for picture in pictures(read_facts(run.path))}
    assert [key for key in found if key.startswith("grid-ratio")] == [
        f"grid-ratio-0{n}" for n in (1, 2, 3, 4)
    ]
    assert found["grid-ratio-04"].endswith("layers 96–125") and found["zeros-02"].endswith("layers 32–63")
    text = report_html(read_facts(run.path))
    assert len(text) < 1_500_000
    assert_harmless(text)


@pytest.mark.parametrize(
    ("low", "high", "whole_numbers"),
    [(0.0, 1.0, False), (1e-9, 2e-9, False), (-3.0, 1e6, False), (0.0, 5.0, True), (1010.0, 1011.0, False)],
)
def test_ticks_are_round_distinct_and_inside(low: float, high: float, whole_numbers: bool) -> None:
    found = steps(low, high, whole=whole_numbers)
    assert 2 <= len(found) <= 12
    assert all(low - 1e-12 <= value <= high * (1 + 1e-9) for value, _ in found)
    assert len({label for _, label in found}) == len(found)


def test_log_ticks_and_colours() -> None:
    assert [label for _, label in decades(0.01, 100.0)] == ["0.01", "0.1", "1", "10", "100"]
    assert [label for _, label in decades(0.15, 0.6)] == ["0.2", "0.5"]
    assert colour(0.0) == CIVIDIS[0] and colour(1.0) == CIVIDIS[-1]
    assert colour(-1.0) == CIVIDIS[0] and colour(2.0) == CIVIDIS[-1]
    assert escape("<&\"'\x00") == "&lt;&amp;&quot;&#x27;�"


# Tables


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_tables_hold_the_logs_figures_unrounded(whole: RunDirectory) -> None:
    facts = read_facts(whole.path)
    found = {table.key: parsed(table.csv()) for table in tables(facts)}
    assert set(found) == {
        "before-after",
        "gates",
        "layers",
        "training",
        "custom-metrics",
        "gradient-norms",
        "steps",
        "outputs",
        "handoff",
        "configuration",
    }
    log = map(json.loads, whole.events_path.read_text().splitlines())
    logged = {event["name"]: event for event in log if event["type"] == "layer.finished"}
    assert len(found["layers"]) == len(logged) == 42
    for row in found["layers"]:
        event = logged[row["name"]]
        for key in (
            "planes",
            "bits",
            "ratio",
            "sparsity",
            "mse",
            "cosine",
            "relative_error",
            "threshold_used",
        ):
            assert float(row[key]) == event[key], key
        assert float(row["gradient_norm"]) == facts.state["gradients"][row["name"]]
    perplexity = next(row for row in found["before-after"] if row["figure"] == "perplexity")
    assert [float(perplexity[key]) for key in ("original", "packed", "dequantized")] == [
        9.3812,
        9.7021,
        9.6912,
    ]
    sparsity = next(row for row in found["gates"] if row["gate"] == "sparsity")
    assert (sparsity["target"], sparsity["target_high"], sparsity["actual"]) == ("0.25", "0.45", "0.4187")
    assert [row["sha256"] for row in found["outputs"]] == [o["sha256"] for o in facts.state["outputs"]]
    assert [float(row["loss"]) for row in found["training"]] == [p["loss"] for p in facts.state["finetune"]]


def test_csv_is_safe_to_open_in_a_spreadsheet() -> None:
    text = csv_text(("a", "=b"), [("=HYPERLINK(1)", -1.5), ("+1", None), ('say "x", y\n', True), ("@x", [1])])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["a", "'=b"],
        ["'=HYPERLINK(1)", "-1.5"],
        ["'+1", ""],
        ['say "x", y\n', "true"],
        ["'@x", "[1]"],
    ]


def test_results_of_tasks_are_in_report_and_tables(tmp_path: Path) -> None:
    run = make_run(tmp_path, "asked", tasks=["arc_easy"])
    result = {"task": "arc_easy", "metric": "acc", "original": 0.62, "packed": 0.5772, "kept": 0.931}
    with closing(EventWriter(run.path)) as writer:
        for kind, fields in events(run):
            if kind == "gate" and fields["name"] == "accuracy":
                fields = {**fields, "actual": 0.931, "passed": False}
            writer.emit(kind, **fields)
            if kind == "evaluation" and fields["when"] == "dequantized":
                writer.emit("tasks", accuracy_kept=0.931, interval=[0.91, 0.95], results=[result])
    run.update_run(status="finished", exit_code=3)
    facts = read_facts(run.path)
    html = report_html(facts)
    assert "mean of 1 task" in html and "arc_easy" in html and "57.72 % · 93.1 % kept" in html
    found = {table.key: parsed(table.csv()) for table in tables(facts)}
    rows = {row["figure"]: row for row in found["before-after"]}
    assert rows["task_arc_easy_acc"]["original"] == "0.62" and rows["task_arc_easy_acc"]["packed"] == "0.5772"
    assert rows["tasks_accuracy_kept"]["packed"] == "0.931" and rows["tasks_interval_low"]["packed"] == "0.91"
    assert [row["accuracy_kept"] for row in parsed(runs_csv(list_runs(tmp_path)))] == ["0.931"]


def test_runs_as_csv(runs: Path, whole: RunDirectory, hostile: RunDirectory) -> None:
    rows = {row["id"]: row for row in parsed(runs_csv(list_runs(runs)))}
    assert rows["whole"]["ratio_file"] == "6.4123" and rows["whole"]["gate_ratio"] == "true"
    assert rows["hostile"]["status"] == "failed" and rows["hostile"]["tags"] == "<b>tag</b>"


# The zip


def test_the_bundle_is_complete(whole: RunDirectory) -> None:
    facts = read_facts(whole.path)
    made = bundle(facts)
    names = [path for path, _ in made.files]
    assert "whole-report.html" in names and "whole-report.json" in names
    assert {f"tables/whole-{table.key}.csv" for table in tables(facts)} <= set(names)
    drawn = [path for path, _ in made.drawings]
    assert len(set(drawn)) == len(drawn)
    assert {f"charts/whole-{p.key}" for p in pictures(facts, 48)} == set(drawn)
    assert dict(made.files)["whole-report.json"] == whole.report_path.read_text()
    kinds = {path.removeprefix("charts/whole-").split("-")[0] for path in drawn}
    assert kinds >= {"grid", "zeros", "error", "histogram", "scales", "blocks", "training", "gradient"}
    tuned = {path.removeprefix("charts/whole-") for path in drawn if "tuning" in path}
    assert tuned == {"tuning-zeros", "tuning-error", "tuning-perplexity"}
    for _, drawing in made.drawings:
        assert "NaN" not in drawing and "nan" not in re.sub(r"<(text|title)[^>]*>[^<]*", "", drawing)


def test_names_of_files() -> None:
    assert file_name("../a b/ü") == "a-b--" and file_name("...") == "run" and len(file_name("x" * 300)) == 100
    assert Facts("..", Path("."), {}).file_name == "run"
