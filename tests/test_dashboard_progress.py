"""The Progress tab as data: the grid of layers and parameters, its colours, and the view of one tensor."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from bokeh.models import ColumnDataSource
from dashboard_log import events, make_run, targets, write_run
from tritpress.dashboard.components.heatmap import HOVER
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import RunStore
from tritpress.dashboard.tabs.base import WORDS_EVERY
from tritpress.dashboard.tabs.progress import BESIDE_EVERY
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.choice import chosen
from tritpress.dashboard.views.layer import Found, find_layer, layer_view, look_through, look_up
from tritpress.dashboard.views.progress import (
    OUTSIDE,
    Board,
    at_work,
    map_targets,
    page_of,
    row_of_layer,
    sparsity_target,
    window,
)
from tritpress.dashboard.views.shades import SHADES, all_figures, cell_words
from tritpress.dashboard.views.status import headline
from tritpress.events import EventWriter, fold, initial_state, load_snapshot
from tritpress.events.snapshot import weights_of
from tritpress.runs.details import load_details


def folded(script: list[tuple[str, dict[str, Any]]], state: dict[str, Any] | None = None) -> dict[str, Any]:
    """The state after those events; each call folds into a copy, as the store hands on."""
    state = initial_state("r") if state is None else {**state, "layers": dict(state["layers"])}
    for kind, fields in script:
        event = {"v": 1, "run": "r", "seq": state["seq"] + 1, "t": 1000.0, "type": kind, **fields}
        fold(state, json.loads(json.dumps(event)))
    return state


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, Any]]]:
    return list(events(make_run(tmp_path_factory.mktemp("runs"), "r"), layers=126, steps=1))


def test_pages_are_windows_on_the_whole_model() -> None:
    where = map_targets(targets(126))
    assert where.columns == ("q", "k", "v", "o", "gate", "up", "down") and len(where.rows) == 126
    pages = [window(where, page) for page in range(4)]
    assert [(page.first, page.last) for page in pages] == [(0, 31), (32, 63), (64, 95), (96, 125)]
    assert {page.height for page in pages} == {32}, "a last page of 30 keeps the rows' height"
    assert window(where, 99).page == 3 and window(where, -5).page == 0
    assert page_of(where, "model.layers.97.mlp.up_proj.weight") == 3 and page_of(where, "nothing") is None
    assert row_of_layer(where, 77) == 77 and row_of_layer(where, 500) == 125
    small = window(map_targets(targets(6)), 0)
    assert (small.pages, small.height, small.last) == (1, 6, 5)
    assert window(map_targets([]), 0).pages == 1


def test_the_board_has_the_logs_figures_and_tells_what_changed(script: Any) -> None:
    finished = [at for at, (kind, _) in enumerate(script) if kind == "layer.finished"]
    model = next(fields for kind, fields in script if kind == "model")
    board = Board(map_targets(model["targets"]))
    state = folded(script[: finished[0]])
    cells, rows = board.update(state)
    assert [board.cells[number].state for number in cells] == ["current"] and rows == []
    assert board.cells[cells[0]].names == ("model.layers.0.self_attn.q_proj.weight",)
    state = folded(script[finished[0] : finished[3] + 1], state)
    cells, rows = board.update(state)
    assert cells == [0, 1, 2, 3] and rows == [0]
    assert [cell.state for cell in board.cells[:5]] == ["done"] * 4 + ["waiting"]
    assert board.update(state) == ([], []), "the same state changes nothing"
    state = folded(script[finished[3] + 1 :], state)
    cells, rows = board.update(state)
    assert cells == list(range(4, 882)) and rows == list(range(126))
    for cell in board.cells:
        layer = state["layers"][cell.names[0]]
        for key in ("ratio", "bits", "planes", "sparsity", "mse", "cosine", "zeros_all_planes"):
            assert getattr(cell, key) == layer[key], (cell.names, key)
        assert cell.error == pytest.approx(1 - layer["cosine"] ** 2)
    layers = [state["layers"][name] for name in state["layers"] if ".layers.3." in name]
    codes = [layer["rows"] * layer["cols"] * layer["planes"] for layer in layers]
    mean = sum(layer["sparsity"] * n for layer, n in zip(layers, codes)) / sum(codes)
    assert board.bars[3].value == pytest.approx(mean)
    assert board.bars[3].low == min(layer["sparsity"] for layer in layers)


def test_the_tensor_at_work_and_where_a_run_broke_off(script: Any) -> None:
    at = [at for at, (kind, _) in enumerate(script) if kind == "layer.started"][9]
    name = script[at][1]["name"]
    running = folded(script[: at + 1])
    assert at_work(running) == (name, "current")
    assert at_work(running, lost=True) == (name, "failed")
    failed = folded([("run.failed", {"error": "no space left", "exit_code": 1})], running)
    assert at_work(failed) == (name, "failed") and failed["broke_at"] == name
    board = Board(map_targets(failed["targets"]))
    board.update(running)
    cells, _ = board.update(failed)
    told = [(board.cells[number].state, SHADES["ratio"].text(board.cells[number])) for number in cells]
    assert told[0] == ("failed", "✕"), "a state is never told by colour alone"
    assert set(told[1:]) == {("unreached", "–")} and len(told) == len(board.cells) - len(running["layers"])
    resumed = folded([("run.started", {"resumed": True})], failed)
    assert at_work(resumed) == (None, "")
    done = folded(script[: at + 2])
    assert at_work(done) == (None, ""), "what is finished is not at work, though nothing else has begun"


def test_experts_fold_and_what_lies_in_no_layer_has_its_row() -> None:
    experts = [
        {"name": f"e{i}", "layer": 0, "kind": "expert", "rows": 4, "cols": 4 * (i + 1)} for i in range(2)
    ] + [{"name": "q", "layer": None, "kind": "q", "rows": 4, "cols": 4}]
    board = Board(map_targets(experts))
    assert board.where.rows == ("0", OUTSIDE) and board.where.columns == ("q", "expert")
    half = {"layers": {"e0": {"ratio": 6.0, "sparsity": 0.3, "planes": 2}}, "current": {"name": "e1"}}
    board.update(half)
    found = {(cell.row, cell.column): cell for cell in board.cells}
    assert set(found) == {("0", "expert"), (OUTSIDE, "q")}, "no cell where there is no parameter"
    assert found["0", "expert"].state == "current" and found["0", "expert"].done == 1
    assert found["0", "expert"].words == "at work, 1 of 2 pressed"
    assert found[OUTSIDE, "q"].state == "waiting" and "Outside the layers" in cell_words(found[OUTSIDE, "q"])
    assert SHADES["ratio"].text(found[OUTSIDE, "q"]) == "·"
    board.update({**half, "current": None})
    assert SHADES["ratio"].text(board.cells[0]) == "1/2"
    layers = {**half["layers"], "e1": {"ratio": 9.0, "sparsity": 0.6, "planes": 2}}
    board.update({"layers": layers, "current": None})
    assert board.cells[0].ratio == pytest.approx((6.0 + 2 * 9.0) / 3)
    assert board.bars[0].value == pytest.approx(0.5) and board.bars[0].inside is False
    assert "!" in board.bars[0].text, "outside the band is said in text, too"
    assert "2 tensors folded" in board.cells[0].title


def test_stacked_experts_count_with_all_their_weights() -> None:
    stack = {"name": "e", "layer": 0, "kind": "expert", "rows": 4, "cols": 8, "weights": 96}
    other = {"name": "q", "layer": 0, "kind": "q", "rows": 4, "cols": 8}
    layers = {
        "e": {**stack, "sparsity": 0.5, "planes": 1, "bits": 2.25},
        "q": {**other, "sparsity": 0.1, "planes": 1, "bits": 6.75},
    }
    # Earlier versions announced rows and columns of one expert alone; their pressed tensors say more.
    for announced in (stack, {key: stack[key] for key in ("name", "layer", "kind", "rows", "cols")}):
        board = Board(map_targets([announced, other]))
        board.update({"layers": layers, "current": None})
        found = {cell.column: cell for cell in board.cells}
        assert (found["expert"].weights, found["q"].weights) == (96, 32)
        assert board.bars[0].value == pytest.approx((3 * 0.5 + 0.1) / 4)
    assert Board(map_targets([stack])).cells[0].weights == 96, "before it is pressed, too"
    assert weights_of({"rows": 4, "cols": 8, "weights": None}) == 32 and weights_of({"rows": 4}) is None
    assert fig.shape(layers["e"]) == "3 × 4 × 8" and fig.shape(other) == "4 × 8" and fig.shape({}) == "– × –"
    facts = {fact.name: fact.value for fact in layer_view(layers["e"], Found(None, None), {}).facts}
    assert facts["Shape"] == "3 × 4 × 8"
    plan = {"tensors": [{**stack, "planes": 1, "bits": 2.25}, {**other, "planes": 3, "bits": 6.75}],
            "predicted_ratio": 9.0}  # fmt: skip
    told = headline({**initial_state("r"), "plan": plan})
    assert (told.bits, told.planes) == ("3.38 bits a weight", "1.50 planes")


def test_architectures_have_their_own_columns() -> None:
    gpt2 = [
        {"name": f"h.{n}.{kind}", "layer": n, "kind": kind, "rows": 8, "cols": 8}
        for n in range(3)
        for kind in ("fc2", "qkv", "o", "fc1")
    ] + [{"name": "h.1.strange", "layer": 1, "kind": "never heard of", "rows": 8, "cols": 8}]
    board = Board(map_targets(gpt2))
    assert board.where.columns == ("qkv", "o", "fc1", "fc2", "other")
    assert [cell.row for cell in board.cells if cell.column == "other"] == ["1"]
    assert board.at(0, 4) is None and board.at(1, 4) is not None


def test_colours_have_units_and_one_scale_for_all_pages(script: Any) -> None:
    state = folded(script)
    board = Board(map_targets(state["targets"]))
    board.update(state)
    cell = board.cells[0]
    layer = state["layers"][cell.names[0]]
    assert SHADES["ratio"].text(cell) == f"{layer['ratio']:.1f}"
    assert SHADES["sparsity"].text(cell) == f"{100 * layer['sparsity']:.0f}"
    assert SHADES["planes"].text(cell) == str(layer["planes"])
    assert SHADES["bits"].text(cell) == f"{layer['bits']:.2f}".rstrip("0").rstrip(".")
    assert SHADES["ratio"].bounds(board.cells) == (4.0, 15.0)
    low, high = SHADES["error"].bounds(board.cells)
    assert low == 0.0 and high >= max(cell.error for cell in board.cells)
    assert set(SHADES) == {"ratio", "sparsity", "error", "planes", "bits"}
    told = all_figures(cell)
    assert told["Ratio"] == fig.ratio(layer["ratio"])
    assert told["Cosine"] == fig.significant(layer["cosine"], 4)
    assert list(told) == list(HOVER.values()), "the pointer tells every figure by its own name"
    assert told["Group size"] == "64" and told["Method"] == "gptq"
    assert told["Threshold"] == told["Sign flips"] == told["Time"] == fig.NOTHING, "not in this log"
    known = [f"{name.lower()} {text}" for name, text in told.items() if text != fig.NOTHING]
    assert cell_words(cell) == " · ".join(["Layer 0", "q", *known]), "by keyboard they are all told too"


def test_figures_of_single_and_folded_tensors(tmp_path: Path) -> None:
    recorded = {"threshold_used": 0.71, "sign_flips": 0.004, "seconds": 2.0, "group_size": 64, "planes": 2}
    experts = [{"name": n, "layer": 0, "kind": "expert", "rows": 4, "cols": 4} for n in ("e0", "e1")]
    board = Board(map_targets(experts))
    planned = [{"name": "e0", "method": "gptq"}, {"name": "e1", "method": "fast"}]
    layers = {"e0": recorded, "e1": {**recorded, "threshold_used": 0.73, "seconds": 3.0}}
    board.update({"layers": layers, "current": None, "plan": {"tensors": planned}})
    told = all_figures(board.cells[0])
    assert (told["Threshold"], told["Group size"], told["Sign flips"]) == ("0.720", "64", "0.40 %")
    assert told["Method"] == "fast, gptq" and told["Time"] == "5.0 s", "the time of all of them"


def test_sparsity_target() -> None:
    assert sparsity_target({}).value == 0.44
    assert sparsity_target({"sparsity": 0.35}).name == "target 35 %"
    assert sparsity_target({"sparsity": "free"}).value is None
    assert sparsity_target({"threshold": 0.7}).value is None
    # what the plan came to; a log of an earlier version does not say
    for kept, line in ((0.44, 0.44), (None, None)):
        plan = {"tensors": [{"name": "a", "max_sparsity": kept}, {"name": "b", "max_sparsity": None}]}
        assert sparsity_target({}, plan).value == line
    assert sparsity_target({}, {"tensors": [{"name": "a"}]}).value == 0.44


def test_one_tensor_from_the_runs_details(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r", details=True)
    name = "model.layers.3.self_attn.v_proj.weight"
    state = load_snapshot(run.snapshot_path)
    assert state is not None
    found, details = look_up(run.path, name), load_details(run.path, name)
    assert found.details is not None and details is not None and found.event is None
    view = layer_view(state["layers"][name], found, state)
    layer = state["layers"][name]
    facts = {fact.name: fact.value for fact in view.facts}
    assert facts["Shape"] == "128 × 256" and facts["Method"] == "gptq" and view.place == "layer 3 · v"
    assert facts["Planes"] == str(layer["planes"])
    assert facts["Ratio"].startswith(fig.ratio(32 / layer["bits"]))
    assert facts["Squared error / squared norm"] == fig.percent(layer["relative_error"], 2)
    assert view.thresholds == (-layer["threshold_used"], layer["threshold_used"])
    assert view.histogram is not None and len(view.histogram.edges) == 257
    counts = details.histogram_before
    assert view.histogram.before == pytest.approx([n / counts.sum() for n in counts])
    assert sum(view.histogram.after) == pytest.approx(1)
    assert view.scales is not None and len(view.scales.planes) == layer["planes"]
    assert view.scales.planes[0][2] == fig.significant(float(details.scales[0][1]))
    assert not view.missing


def test_one_tensor_of_an_older_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r")
    name = "model.layers.3.self_attn.v_proj.weight"
    event = find_layer(run.events_path, name)
    state = load_snapshot(run.snapshot_path)
    assert event is not None and event["name"] == name and state is not None
    assert look_up(run.path, name).details is None
    view = layer_view(state["layers"][name], look_through(run.path, name), state)
    assert view.histogram is not None and len(view.histogram.edges) == 129
    assert sum(view.histogram.before) == pytest.approx(1) == sum(view.histogram.after)
    assert view.scales is None and view.thresholds == () and "no details" in view.missing
    assert find_layer(run.events_path, "model.layers.3") is None
    assert find_layer(tmp_path / "nothing", name) is None
    assert layer_view(state["layers"][name], Found(name), state).histogram is None


LAYER = {"planes": 2, "bits": 4.5, "sparsity": 0.431, "bytes": 36_864}


def test_what_was_chosen_and_why() -> None:
    planned = {"planes": 2, "method": "gptq", "predicted_loss": 0.002, "plane_losses": [0.03, 0.002, 0.0005]}
    text = " ".join(chosen(LAYER, planned, {"basis": "calibrated"}, {}, 0.71))
    assert "2 planes: a sum of 2 ternary planes, 4.50 bits a weight" in text
    assert "Foretold to cost 0.0020 nats a token." in text
    assert "One would cost about 0.030 nats a token, 15 times as much" in text
    assert "the second plane saves 0.028 nats a token for 18.4 kB" in text
    assert "A third one would save 0.0015 nats a token more for 18.4 kB" in text
    assert "0.710 times the group's mean" in text and "43.1 % of its codes are zero" in text
    assert "1.58" not in text, "only one plane is the 1.58-bit form"
    other_group = " ".join(
        chosen(LAYER, {**planned, "predicted_loss": 0.004}, {"basis": "calibrated"}, {}, None)
    )
    assert "Foretold to cost 0.0040 nats" in other_group and "One would cost about 0.060" in other_group
    one = " ".join(chosen({**LAYER, "planes": 1, "bits": 2.25}, {}, {}, {"planes": 1}, None))
    assert "1 plane: one ternary plane, the 1.58-bit form" in one and "asked for, not weighed" in one
    uncalibrated = " ".join(chosen(LAYER, {"predicted_loss": 0.004}, {"basis": "weights"}, {}, None))
    assert "No calibration" in uncalibrated and "nats" not in uncalibrated
    older = " ".join(chosen(LAYER, {"planes": 2, "method": "gptq"}, {}, {"sparsity": 0.35}, None))
    assert "did not record" in older and "35 % were asked for" in older
    tuned = " ".join(chosen({**LAYER, "fine_tuned": True}, {}, {}, {}, None))
    assert "Fine-tuning changed it" in tuned


def test_the_url_of_a_view_opens_the_same_view(tmp_path: Path) -> None:
    write_run(tmp_path, "r", layers=126, steps=1)
    session = Session(RunStore(tmp_path))
    name = "model.layers.70.mlp.up_proj.weight"
    session.context.open_run("r", "progress", page="2", colour="error", tensor=name)
    tab = session.tab
    assert (tab.number, tab.shade, tab.tensor, tab.follow) == (1, "error", name, False)
    assert tab.query() == {"page": "2", "colour": "error", "tensor": name}
    session.context.open_run("r", "progress", tensor=name)
    assert tab.number == 2, "a tensor alone opens the page on which it lies"
    session.context.open_run("r", "progress", layer="125")
    assert tab.number == 3 and tab.query() == {"page": "4", "layer": "125"}
    session.context.open_run("r", "progress", page="999", colour="<b>", layer="x")
    assert (tab.number, tab.shade, tab.layer) == (3, "ratio", None)
    session.context.open_run("r", "progress")
    assert tab.follow and tab.query() == {}


def test_the_link_says_where_the_work_ended(tmp_path: Path) -> None:
    """A page that followed the work stays where that ended, and so does its link."""
    run = make_run(tmp_path, "r")
    writer = EventWriter(run.path)
    script = list(events(run, layers=126, steps=1))
    last = max(at for at, (kind, _) in enumerate(script) if kind == "layer.finished")
    for kind, fields in script[:last]:
        writer.emit(kind, **fields)
    session = Session(RunStore(tmp_path))
    session.context.open_run("r", "progress")
    tab = session.tab
    assert tab.follow and tab.number == 3 and tab.query() == {}, "while it is at work a link follows it too"
    for kind, fields in script[last:]:
        writer.emit(kind, **fields)
    writer.close()
    session.feed.poll(time.monotonic() + 60)
    session.tick()
    assert tab.number == 3 and tab.query() == {"page": "4"}


def test_an_event_sends_its_cell_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is up to date gets patches of what changed, and no data source anew."""
    run = make_run(tmp_path, "r")
    script = list(events(run, layers=126, steps=1))
    finished = [at for at, (kind, _) in enumerate(script) if kind == "layer.finished"]
    writer = EventWriter(run.path)
    for kind, fields in script[: finished[40]]:
        writer.emit(kind, **fields)
    session = Session(RunStore(tmp_path))
    session.context.open_run("r", "progress", page="1")
    sent: list[tuple[str, int]] = []
    patch = ColumnDataSource.patch

    def noted(source: Any, patches: Any, *rest: Any) -> None:
        sent.append((source.name, max(len(changes) for changes in patches.values())))
        patch(source, patches, *rest)

    monkeypatch.setattr(ColumnDataSource, "patch", noted)
    held = session.tab.parts.heatmap.source.data
    for kind, fields in script[finished[40] : finished[42]]:
        writer.emit(kind, **fields)
    writer.close()
    session.feed.poll(time.monotonic() + 60)
    session.tick()
    assert dict(sent) == {"grid": 3}, "two finished, one began"
    assert session.tab.parts.heatmap.source.data is held
    session.tab.beside_sent -= BESIDE_EVERY
    session.clock = 0.0  # a second later
    session.tick()
    assert dict(sent) == {"grid": 3, "zeros": 1, "whole model": 3}, "one layer's zeros moved"
    minimap, grid = session.tab.parts.minimap.source.data, session.tab.parts.heatmap.source.data
    assert [minimap[name] for name in ("state", "row")] == [list(grid[name]) for name in ("state", "row")]
    assert repr(minimap["value"]) == repr(list(grid["value"])), "with what is not a number yet"
    session.tab._turn(2)
    assert len(sent) == 3, "a page is turned without any data"


def test_words_change_no_faster_than_they_can_be_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    script = list(events(run, layers=126, steps=1))
    finished = [at for at, (kind, _) in enumerate(script) if kind == "layer.finished"]
    writer = EventWriter(run.path)
    session, later = Session(RunStore(tmp_path)), itertools.count(time.monotonic() + 60)

    def write(piece: list[tuple[str, dict[str, Any]]]) -> tuple[str, str]:
        for kind, fields in piece:
            writer.emit(kind, **fields)
        writer.flush()
        session.feed.poll(next(later))
        session.clock = time.time()  # within a second
        session.tick()
        return session.bar.pane.object, session.tab.now.pane.object

    session.context.open_run("r", "progress")
    first = write(script[: finished[40]])
    session.told = session.tab.now_sent = time.monotonic()
    assert write(script[finished[40] : finished[41]]) == first and session.untold
    session.told -= WORDS_EVERY
    session.tab.now_sent -= WORDS_EVERY
    second = write(script[finished[41] : finished[42]])
    assert second[1] != first[1] and not session.untold
    session.told = session.tab.now_sent = time.monotonic()
    last = write(script[finished[42] :])
    assert last[0] != second[0] and last[1] != second[1], "the end is said at once"
    writer.close()
