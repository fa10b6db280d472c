"""Runs side by side as data and on the command line."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from dashboard_log import write_run
from rich.console import Console
from tritpress.cli import app
from tritpress.console.run_views import print_comparison
from tritpress.dashboard.views.compare import compare, metrics_left_out, overlay_rows, overlays, value_words
from tritpress.events.snapshot import initial_state
from tritpress.runs.comparison import Side, comparison, figures, gates, settings
from tritpress.runs.history import run_state


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        app(arguments, standalone_mode=False)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> list[Side]:
    folder = tmp_path_factory.mktemp("runs")
    one = write_run(folder, "one", name="One", config={"planes": 1})
    two = write_run(folder, "two", name="<b>Two</b>", config={"planes": 2, "seed": 5}, failing_gate="ratio")
    live = write_run(folder, "live", name="At work", until="output", steps=40)
    return [Side(run.id, name, run.read_run()["status"], run_state(run)) for run, name in
            ((one, "One"), (two, "<b>Two</b>"), (live, "At work"))]  # fmt: skip


def with_figures(**values: Any) -> Side:
    state = initial_state("x")
    state["figures"].update(values)
    return Side("x", "x", "finished", state)


def test_differing_settings_come_first(sides: list[Side]) -> None:
    rows = settings(sides)
    differing = [row.key for row in rows if row.differs]
    assert differing == ["planes", "seed"] and [row.key for row in rows[:2]] == differing
    assert {row.key for row in rows} >= {"model", "method", "group_size", "seed"}
    assert next(row for row in rows if row.key == "planes").values == (1, 2, None)
    made = compare(sides)
    assert [row.key for row in made.differing] == differing
    assert [cell.text for cell in made.differing[0].cells] == ["1", "2", "–"]


def test_the_best_is_by_the_figures_own_sense() -> None:
    found = {row.key: row for row in figures([
        with_figures(ratio_file=6.0, perplexity_change=0.04, sparsity=0.3),
        with_figures(ratio_file=8.0, perplexity_change=0.02, sparsity=0.4),
        with_figures(ratio_file=8.0, perplexity_change=float("nan")),
    ])}  # fmt: skip
    assert found["ratio_file"].best == (1, 2)
    assert found["perplexity_change"].best == (1,) and found["perplexity_change"].values[2] is None
    assert found["sparsity"].best == (), "neither more nor fewer zeros are better"
    assert found["kl"].best == () and found["kl"].values == (None, None, None)
    same = figures([with_figures(ratio_file=6.0), with_figures(ratio_file=6.0)])
    assert next(row for row in same if row.key == "ratio_file").best == ()


def test_figures_are_the_runs_own(sides: list[Side]) -> None:
    made = {row.key: row for row in compare(sides).figures}
    assert made["perplexity_change"].cells[0].text == "+3.42 % (+2.9 to +4.0 %)"
    assert made["seconds"].cells[2].text == "–", "the run at work has not ended"
    assert made["perplexity_before"].cells[2].text == "9.381"
    assert made["bytes"].cells[0].text == "3.41 MB"


def test_gates_stand_side_by_side(sides: list[Side]) -> None:
    found = dict(gates(sides))
    assert found["ratio"][0]["passed"] is True and found["ratio"][1]["passed"] is False
    assert found["ratio"][2] is None
    cells = {row.key: row.cells for row in compare(sides).gates}["ratio"]
    assert [(cell.mark, cell.word) for cell in cells] == [
        ("✓", "passed"), ("✕", "failed"), ("○", "not judged yet"),
    ]  # fmt: skip


def test_curves_share_an_axis(sides: list[Side]) -> None:
    made = {overlay.key: overlay for overlay in overlays(sides)}
    assert list(made) == ["loss", "validation_loss", "kl", "lr", "grad_norm", "tokens_per_s"]
    for key, overlay in made.items():
        assert len(overlay.lines) == 3 and not overlay.empty and overlay.x_label == "Tokens trained on"
        assert overlay.dots == (key == "validation_loss"), "measured now and then"
        for side, (x, y) in zip(sides, overlay.lines):
            points = [point for point in side.state["finetune"] if key in point]
            assert len(x) == len(y) and list(x) == sorted(x)
            assert (x[0], y[0]) == (points[0]["tokens"], points[0][key])
    assert len(made["loss"].lines[2][0]) == 40 and len(made["validation_loss"].lines[2][0]) == 2
    empty = overlays([with_figures(), with_figures()])
    assert all(overlay.empty for overlay in empty)


def test_custom_metrics_of_any_run_are_laid_over(sides: list[Side]) -> None:
    def having(**metrics: Any) -> Side:
        return dataclasses.replace(sides[0], state={**sides[0].state, "metrics": metrics})

    start = sides[0].state["started"]
    trained = [[start + 60, 1.0, 1, 512], [start + 120, 2.0, 2, 1024]]
    apart = [[start + 60, 5.0, None, None]]
    found = {o.key: o for o in overlays([having(acc=trained, both=trained), having(both=apart)])}
    assert list(found)[-2:] == ["metric:acc", "metric:both"]
    accuracy, both = found["metric:acc"], found["metric:both"]
    assert accuracy.x_label == "Tokens trained on" and accuracy.lines == (((512, 1024), (1, 2)), ((), ()))
    assert both.x_label.startswith("Minutes"), "a value outside training is placed by time alone"
    assert both.lines == (((1, 2), (1, 2)), ((1,), (5,))) and both.dots, "a single value is a point"
    gaps = [[start + 60 * i, v, i, 512 * i] for i, v in enumerate((0.5, None, 0.25))]
    assert overlays([having(gaps=gaps), having(gaps=trained)])[-1].dots, "no line leads to a value alone"
    many = having(**{f"m{i}": trained for i in range(70)})
    assert metrics_left_out([many, many]) == 10 and metrics_left_out(sides) == 0


def test_curves_over_minutes_have_their_ends_in_the_table(sides: list[Side]) -> None:
    def rows_of(*minutes: float) -> list[tuple[str, ...]]:
        start = sides[0].state["started"]
        points = [[start + 60 * at, 10 * at, None, None] for at in minutes]
        side = dataclasses.replace(sides[0], state={**sides[0].state, "metrics": {"queue": points}})
        return overlay_rows(overlays([side, side])[-1])

    short = rows_of(0.0625, 0.125, 0.375)  # less than 20 seconds
    assert len(short) == 12 and all(value != "–" for row in short for value in row)
    assert short[0] == ("0.06250", "0.6250", "0.6250") and short[-1] == ("0.3750", "3.750", "3.750")
    assert [row[0] for row in (rows_of(0.25, 2.75)[0], rows_of(0.25, 2.75)[-1])] == ["0.2500", "2.750"]
    by_tokens = overlay_rows(overlays(sides)[0])
    assert all("." not in row[0] for row in by_tokens) and by_tokens[-1][1] != "–"


def test_memory_and_the_dequantized_model_where_known(sides: list[Side]) -> None:
    rows = {row.key: row for row in compare(sides).figures}
    assert [cell.text for cell in rows["memory_bytes"].cells] == ["9.12 MB", "9.12 MB", "–"]
    assert rows["memory_bytes_before"].cells[2].text == "21.4 MB"
    assert rows["perplexity_dequantized"].cells[0].text == "9.691"
    assert rows["top1_dequantized"].cells[0].text == "52.54 %"
    assert rows["latency_ms_dequantized"].cells[0].text == "4.21 ms"
    without = {row.key for row in figures([with_figures(), with_figures()])}
    assert not any("memory" in key or "dequantized" in key for key in without)


def test_results_of_tasks_stand_side_by_side(sides: list[Side]) -> None:
    def asked(kept: float, **tasks: float) -> Side:
        results = [{"task": name, "metric": "acc", "packed": value} for name, value in tasks.items()]
        side = with_figures()
        return dataclasses.replace(
            side, state={**side.state, "tasks": {"accuracy_kept": kept, "results": results}}
        )

    rows = {row.key: row for row in compare([asked(0.9, arc=0.5, piqa=0.75), asked(0.95, arc=0.25)]).figures}
    assert [cell.text for cell in rows["tasks_kept"].cells] == ["90.00 %", "95.00 %"]
    assert rows["tasks_kept"].cells[1].best and rows["task:arc"].title == "arc, packed"
    assert [cell.text for cell in rows["task:arc"].cells] == ["50.00 %", "25.00 %"]
    assert [cell.text for cell in rows["task:piqa"].cells] == ["75.00 %", "–"]
    assert not any("task" in row.key for row in figures(sides))
    told = io.StringIO()
    print_comparison(Console(width=200, file=told), [asked(0.9, **{"[red]odd": 0.5}), asked(0.95, arc=0.25)])
    assert "[red]odd, packed" in told.getvalue() and "95.0" in told.getvalue()


def test_settings_in_words() -> None:
    assert [value_words(v) for v in (None, [], True, 0.1, ["a", "b"], "x", 3)] == [
        "–", "–", "yes", "0.1", "a, b", "x", "3",
    ]  # fmt: skip


def test_plain_data_holds_all_of_it(sides: list[Side]) -> None:
    made = json.loads(json.dumps(comparison(sides)))
    assert [run["id"] for run in made["runs"]] == ["one", "two", "live"]
    assert {row["key"] for row in made["figures"]} >= {"ratio_file", "perplexity", "kl", "seconds"}
    assert made["gates"][0] == {
        "name": "ratio", "passed": [True, False, None], "actual": [6.4123, 6.4123, None],
        "target": [6.0, 6.0, None],
    }  # fmt: skip


def test_on_the_command_line(sides: list[Side], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "aa-1", config={"planes": 1})
    write_run(tmp_path, "bb-2", config={"planes": 2}, name="[red]Two[/red]")
    assert exit_code(["runs", "compare", "aa", "bb-2", "--json", "--runs", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in found["settings"] if row["differs"]] == ["planes"]
    assert exit_code(["runs", "compare", "aa", "bb", "--runs", str(tmp_path)]) == 0
    assert "[red]Two[/red]" in capsys.readouterr().out
    assert exit_code(["runs", "compare", "aa", "aa-1", "--runs", str(tmp_path)]) == 2
    assert "two to six" in capsys.readouterr().err
