"""The live page's view models: what is shown for a state, without panel and without a browser."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dashboard_log import events, make_run, write_run
from tritpress.config import KEPT_PLAN, make_config
from tritpress.dashboard.sidebar_fields import Fields
from tritpress.dashboard.store import earlier_runs
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views import metrics, outputs, overview, quality, status
from tritpress.dashboard.views.checks import check_model
from tritpress.dashboard.views.events import event_lines
from tritpress.dashboard.views.form import (
    Form,
    command_of,
    config_of,
    controls,
    form_of,
    toml_of,
)
from tritpress.dashboard.views.runs import run_list, run_options
from tritpress.errors import UsageError
from tritpress.events import fold, initial_state, load_snapshot
from tritpress.reference import reference_model_path
from tritpress.runs.history import list_runs
from tritpress.runs.tuning import toml_of_config, tuned_config


def state_until(tmp_path: Path, until: str | None = None, count: int = 1, **options: Any) -> dict[str, Any]:
    """The state of the replayed run before the `count`-th event of type `until`."""
    run = make_run(tmp_path, f"r{len(list(tmp_path.iterdir()))}")
    state = initial_state(run.id)
    seen = 0
    for seq, (kind, fields) in enumerate(events(run, **options)):
        seen += kind == until
        if kind == until and seen == count:
            break
        fold(state, {"v": 1, "run": run.id, "seq": seq, "t": 1000.0 + seq, "type": kind, **fields})
    return state


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (fig.size(3_412_000), "3.41 MB"),
        (fig.size(812), "812 B"),
        (fig.size(999_960), "1.00 MB"),
        (fig.size(None), "–"),
        (fig.ratio(6.4123), "6.41×"),
        (fig.percent(0.4187), "41.9 %"),
        (fig.change(0.0342), "+3.4 %"),
        (fig.change(-0.0342), "−3.4 %"),
        (fig.change(float("nan")), "–"),
        (fig.duration(0.0142), "14 ms"),
        (fig.duration(12.34), "12.3 s"),
        (fig.duration(185), "3 min 05 s"),
        (fig.duration(3720), "1 h 02 min"),
        (fig.rough_duration(44), "45 s"),
        (fig.significant(0.041234), "0.0412"),
        (fig.significant(9.3812, 4), "9.381"),
        (fig.significant(1.23e-5), "1.23 × 10⁻⁵"),
        (fig.significant(0), "0"),
        (fig.significant(True), "–"),
        (fig.large_count(5_344_512), "5.34 M"),
        (fig.plural(1, "gate"), "1 gate"),
    ],
)
def test_numbers_have_units_and_sensible_digits(shown: str, text: str) -> None:
    assert shown == text


def test_headline_never_shows_a_ratio_alone(tmp_path: Path) -> None:
    nothing = status.headline(initial_state("r"))
    assert (nothing.ratio, nothing.bits, nothing.planes) == ("–", "–", "–")
    planned = status.headline(state_until(tmp_path, "layer.finished"))
    assert planned.ratio == "6.41×" and not planned.measured and planned.note == "planned"
    assert "bits a weight" in planned.bits and "plane" in planned.planes
    measured = status.headline(state_until(tmp_path))
    assert (measured.ratio, measured.bits, measured.planes) == ("6.41×", "4.56 bits a weight", "1.98 planes")
    assert measured.measured
    one = {
        **state_until(tmp_path),
        "figures": {"ratio_file": 10.0, "bits_per_weight": 2.25, "planes_mean": 1.0},
    }
    assert status.headline(one).note == "ternary, 1.58-bit"
    assert "1.58" not in measured.note


def test_status_in_words(tmp_path: Path) -> None:
    running = state_until(tmp_path, "layer.finished", 3)
    assert (
        status.status_of(running).label == "Running" and "ternarization" in status.status_of(running).sentence
    )
    assert status.status_of(running, lost=True).label == "Worker gone"
    finished = state_until(tmp_path)
    assert status.status_of(finished).sentence == "All five gates pass."
    few = {**finished, "gates": {name: finished["gates"][name] for name in ("ratio", "sparsity")}}
    assert status.status_of(few).sentence == "2 gates passed; 3 gates not judged."
    assert status.status_of({**finished, "gates": {}}).sentence == "The run is over."
    failed = status.status_of(state_until(tmp_path, failing_gate="perplexity"))
    assert failed.tone == "warning" and "perplexity change" in failed.sentence
    broken = {**running, "status": "failed", "error": "no space left"}
    assert status.status_of(broken).sentence == "no space left."
    assert status.elapsed(running, running["started"] + 7) == 7
    waits = {**initial_state("r"), "status": "queued", "after": ["a", "b", "c", "d"]}
    assert "4 runs (Llama, b, c, …)" in status.status_of(waits, names={"a": "Llama", "d": "no"}).sentence


def test_words_of_a_run_worked_on_elsewhere_promise_nothing_of_this_machine(tmp_path: Path) -> None:
    running = state_until(tmp_path, "layer.finished", 3)
    running["outputs"] = []
    for kind in ("created", "queued", "running", "paused", "stopped", "failed", "lost"):
        lost = kind == "lost"
        state = {**running, "status": "running" if lost else kind, "after": ["a"]}
        said = [
            status.status_of(state, lost, remote=True).sentence,
            status.next_words(state, lost, remote=True),
            outputs.standing(state, lost, remote=True)[1],
        ]
        assert all(said), (kind, said)
        untrue = r"Resume|worker\.log|on disk|stop it|process|Nothing was written"
        assert not re.search(untrue, " ".join(said)), said
    assert "Resume goes on" in status.status_of(running, lost=True).sentence
    assert "worker.log" in status.next_words(running, lost=True)


def test_eta_from_the_pace_so_far() -> None:
    step = {"n": 4, "state": "running", "started": 100.0, "done": 10, "total": 40}
    assert status.seconds_left(step, 120.0) == pytest.approx(60)
    # Of a resumed run 30 of 40 were done before: they are not counted as speed.
    resumed = {**step, "done": 32}
    assert status.seconds_left(resumed, 104.0, base=(100.0, 30.0)) == pytest.approx(16)
    assert status.seconds_left({**step, "total": None}, 120.0) is None
    assert status.seconds_left({**step, "done": 0}, 120.0) is None


def test_eta_of_the_whole_run_from_earlier_runs_like_it(tmp_path: Path) -> None:
    state = state_until(tmp_path, "layer.finished", 3)
    running, now = state["steps"][3], state["updated"]
    running.update(done=None)
    assert running["state"] == "running"

    def words(earlier: list[list[float | None]], samples: Any = None) -> str:
        return status.run_left_words(state, now, samples=samples, earlier=earlier)

    assert "no finished run of this model" in words([])
    took = [1.0, 5.0, 5.0, now - running["started"] + 60.0, 300.0, 30.0, 90.0]
    assert words([took]) == "The whole run: about 8 min left, by an earlier run like it."
    slower = [*took[:4], 420.0, 30.0, 90.0]
    assert words([took, slower]) == (
        "The whole run: about 9 min left (8 min to 10 min), by 2 earlier runs like it."
    )
    assert "no finished run" in words([[*took[:6], None]])  # it never went through a step that is to come
    # its own pace says more of the running step than earlier runs do
    samples = {4: [(now - 10.0 * k, running["total"] - 12 - k) for k in range(3, -1, -1)]}
    state["steps"][3].update(done=running["total"] - 12)
    assert words([took], samples).startswith("The whole run: about 9 min left")
    assert status.run_left_words(state, now, lost=True, earlier=[took]) == ""


def test_runs_are_alike_by_what_decides_how_long_they_take(tmp_path: Path) -> None:
    settings = {"a": {"seed": 1}, "b": {"seed": 2}, "c": {"method": "fast"}, "d": {"weight_decay": 0.0}}
    for name, extra in settings.items():
        write_run(tmp_path, name, config={"method": "gptq", **extra})
    runs = list_runs(tmp_path)
    (a,), (b,), (c,), (d,) = ([run for run in runs if run["id"] == name] for name in "abcd")
    assert a["alike"] == b["alike"] == d["alike"] != c["alike"]
    assert len(a["step_seconds"]) == 7 and a["step_seconds"][0] is not None
    others = [run["step_seconds"] for run in runs if run["id"] in "bd" and run["status"] == "finished"]
    assert earlier_runs(runs, "a") == others and earlier_runs(runs, "c") == []


def test_overview_shows_each_figure_with_its_target(tmp_path: Path) -> None:
    tiles = {tile.key: tile for tile in overview.tiles(state_until(tmp_path))}
    assert tiles["ratio"].value == "6.41×" and "4.56 bits a weight · 1.98 planes" in tiles["ratio"].beside
    assert tiles["ratio"].target == "≥ 6.00×" and tiles["ratio"].passed is True
    assert tiles["size"].value == "3.41 MB" and "17.4 MB" in tiles["size"].beside
    assert tiles["sparsity"].target == "25 % to 45 %"
    assert tiles["perplexity"].value == "+3.4 %" and tiles["perplexity"].beside == "9.38 → 9.70"
    assert tiles["accuracy"].value == "98.8 %"
    early = {tile.key: tile for tile in overview.tiles(state_until(tmp_path, "step.finished"))}
    assert early["perplexity"].value == "–" and early["perplexity"].passed is None


TASKS: dict[str, Any] = {
    "accuracy_kept": 0.931,
    "interval": [0.91, 0.95],
    "results": [
        {
            "task": "arc_easy", "metric": "acc_norm", "original": 0.62, "packed": 0.5772, "kept": 0.931,
            "documents": 1200,
        },
        {"task": "zero", "metric": "acc", "original": 0.0, "packed": 0.0, "kept": None, "documents": 2},
    ],
}  # fmt: skip


def with_tasks(state: dict[str, Any], tasks: dict[str, Any] | None = TASKS) -> dict[str, Any]:
    """That run with tasks, which its gate reads: it fails by them, not by held-out top-1."""
    state["config"] = {**state["config"], "tasks": ["arc_easy", "zero"]}
    if tasks is not None:
        fold(state, {"v": 1, "run": state["run"], "seq": 9999, "t": 5000.0, "type": "tasks", **tasks})
    return state


def test_where_tasks_were_run_the_page_shows_what_the_gate_reads(tmp_path: Path) -> None:
    state = with_tasks(state_until(tmp_path))
    state["gates"]["accuracy"].update(actual=0.931, passed=False)

    def tile_of(state: dict[str, Any]) -> overview.Tile:
        return next(tile for tile in overview.tiles(state) if tile.key == "accuracy")

    tile = tile_of(state)
    assert (tile.value, tile.passed, tile.beside) == ("93.1 %", False, "mean of 2 tasks · top-1 kept 98.8 %")
    rows = {row.key: row for row in metrics.table(state)}
    top1 = rows["accuracy_kept"]
    assert top1.title == "Top-1 accuracy kept" and top1.values[1] == "98.76 %"
    assert rows["tasks_kept"].values == ("–", "93.10 % (91.0 to 95.0)", "–")
    arc, zero = rows["task:arc_easy"], rows["task:zero"]
    assert (arc.title, arc.unit) == ("arc_easy", "acc_norm, 1,200 documents")
    assert arc.values == ("62.00 %", "57.72 % · 93.1 % kept", "–")
    assert zero.values == ("0.00 %", "0.00 %", "–")
    assert json.loads(json.dumps(state))["tasks"] == TASKS
    # a snapshot of an older version has what the gate read, but no results
    older = tile_of({**state, "tasks": None})
    assert (older.value, older.beside) == ("93.1 %", "mean of the tasks · top-1 kept 98.8 %")
    assert "task:arc_easy" not in {row.key for row in metrics.table({**state, "tasks": None})}
    # held-out figures come first: they are not taken for the tasks'
    early = with_tasks(state_until(tmp_path, "gate"), tasks=None)
    assert tile_of(early).value == "–" and tile_of(early).beside.startswith("of tasks, run in step 7")
    none_right = {"accuracy_kept": None, "interval": None, "results": TASKS["results"][1:]}
    unmeasured = tile_of(with_tasks(state_until(tmp_path), none_right))
    assert unmeasured.value == "–" and unmeasured.beside.startswith("of tasks, not measured")


def test_seven_steps_with_time_and_progress(tmp_path: Path) -> None:
    state = state_until(tmp_path, "layer.finished", 11)
    lines = overview.step_lines(state, now=state["updated"])
    assert [line.state for line in lines] == ["done", "done", "skipped", "running", *["waiting"] * 3]
    assert lines[0].time == "1.5 s"
    assert lines[2].detail == "no calibration needed for --method fast"
    assert lines[3].share == pytest.approx(10 / 42) and "left" in lines[3].detail
    lost = overview.step_lines(state, now=state["updated"] + 1000, lost=True)[3]
    assert (lost.state, lost.word, lost.time) == ("failed", "interrupted", "")
    assert status.elapsed(state, state["updated"] + 1000, lost=True) == state["updated"] - state["started"]


def test_table_before_and_after(tmp_path: Path) -> None:
    rows = {row.key: row.values for row in metrics.table(state_until(tmp_path))}
    assert rows["bytes"] == ("8.70 MB", "3.41 MB", "10.6 MB")
    assert rows["perplexity"] == ("9.381", "9.702", "9.691")
    assert rows["perplexity_change"] == ("–", "+3.42 % (+2.9 to +4.0)", "+3.30 %")
    assert rows["top1"] == ("53.17 %", "52.51 %", "52.54 %")
    assert rows["bits"][1] == "4.56 · 1.98 planes"
    empty = metrics.table(initial_state("r"))
    assert all(value in ("–",) for row in empty for value in row.values)


def test_gates_as_cards(tmp_path: Path) -> None:
    waiting = quality.gate_cards(initial_state("r"))
    assert [card.verdict for card in waiting] == ["waiting"] * 5 and waiting[0].target == "≥ 6.00×"
    state = state_until(tmp_path, failing_gate="perplexity")
    state["gates"]["gradient_flow"].update(actual=None, passed=None, advice="no text")
    cards = {card.name: card for card in quality.gate_cards(state)}
    assert (cards["ratio"].verdict, cards["ratio"].actual) == ("passed", "6.41×")
    assert cards["ratio"].margin == "0.41× above the target"
    assert cards["perplexity"].verdict == "failed" and "o_proj" in cards["perplexity"].advice
    assert cards["gradient_flow"].word == "not measured" and cards["gradient_flow"].advice == "no text"
    assert cards["sparsity"].margin == "3.1 points inside the band"


def test_gates_and_checks_of_any_make_are_shown(tmp_path: Path) -> None:
    base = state_until(tmp_path)
    odd: tuple[Any, ...] = (None, True, "x", [], [None, 0.45], [1, 2, 3], {}, {"min": None}, 0, -1)
    for value in odd:
        state = copy.deepcopy(base)
        for name, gate in state["gates"].items():
            state["gates"][name] = {**gate, **dict.fromkeys(("target", "passed", "actual", "advice"), value)}
        state["handoff"] = [{"name": value, "passed": value, "detail": value}, {"passed": True}]
        card = quality.gate_cards(state)[0]
        assert card.word == ("passed" if value is True else "not measured")
        assert overview.tiles(state) and status.status_of(state)
        assert [line.word for line in outputs.checklist(state)] == [card.word.replace("measured", "checked"),
                                                                    "passed"]  # fmt: skip
        for event in ({"type": "gate", **state["gates"]["ratio"], "name": "ratio"},
                      {"type": "handoff", "items": state["handoff"]}):  # fmt: skip
            assert event_lines([{"seq": 1, "t": 1.0, **event}])
    state = copy.deepcopy(base)
    state["gates"]["sparsity"] |= {"target": [None, 0.45], "actual": 0.3}
    band = next(card for card in quality.gate_cards(state) if card.name == "sparsity")
    assert (band.target, band.margin) == ("– to 45 %", "")


@pytest.mark.parametrize(
    ("name", "actual", "target", "words", "margin"),
    [
        ("ratio", 5.996, 6.0, "5.996×", "0.004× below the target"),
        ("ratio", 6.0, 6.0, "6.00×", "0.00× above the target"),
        ("ratio", 6.41, 6.0, "6.41×", "0.41× above the target"),
        ("accuracy", 0.94996, 0.95, "94.996 %", "0.004 points beyond the limit"),
        ("perplexity", 0.1003, 0.1, "+10.03 %", "0.03 points beyond the limit"),
        ("perplexity", 0.1, 0.1, "+10.0 %", "0.0 points of room"),
        ("sparsity", 0.45001, [0.25, 0.45], "45.001 %", "0.001 points outside the band"),
        ("gradient_flow", 0.9997, 1.0, "99.97 %", "0.03 points short"),
        ("perplexity", 0.1 + 1e-15, 0.1, "+10.0 %", "0.0 points beyond the limit"),
    ],
)
def test_what_misses_its_target_never_reads_as_the_target(
    tmp_path: Path, name: str, actual: float, target: Any, words: str, margin: str
) -> None:
    state = state_until(tmp_path)
    state["gates"][name] |= {"actual": actual, "target": target}
    card = next(card for card in quality.gate_cards(state) if card.name == name)
    assert (card.actual, card.margin) == (words, margin)
    if name in ("ratio", "perplexity"):
        state["figures"] |= {"ratio_file": actual, "perplexity_change": actual}
        assert words in [tile.value for tile in overview.tiles(state)]


def test_outputs_side_by_side(tmp_path: Path) -> None:
    state = state_until(tmp_path)
    packed, dequantized = outputs.model_cards(state)
    assert packed.size == "3.41 MB" and packed.summary.startswith("6.41× smaller than float32 · 4.56 bits")
    assert packed.files[0].name == "model.safetensors" and len(packed.files[0].sha256) == 64
    assert packed.path in packed.load and "tritpress.load" in packed.load
    assert "AutoModelForCausalLM" in dequantized.load
    root = outputs.tree(state)
    assert root is not None and [node.name for node in root.children] == ["packed", "dequantized"]
    assert [line.word for line in outputs.checklist(state)] == ["passed", "passed"]
    early = outputs.model_cards(state_until(tmp_path, "output"))
    assert early[0].why == "Written in step 6." and outputs.tree(initial_state("r")) is None
    only = state_until(tmp_path, "output")
    only["config"] = {**only["config"], "outputs": "packed"}
    assert "packed model only" in outputs.model_cards(only)[1].why


def test_the_tree_of_outputs_says_where_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    state = {**state_until(tmp_path), "out": str(out)}
    (out / "packed").mkdir(parents=True)
    for number in range(outputs.TREE_ENTRIES):
        (out / "packed" / f"{number:04}").write_text("x")
    root = outputs.tree(state)
    assert root is not None and not root.cut and len(root.children[0].children) == outputs.TREE_ENTRIES
    (out / "report.json").write_text("{}")
    more = outputs.tree(state)
    assert more is not None and more.cut
    assert sum(len(node.children) for node in more.children) + 1 == outputs.TREE_ENTRIES


def test_what_was_written_is_said_of_the_models_that_were(tmp_path: Path) -> None:
    state = state_until(tmp_path, failing_gate="ratio")
    assert status.status_of(state).sentence.endswith("Both models are written.")
    named = state["outputs"]
    for key, other in (("packed", "dequantized"), ("dequantized", "packed")):
        state["outputs"] = [output for output in named if Path(output["path"]).parent.name == key]
        words = status.status_of(state).sentence
        assert words.endswith(f"failed: compression. The {key} model is written.") and other not in words
    state["outputs"] = []
    assert status.status_of(state).sentence == "1 gate failed: compression."
    only = state_until(tmp_path, "output")
    only["config"] = {**only["config"], "outputs": "packed"}
    assert "the packed model is written in step 6" in outputs.standing(only)[1]


def test_outputs_of_a_run_worked_on_elsewhere(tmp_path: Path) -> None:
    state = state_until(tmp_path)
    state["out"] = None
    state["outputs"] = [
        {**output, "path": "/".join(Path(output["path"]).parts[-2:])} for output in state["outputs"]
    ]
    packed, _ = outputs.model_cards(state)
    assert packed.path == "" and packed.size == "3.41 MB" and packed.place
    assert packed.load.endswith('tritpress.load("OUT/packed")')
    root = outputs.tree(state)
    assert root is not None and [node.name for node in root.children] == ["packed", "dequantized"]
    assert {file.name for file in root.children[0].children} >= {"model.safetensors", "config.json"}
    there = tmp_path / "there"  # a folder of that name is here too: it is another's
    (there / "packed").mkdir(parents=True)
    (there / "packed" / "mine").write_text("")
    state["remote_out"] = str(there)
    packed, _ = outputs.model_cards(state)
    assert packed.path == f"{there}/packed" and packed.place == outputs.ELSEWHERE
    root = outputs.tree(state)
    assert root is not None and root.name == str(there)
    assert "mine" not in {file.name for file in root.children[0].children}
    # whole paths, whatever folders lie above the model's
    state["remote_out"] = None
    state["outputs"] = [{**o, "path": f"/data/packed/{o['path']}"} for o in state["outputs"]]
    assert outputs.model_cards(state)[1].size == "10.6 MB"
    root = outputs.tree(state)
    assert root is not None and [node.name for node in root.children] == ["packed", "dequantized"]
    state["outputs"] = [{"path": "", "bytes": 1}]
    assert outputs.tree(state) is not None
    state["outputs"] = []
    assert "named no file" in outputs.model_cards(state)[0].why


def test_the_tree_of_outputs_that_were_moved_is_the_runs_own_list(tmp_path: Path) -> None:
    state = {**state_until(tmp_path), "out": str(tmp_path / "moved")}
    for output in state["outputs"]:
        output["path"] = "/".join(Path(output["path"]).parts[-2:])
    root = outputs.tree(state)
    assert root is not None and [node.name for node in root.children] == ["packed", "dequantized"]


def test_form_and_configuration() -> None:
    form = Form(model="/m", ratio=7.5, sparsity=0.35, budget="epochs", amount=2, weight_decay=0.1, seed=3)
    config = config_of(form)
    assert (config.target_ratio, config.sparsity, config.epochs, config.tokens) == (7.5, 0.35, 2, None)
    again = form_of({"config": config.model_dump(), "model": {"path": "/m"}}, Form())
    assert again == form
    assert config_of(Form(finetune=False)).tokens is None
    with pytest.raises(UsageError):
        config_of(Form(amount=3))
    assert command_of(form) == (
        "tritpress compress /m -o OUT --ratio 7.5 --sparsity 0.35 --epochs 2 --weight-decay 0.1 --seed 3 "
        "--finetune"
    )
    assert "target_ratio = 7.5" in toml_of(form) and "weight_decay = 0.1" in toml_of(form)
    assert make_config(tomllib.loads(toml_of(form))) == config_of(form)
    assert "'/a b'" in command_of(Form(model="/a b"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "mugrokfast"])
def test_the_equal_command_and_file_train_with_the_chosen_optimizer(optimizer: str) -> None:
    form = Form(model="/m", optimizer=optimizer, grokfast_lambda=0.2)
    assert make_config(tomllib.loads(toml_of(form))) == config_of(form)
    assert (f"--optimizer {optimizer}" in command_of(form)) == (optimizer != "adamw")
    assert ("--grokfast-lambda 0.2" in command_of(form)) == (optimizer == "mugrokfast")
    kept = config_of(form).model_dump()
    assert make_config(tomllib.loads(toml_of_config(kept))) == config_of(form)
    assert "optimizer" not in toml_of(Form(model="/m"))


def test_a_run_is_repeated_by_its_own_copy_of_a_plan_that_is_not_as_it_was(tmp_path: Path) -> None:
    given, run = tmp_path / "p.json", tmp_path / "run"
    run.mkdir()
    given.write_text('{"as": "given"}')
    config = make_config({"plan": str(given)})
    state = {"config": config.model_dump(), "model": {"path": "/m"}}

    def named(path: Path | None) -> str:
        form = form_of(state, Form(), path)
        assert f"--plan {form.extra['plan']}" in command_of(form)
        return form.extra["plan"]

    assert named(run) == str(given), "a run of an older version has no copy"
    kept = run / KEPT_PLAN
    kept.write_bytes(given.read_bytes())
    assert named(run) == str(given)
    given.write_text('{"as": "changed"}')
    assert named(run) == str(kept) and named(None) == str(given), "a run elsewhere has its plan elsewhere"
    given.unlink()
    assert named(run) == str(kept)
    assert form_of({"config": make_config({}).model_dump()}, Form(), run).extra == {}


def test_the_form_of_a_run_whose_settings_had_no_effect_can_start_another() -> None:
    old = {"finetune": False, "tokens": 5000, "optimizer": "muon", "grokfast_lambda": 0.5}
    config = {**make_config({}).model_dump(), **old, "tasks": ["boolq"], "task_limit": 9}
    form = form_of({"config": config, "model": {"path": "/m"}}, Form())
    assert config_of(form) == make_config({"finetune": False, "optimizer": "muon"})
    plan = Path("/p.json")
    assert make_config(tuned_config(config, plan)).task_limit == 9  # what the page passes on
    assert make_config(tuned_config({**config, "tasks": []}, plan)).task_limit is None
    assert tuned_config({"fit": "bitnet"}, plan)["fit"] == "absmean"  # which takes the plan's zeros


def test_half_an_epoch_is_refused_by_name_not_cut() -> None:
    for budget in ("epochs", "tokens"):
        with pytest.raises(UsageError, match=f"{budget} are counted in whole numbers: 1.5 is none"):
            config_of(Form(model="m", budget=budget, amount=1.5))
        assert getattr(config_of(Form(model="m", budget=budget, amount=512.0)), budget) == 512
    assert config_of(Form(model="m", budget="minutes", amount=0.5)).minutes == 0.5
    fields = Fields()
    fields.budget.value = "epochs"
    assert (fields.amount.start, fields.amount.value) == (1.0, 1.0)
    fields.fill(Form(model="m", budget="minutes", amount=0.1))
    assert (fields.amount.start, fields.amount.value) == (0.1, 0.1)
    fields.fill(Form(model="m", budget="tokens", amount=500))
    assert (fields.amount.start, fields.amount.value) == (256.0, 500.0)


@pytest.mark.parametrize(("budget", "step"), [("epochs", 1.0), ("tokens", 1000.0), ("minutes", 0.5)])
def test_one_press_on_the_stepper_is_an_amount_that_can_be_started_with(budget: str, step: float) -> None:
    fields = Fields()
    assert fields.amount.step == 1000.0, "of tokens, which it shows first"
    fields.fill(Form(model="m", budget=budget, amount=2000))
    form = fields.form("m")
    assert fields.amount.step == step
    assert getattr(config_of(replace(form, amount=form.amount + fields.amount.step)), budget) == 2000 + step
    with pytest.raises(UsageError, match=r"whole numbers: 100,000\.1 is none"):
        config_of(Form(model="m", budget="tokens", amount=100_000.1))


def test_alerts_of_the_form() -> None:
    plain = Form(model="/m", finetune=False)
    assert "alert" not in command_of(plain) and "alert" not in toml_of(plain)
    silent = replace(plain, alerts=())
    assert command_of(silent).endswith("--alert none --no-finetune") and "alerts = []" in toml_of(silent)
    own = replace(plain, alerts=("gate", "metric:queue depth>8"), alert_webhook="https://example.org/hook")
    assert "--alert-webhook https://example.org/hook" in command_of(own)
    assert "--alert gate --alert 'metric:queue depth>8'" in command_of(own)
    for form in (plain, silent, own):
        assert make_config(tomllib.loads(toml_of(form))) == config_of(form)
        assert form_of({"config": config_of(form).model_dump(), "model": {"path": "/m"}}, plain) == form
    assert config_of(replace(plain, alerts=("default", "nan"))).alerts == config_of(plain).alerts
    for wrong, words in {
        ("gate", "gaet"): "'gaet' is no rule; rules are gate,",
        ("",): "is no rule",
        ("none", "gate"): "'none' is no rule",
        ("stalled:0",): "needs minutes above 0",
    }.items():
        with pytest.raises(UsageError, match=words):
            config_of(replace(plain, alerts=wrong))
    with pytest.raises(UsageError, match="alert_webhook must be an http"):
        config_of(replace(plain, alert_webhook="example.org"))


def test_model_check(tmp_path: Path) -> None:
    found = check_model(str(reference_model_path()))
    assert found.ok and found.default_ratio == 6.0
    assert (
        "LlamaForCausalLM" in found.lines[0] and "42 tensors" in found.lines[1] and "tiny" in found.lines[2]
    )
    for path in ("", str(tmp_path / "nowhere"), str(tmp_path)):
        assert not check_model(path).ok and check_model(path).lines[0]


def test_a_limit_has_the_digits_that_tell_it_from_the_value() -> None:
    for name, actual, target, value, limit in (
        ("accuracy", 0.98, 0.985, "98.0 %", "≥ 98.5 %"),
        ("accuracy", 0.98, 0.98, "98.0 %", "≥ 98 %"),
        ("perplexity", 0.0304, 0.0302, "+3.04 %", "≤ +3.02 %"),
        ("sparsity", 0.25, [0.2525, 0.45], "25.0 %", "25.25 % to 45 %"),
        ("gradient_flow", 0.999, 0.9995, "99.9 %", "= 99.95 % of tensors"),
        ("ratio", 6.0, 6.004, "6.000×", "≥ 6.004×"),
        ("ratio", 6.1, 6.0, "6.10×", "≥ 6.00×"),
    ):
        assert status.actual_words(name, actual, target) == value
        assert status.gate_target_words(name, target) == limit
    assert status.gate_target_words("sparsity", {"min": 0.25, "max": None}) == "25 % to –"


def test_buttons_mean_something(tmp_path: Path) -> None:
    begun = {**initial_state("r"), "status": "created"}
    assert controls(begun, False, True).why["toggle"] == "The worker is still starting"
    assert controls(begun, False, True, remote=True).why["toggle"] == "Nothing was told of the run so far"
    empty = controls(None, False, True)
    assert empty.start and not (empty.pause or empty.stop or empty.reset)
    assert not controls(None, False, model_ok=False).start
    running = controls(state_until(tmp_path, "layer.finished"), False, True)
    assert (
        running.pause and running.stop and running.toggle == "Pause" and not (running.start or running.form)
    )
    assert running.another and not empty.another
    assert not controls(state_until(tmp_path, "gate"), False, True, may_act=False, why_not="no").another
    paused = controls({**initial_state("r"), "status": "paused"}, False, True)
    assert paused.resume and paused.toggle == "Resume" and not paused.pause
    lost = controls({**initial_state("r"), "status": "running"}, True, True)
    assert lost.resume and not lost.stop
    waiting = controls(state_until(tmp_path, "layer.finished"), False, True, waiting=True)
    assert not (waiting.pause or waiting.stop)
    gone = controls({**initial_state("r"), "status": "stopped"}, False, True, gone=True)
    assert gone.start and gone.reset and not (gone.resume or gone.pause or gone.stop)
    assert "no longer there" in gone.why["toggle"]


def test_a_run_worked_on_elsewhere_is_not_steered_from_here(tmp_path: Path) -> None:
    here = state_until(tmp_path, "layer.finished")
    running = controls(here, False, True, remote=True)
    assert not (running.pause or running.stop) and running.reset and running.toggle == "Pause"
    assert running.why["toggle"] == running.why["stop"] == status.ELSEWHERE
    for state in ("paused", "stopped", "failed"):
        found = controls({**here, "status": state}, False, True, remote=True)
        assert not found.resume and found.why["toggle"] == status.ELSEWHERE
        assert found.start == (state != "paused"), "another run can start beside it"
    over = controls({**here, "status": "finished"}, False, True, remote=True)
    assert over.why["toggle"] == "The run is finished" and over.start


def test_list_of_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "old", name="same")
    write_run(tmp_path, "new", name="same", failing_gate="ratio")
    write_run(tmp_path, "live", name="live", until="gate")
    lines = run_list(list_runs(tmp_path)).rows
    assert lines[0].id == "live" and lines[0].label == "Running"
    by_id = {line.id: line for line in lines}
    assert by_id["old"].gates == "5 of 5 pass" and by_id["new"].gates == "4 of 5 pass"
    assert by_id["new"].mark == "!" and by_id["old"].ratio == "6.41×" and by_id["old"].bits == "4.56 bits"
    options = run_options(list_runs(tmp_path), "gone")
    assert set(options.values()) == {"", "old", "new", "live", "gone"}


def test_nothing_here_imports_torch_or_the_pipeline() -> None:
    code = (
        "import sys, tritpress.dashboard.app, tritpress.dashboard.views.form, tritpress.dashboard.store;"
        "before = [m for m in ('panel', 'bokeh') if m in sys.modules];"
        "import tritpress.dashboard.session;"
        "never = ('torch', 'transformers', 'tritpress.pipeline', 'tritpress.steps');"
        "bad = [m for m in never if m in sys.modules];"
        "print(before, bad)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.stdout.strip() == "[] []", ran.stdout + ran.stderr


def test_the_replayed_log_is_what_the_reader_makes_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r")
    state = load_snapshot(run.snapshot_path)
    assert state is not None and state["status"] == "finished" and len(state["layers"]) == 42
    assert json.loads(run.events_path.read_text().splitlines()[0])["type"] == "run.started"
