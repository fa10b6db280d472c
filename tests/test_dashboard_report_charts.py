"""Drawings of the report and of the zip hold every tensor, as the page shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from dashboard_log import events, make_run, write_run
from tritpress.dashboard.report.bundle import bundle
from tritpress.dashboard.report.charts import pictures
from tritpress.dashboard.report.facts import Facts, read_facts
from tritpress.dashboard.report.page import report_html
from tritpress.dashboard.report.picture import CIVIDIS, Picture, slug
from tritpress.dashboard.report.svg import Drawing, number
from tritpress.dashboard.report.tensor_charts import blocks, worst_tensors
from tritpress.dashboard.theme import CURRENT, NEUTRAL
from tritpress.dashboard.views.outputs import zip_words
from tritpress.events import EventWriter
from tritpress.runs.diff import ordered, tensor_diffs

SVG = "{http://www.w3.org/2000/svg}"


def gradient_pictures(facts: Facts) -> list[Picture]:
    return [picture for picture in pictures(facts) if picture.key.startswith("gradient-norms")]


def drawn(picture: Picture) -> ElementTree.Element:
    return ElementTree.fromstring(picture.drawing.render(alone=True).encode())


def words_of(picture: Picture) -> list[str]:
    return ["".join(part.itertext()) for part in drawn(picture).iter(f"{SVG}text")]


def marks_of(picture: Picture) -> list[tuple[str, str, float]]:
    """What is told of each mark, its colour and the height of its first corner."""
    found = []
    for part in drawn(picture).iter(f"{SVG}path"):
        place = re.match(r"M[\d.-]+ ([\d.-]+)", part.get("d", ""))
        assert place is not None
        colour = part.get("fill") if part.get("stroke") is None else part.get("stroke")
        found.append((part.findtext(f"{SVG}title") or "", colour or "", float(place[1])))
    return found


def test_curves_over_minutes_and_of_one_step_have_their_ticks(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    told = [(0, "run.started", {"model": "m", "config": {}})]
    told += [(t, "metric", {"name": "by time", "value": t}) for t in (3, 9, 21, 33)]
    told += [(t, "metric", {"name": "by step", "value": 10.0 * t, "step": t}) for t in (40, 41, 42)]
    with open(run.events_path, "w") as file:
        for seq, (t, kind, fields) in enumerate(told, 1):
            event = {"v": 1, "run": "r", "seq": seq, "t": 1000.0 + t, "type": kind, **fields}
            file.write(json.dumps(event) + "\n")
    found = {picture.title: words_of(picture) for picture in pictures(read_facts(run.path))}
    assert {"Minutes since the start", "0.1", "0.3", "0.5"} <= set(found["by time"])
    assert {"40", "41", "42"} <= set(found["by step"]) and "40.5" not in found["by step"]


def test_every_tensors_gradient_is_drawn(tmp_path: Path) -> None:
    facts = read_facts(write_run(tmp_path, "tall", layers=126, steps=2).path)
    found = gradient_pictures(facts)
    assert [picture.key for picture in found] == [f"gradient-norms-0{n}" for n in (1, 2, 3, 4)]
    assert [picture.title.rsplit(", ")[-1] for picture in found] == [
        "layers 0–31", "layers 32–63", "layers 64–95", "layers 96–125",
    ]  # fmt: skip
    told = [label.split(": ")[0] for picture in found for label, _, _ in marks_of(picture) if label]
    assert sorted(told) == sorted(facts.state["gradients"]) and len(told) == 126 * 7
    for picture in found:
        assert {"Layer", "Gradient norm", "in the original", "q", "down"} <= set(words_of(picture))
        dashes = [colour for label, colour, _ in marks_of(picture) if not label and colour == NEUTRAL]
        assert len(dashes) == sum(label != "" for label, _, _ in marks_of(picture)) + 1, "and the legend's"
    charts = {path for path, _ in bundle(facts).drawings}
    assert {f"charts/tall-{picture.key}" for picture in found} <= charts
    page = report_html(facts)
    assert all(f'data-chart="{picture.key}"' in page for picture in found)


def test_the_zip_has_every_tensor_or_says_of_which(tmp_path: Path) -> None:
    facts = read_facts(write_run(tmp_path, "small", layers=2, steps=2, details=True).path)
    assert zip_words(facts.state) == "All charts and tables (ZIP)"
    names = {slug(name) for name in facts.state["layers"]}
    for kind in ("histogram", "scales", "blocks"):
        start = f"charts/small-{kind}-"
        drawn = {path.removeprefix(start) for path, _ in bundle(facts).drawings if path.startswith(start)}
        assert drawn == names
    assert "drawn of every tensor (14)" in dict(bundle(facts).files)["README.txt"]
    facts = read_facts(write_run(tmp_path, "large", layers=8, steps=2, details=True).path)
    assert zip_words(facts.state) == "Charts and tables, 48 worst of 56 tensors (ZIP)"
    made = bundle(facts)
    worst = [slug(diff.name) for diff in ordered(tensor_diffs(facts.state))][:48]
    assert [path for path, _ in made.drawings if "blocks-" in path] == [
        f"charts/large-blocks-{name}" for name in worst
    ]
    told = dict(made.files)["README.txt"]
    assert "the 48 tensors with the largest error, of 56 that were pressed" in told
    assert "tables/large-layers.csv" in told and "tables/large-layers.csv" in dict(made.files)
    assert "large-report.json  not here: " in told
    plain = bundle(read_facts(write_run(tmp_path, "plain", layers=1, steps=2).path))
    assert "recorded no details" in dict(plain.files)["README.txt"]


def test_blocks_are_coloured_by_their_values(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r", layers=1, steps=2, details=True)
    name, details = next(worst_tensors(read_facts(run.path), 1))
    svg = drawn(blocks(name, details))
    fills = [part for part in svg.iter(f"{SVG}path") if part.get("shape-rendering")]
    cells = {
        place: part.get("fill") for part in fills for place in part.get("d", "").removesuffix("z").split("z")
    }
    assert len(cells) == 3 * details.block_error.size
    worst = np.unravel_index(int(details.block_error.argmax()), details.block_error.shape)
    side = 192 / details.block_error.shape[0]
    place = f"M{number(20 + 2 * 240 + side * worst[1])} {number(66 + side * worst[0])}h"
    (tint,) = {fill for cell, fill in cells.items() if cell.startswith(place)}
    assert tint == CIVIDIS[-1], "the largest error is the lightest"


def test_what_explodes_stands_at_its_height_and_is_not_called_dead(tmp_path: Path) -> None:
    run = make_run(tmp_path, "odd")
    writer = EventWriter(run.path)
    odd = {"q": (500.0, 1.0), "k": (0.005, 1.0), "v": (0.0, 1.0), "o": (None, 1.0)}
    for kind, fields in events(run, layers=2, steps=2):
        part = re.search(r"layers\.1\.self_attn\.(\w)_proj", str(fields.get("layer")))
        if kind == "gradient" and part:
            fields["norm"], fields["original"] = odd[part[1]]
        writer.emit(kind, **fields)
    writer.close()
    (picture,) = gradient_pictures(read_facts(run.path))
    words = words_of(picture)
    assert {"exploding (over 100×)", "dead (under 1 %)", "not finite"} <= set(words)
    name = "model.layers.1.self_attn.{}_proj.weight"
    marks = marks_of(picture)
    heights = {kind: [y for label, _, y in marks if label.startswith(name.format(kind))] for kind in odd}
    signs = {
        kind: [c for label, c, _ in marks if label.startswith(name.format(kind)) and c == CURRENT]
        for kind in odd
    }
    assert all(len(found) == 1 for found in signs.values()), "each is marked"
    top = min(y for label, _, y in marks if label and not label.startswith(name.format("q")))
    assert max(heights["q"]) < top, "the largest norm stands highest"
    assert max(heights["q"]) < max(heights["k"]) < max(heights["v"]), "the small one above the one of zero"
    labels = {
        kind: next(label for label, _, _ in marks if label.startswith(name.format(kind))) for kind in odd
    }
    assert labels["q"].endswith(": 500, in the original 1.00, exploding")
    assert labels["v"].endswith(": 0, in the original 1.00, dead")
    assert labels["o"].endswith(": not finite, in the original 1.00")


def test_a_path_has_a_dot_for_a_point_between_two_breaks() -> None:
    nan, drawing = float("nan"), Drawing("A curve", 100, 80)
    before = len(drawing.parts)
    drawing.path([(nan, 1), (1, 2), (2, 3), (3, nan), (4, 5), (5, nan), (6, 7), (7, 8)], "#123456")
    drawing.path([(9, 9)], "#123456", "4 2")
    drawing.path([(nan, nan)], "#123456")
    line, *dots = drawing.parts[before:]
    assert 'd="M1 2L2 3M6 7L7 8"' in line
    starts = [re.findall(r'd="M([0-9.]+) ([0-9.]+)a2.2 ', dot) for dot in dots]
    assert starts == [[("1.8", "5")], [("6.8", "9")]]
