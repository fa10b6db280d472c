"""The Metrics and Quality tabs as data: curves, smoothing, thinning, gradients, alerts, reasons."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from dashboard_log import write_run
from tritpress.dashboard.components import twins
from tritpress.dashboard.components.curves import CurveCard
from tritpress.dashboard.views import curves, metrics, quality, status
from tritpress.events import StateReader, fold, initial_state


def state_until(folder: Path, until: str | None = None, **options: Any) -> dict[str, Any]:
    return StateReader(write_run(folder, "r", until=until, **options).path).state


def tell(state: dict[str, Any], kind: str, t: float = 0.0, **fields: Any) -> None:
    fold(state, {"v": 1, "run": "r", "seq": state["seq"] + 1, "t": t, "type": kind, **fields})


def trained(steps: int, seed: int = 0) -> dict[str, Any]:
    state, r = initial_state("r"), random.Random(seed)
    tell(state, "run.started", 100.0)
    for step in range(1, steps + 1):
        loss = 99.0 if step == steps // 3 else r.random()
        tell(state, "finetune.step", 100.0 + 6 * step, step=step, tokens=step * 512, loss=loss, grad_norm=1.0)
    return state


def test_downsampling_keeps_ends_and_extremes() -> None:
    values = [0.0] * 10_000
    values[1234], values[8765] = 9.0, -9.0
    kept = metrics.downsample(values, 2000)
    assert len(kept) <= 2000 and {0, 1234, 8765, 9999} <= set(kept) and kept == sorted(kept)
    assert metrics.downsample([1.0, 2.0], 2000) == [0, 1]


def test_the_charts_of_training(tmp_path: Path) -> None:
    state = state_until(tmp_path)
    charts = {chart.key: chart for chart in curves.training_charts(state)}
    assert list(charts) == ["loss", "kl", "ce", "grad_norm", "lr", "tokens_per_s"]
    loss, validation = charts["loss"].lines
    assert loss.x == [float(step) for step in range(1, 121)] and validation.dots
    assert validation.x == [20.0, 40.0, 60.0, 80.0, 100.0, 120.0]
    assert loss.y == [point["loss"] for point in state["finetune"]]
    assert curves.training_charts(initial_state("r")) == []
    skipped = initial_state("r")
    skipped["steps"][4].update(state="skipped", reason="no text")
    assert metrics.curve_words(skipped) == "Fine-tuning was skipped: no text"


def test_x_by_step_tokens_or_time() -> None:
    state = trained(30)
    for axis, last in (("step", 30.0), ("tokens", 30 * 512.0), ("time", 3.0)):
        (chart, _) = curves.training_charts(state, axis)
        assert chart.lines[0].x[-1] == pytest.approx(last) and chart.x_label == curves.X_LABELS[axis]
        assert len(chart.lines[0].x) == 30
    for point in state["finetune"]:  # a log of before tokens were said
        del point["tokens"]
    assert all(chart.empty for chart in curves.training_charts(state, "tokens"))


def test_long_training_is_thinned_evenly_with_ends_and_extremes_and_grows_at_its_end() -> None:
    state = trained(9000)
    line = curves.training_charts(state)[0].lines[0]
    assert len(line.x) <= curves.POINTS and line.x[0] == 1.0 and line.x[-1] == 9000.0
    assert max(line.y) == 99.0 and line.x[line.y.index(99.0)] == 3000.0
    gaps = [b - a for a, b in zip(line.x, line.x[1:])]
    assert max(gaps) < 40  # no stretch is lost
    quarters = [sum(low < x <= low + 2250 for x in line.x) for low in range(0, 9000, 2250)]
    assert max(quarters) < 2 * min(quarters)


def test_custom_metrics_get_a_chart_each_on_the_axis_they_can_be_placed_on() -> None:
    state = initial_state("r")
    tell(state, "run.started", 100.0)
    tell(state, "metric", 160.0, name="early", value=1.0)
    tell(state, "finetune.step", 200.0, step=7, tokens=3584, loss=1.0)
    tell(state, "metric", 220.0, name="late", value=2.0)
    tell(state, "metric", 230.0, name="late", value=float("nan"))
    tell(state, "metric", 240.0, name="own", value=3.0, step=70)
    charts = {chart.title: chart for chart in curves.custom_charts(state)}
    assert list(charts) == ["early", "late", "own"]
    assert charts["early"].lines[0].x == [1.0] and charts["early"].x_label == curves.X_LABELS["time"]
    assert charts["late"].lines[0].x == [7.0, 7.0] and math.isnan(charts["late"].lines[0].y[1])
    assert charts["own"].lines[0].x == [70.0]
    assert curves.custom_charts(state, "tokens")[1].lines[0].x == [3584.0, 3584.0]
    for i in range(200):
        tell(state, "metric", 300.0, name=f"m{i}", value=i)
    assert len(curves.custom_charts(state)) == 203
    assert curves.custom_page(state, 0) == (slice(0, 24), 0, 9)
    assert curves.custom_page(state, 99)[1:] == (8, 9)
    assert [c.title for c in curves.custom_charts(state, "step", curves.custom_page(state, 8)[0])] == [
        f"m{i}" for i in range(189, 200)
    ]
    assert curves.custom_page(initial_state("r"), 3)[1:] == (0, 1)


def test_metrics_of_a_run_that_never_said_when_it_began() -> None:
    state = initial_state("r")
    tell(state, "metric", 160.0, name="loss", value=1.0)
    tell(state, "metric", 280.0, name="loss", value=0.5)
    assert curves.custom_charts(state)[0].lines[0].x == [0.0, 2.0]
    assert status.status_of(state).label == "Running"
    kept = {**state, "started": None}  # a snapshot of before
    assert curves.custom_charts(kept)[0].lines[0].x == [0.0, 2.0]
    tell(kept, "finetune.step", 100.0, step=1, loss=1.0)
    assert curves.training_charts(kept, "time")[0].lines[0].x == [0.0]


def test_a_custom_metric_of_many_values_keeps_its_beginning() -> None:
    state = initial_state("r")
    tell(state, "run.started", 0.0)
    for i in range(20_000):
        tell(state, "metric", float(i), name="m", value=-7.0 if i == 123 else i % 10)
    (chart,) = curves.custom_charts(state)
    line = chart.lines[0]
    assert len(line.x) <= 2000 and line.x[0] == 0.0 and line.x[-1] == pytest.approx(19_999 / 60)
    assert min(line.y) == -7.0
    assert sum(x < 5_000 / 60 for x in line.x) > 0.2 * len(line.x)


def test_smoothing_is_an_average_that_can_be_continued() -> None:
    values = [1.0, 3.0, float("nan"), 5.0]
    assert curves.smooth(values[:2], 0.0) == [1.0, 3.0]
    found = curves.smooth(values, 0.5)
    assert found[0] == 1.0 and found[1] == pytest.approx((0.5 * 1 + 3) / 1.5) and math.isnan(found[2])
    state = curves.smooth_state(values[:2], 0.5)
    assert curves.smooth(values[2:], 0.5, state)[1] == pytest.approx(found[3])
    assert curves.smooth([4.0] * 50, 0.99)[-1] == pytest.approx(4.0)


def test_a_value_between_two_gaps_is_seen() -> None:
    nan = float("nan")
    assert curves.lone_points([1, 2, 3, 4, 5], [1.0, nan, 2.0, nan, 3.0]) == ([1, 3, 5], [1.0, 2.0, 3.0])
    assert curves.lone_points([1, 2, 3, 4], [1.0, 2.0, nan, nan]) == ([], [])
    assert curves.lone_points([7], [1.0]) == ([7], [1.0]) and curves.lone_points([], []) == ([], [])


def test_a_growing_curve_marks_what_its_line_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    state = initial_state("r")
    tell(state, "run.started", 0.0)

    def chart(value: float | None) -> curves.Chart:
        """With that value of a metric at the end."""
        tell(state, "metric", float(len(state["metrics"].get("m", ()))), name="m", value=value)
        return curves.custom_charts(state)[0]

    card = CurveCard()
    card.show(chart(2.0))
    (series,) = card.series.values()
    streamed: list[int] = []
    stream = series.source.stream

    def counted(columns: Any, *more: Any, **given: Any) -> None:
        streamed.append(len(columns["x"]))
        stream(columns, *more, **given)

    monkeypatch.setattr(type(series.source), "stream", lambda source, columns: counted(columns))

    def marked() -> list[float]:
        assert series.lone is not None
        return list(series.lone.data["y"])

    assert marked() == [2.0], "the first value is no line yet"
    steps = ((1.9, []), (None, []), (1.8, [1.8]), (1.7, []), (None, []), (1.5, [1.5]), (None, [1.5]))
    for more, expected in steps:
        card.show(chart(more))
        assert marked() == expected, more
    assert streamed == [1] * len(steps), "never sent whole again"


def test_the_twin_of_a_chart_has_its_ends(tmp_path: Path) -> None:
    chart = curves.training_charts(state_until(tmp_path))[0]
    head, rows = curves.twin_rows(chart)
    assert head == ["Training step", "Training", "Validation"]
    assert rows[0][0] == "1" and rows[-1][0] == "120" and len(rows) <= 30
    assert next(row for row in rows if row[0] == "20")[2] != "–" and rows[0][2] == "–"
    assert "Loss, nats a token" in twins.curve(chart)


@pytest.mark.parametrize(
    ("title", "label", "caption"),
    [
        ("Training speed", "Tokens a second", "Training speed, tokens a second"),
        ("Gradient norm", "Norm", "Gradient norm"),
        ("Loss", "s", "Loss, s"),
        ("Signal", "dB", "Signal, dB"),
        ("Memory", "GB", "Memory, GB"),
        ("Loss", "", "Loss"),
    ],
)
def test_a_twin_says_what_its_figures_are(title: str, label: str, caption: str) -> None:
    assert curves.twin_caption(title, label) == caption


def test_memory_and_reasons_in_the_table(tmp_path: Path) -> None:
    state = state_until(tmp_path)
    rows = {row.key: row.values for row in metrics.table(state)}
    assert rows["memory_bytes"] == ("21.4 MB", "9.12 MB", "21.4 MB") and metrics.reasons(state) == []
    del state["evaluations"]["packed"]["memory_bytes"]
    assert metrics.reasons(state) == ["Memory was not measured when this run was evaluated."]
    early = state_until(tmp_path / "early", "plan")
    assert metrics.reasons(early) == ["The packed and dequantized are measured in step 7."]
    skipped = initial_state("r")
    for number in (2, 7):
        skipped["steps"][number - 1].update(state="skipped", reason="no text was given (--text)")
    assert metrics.reasons(skipped)[0] == "The original is not measured: no text was given (--text)."
    assert all(value == "–" for row in metrics.table(skipped) for value in row.values)


def test_gradients_mark_what_is_dead_and_what_explodes(tmp_path: Path) -> None:
    state = state_until(tmp_path)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(5)]
    for name, norm, original in zip(names, (0.0, None, 0.001, 500.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0)):
        state["gradients"][name], state["gradients_original"][name] = norm, original
    found = quality.gradients(state)
    marks = {point.name: point.mark for point in found.points}
    assert [marks[name] for name in names] == ["dead", "broken", "dead", "exploding", "ok"]
    assert found.bad == 4 and "2 dead · 1 not finite · 1 exploding" in found.words
    assert found.low <= min(point.norm for point in found.points) and len(found.points) == 42
    assert quality.gradients(initial_state("r")).points == ()
    without = state_until(tmp_path / "old")
    without["gradients_original"] = {}
    assert quality.gradients(without).bad == 0 and quality.gradients(without).points[0].before == "–"


def test_the_table_of_gradients_is_in_the_url(tmp_path: Path) -> None:
    from tritpress.dashboard.session import Session
    from tritpress.dashboard.store import RunStore

    write_run(tmp_path, "r")
    session = Session(RunStore(tmp_path))
    session.context.open_run("r", "quality", twin="1")
    tab: Any = session.tab
    assert tab.twin_switch.value and "data-gradient-table" in tab.twin.pane.object
    assert session.routing.url() == {"run": "r", "tab": "quality", "twin": "1"}
    session.context.open_run("r", "quality")
    assert not tab.twin_switch.value and tab.twin.pane.object == "" and tab.query() == {}
    tab.twin_switch.value = True
    assert tab.query() == {"twin": "1"} and "data-gradient-table" in tab.twin.pane.object


def test_gradients_come_in_pages_of_layers(tmp_path: Path) -> None:
    state = state_until(tmp_path, layers=70)
    pages = [quality.gradients(state, page) for page in range(3)]
    assert [(page.first, page.last) for page in pages] == [(0, 31), (32, 63), (64, 69)]
    assert [len(page.points) for page in pages] == [32 * 7, 32 * 7, 6 * 7] and pages[0].pages == 3
    assert len({(page.low, page.high) for page in pages}) == 1  # the same axis on each
    assert quality.gradients(state, 99).page == 2


def test_advice_gives_its_command_to_copy(tmp_path: Path) -> None:
    state = state_until(tmp_path, failing_gate="ratio")
    command = "tritpress compress /models/m -o out --ratio 6 --overwrite"
    state["gates"]["ratio"]["advice"] = f"Press harder: fewer planes. Run {command}."
    card = quality.gate_cards(state)[0]
    assert card.commands == (command,)
    assert card.advice == "Press harder: fewer planes. The command below does."
    state["gates"]["ratio"]["advice"] = f"Run {command}. Or fine-tune at the same size: {command}."
    two = quality.gate_cards(state)[0]
    assert two.commands == (command, command) and "command 2 below" in two.advice


def test_alerts_as_lines_newest_first() -> None:
    state = initial_state("r")
    assert quality.alert_lines(state) == [] and "before there were alerts" in quality.alert_rules(state)
    tell(state, "alert", 5.0, rule="nan", level="critical", message="The loss is not a finite number")
    tell(state, "alert", 6.0, rule="metric:x>1", level="warning", message="<b>x</b> is 2, above 1")
    tell(state, "alert", 7.0, message="of an older log", level="error")
    lines = quality.alert_lines(state)
    assert [(line.rule, line.tone) for line in lines] == [
        ("–", "bad"),
        ("metric:x>1", "warning"),
        ("nan", "bad"),
    ]
    state["config"] = {"alerts": ["gate", "nan"], "alert_webhook": "http://x", "alert_command": None}
    assert quality.alert_rules(state) == (
        "Watched: a gate fails; the loss or a norm is not a number. Sent to a webhook."
    )
    state["config"]["alerts"] = []
    assert quality.alert_rules(state) == "No rules watch this run."
