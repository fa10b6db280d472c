"""Gates at their very limits, null for what was not measured, advice with names, costs and a command."""

from __future__ import annotations

import dataclasses
import math

import pytest
from tritpress.config import CompressionConfig
from tritpress.evaluate.advice import Command, projected
from tritpress.evaluate.gates import Alternative, Measured, five_gates
from tritpress.evaluate.gradient_flow import GradientFlow
from tritpress.evaluate.rerun import beyond_options, write_settings


def layer(name: str, planes: int = 1, **more):
    return {"name": name, "weights": 100_000, "planes": planes, "sparsity": 0.4, **more}


OTHERS = (
    Alternative(9.0, 0.16, 0.92, ()),
    Alternative(8.2, 0.082, 0.961, ("b", "c", "a", "d")),
    Alternative(7.0, 0.04, 0.98, ("b", "c", "a", "d")),
    Alternative(6.0, 0.02, 0.99, ("b", "c", "a", "d")),
)

GOOD = Measured(
    ratio_file=6.0,
    accuracy_kept=0.95,
    perplexity_change=0.10,
    sparsity=0.45,
    gradients=GradientFlow(1.0, 3, []),
    layers=[layer("a"), layer("b"), layer("c"), layer("d")],
    command=Command("model dir", "out"),
)


def gates(**changes):
    return {gate["name"]: gate for gate in five_gates(dataclasses.replace(GOOD, **changes))}


def test_the_five_gates_pass_at_their_limits():
    found = gates()
    assert list(found) == ["ratio", "accuracy", "perplexity", "sparsity", "gradient_flow"]
    assert all(set(gate) == {"name", "target", "actual", "passed", "advice"} for gate in found.values())
    assert all(gate["passed"] is True and gate["advice"] is None for gate in found.values())
    assert [gate["target"] for gate in found.values()] == [6.0, 0.95, 0.10, [0.25, 0.45], 1.0]
    assert gates(sparsity=0.25)["sparsity"]["passed"]


@pytest.mark.parametrize(
    "name,change",
    [
        ("ratio", {"ratio_file": 5.9999}),
        ("accuracy", {"accuracy_kept": 0.9499}),
        ("perplexity", {"perplexity_change": 0.1001}),
        ("perplexity", {"perplexity_change": math.inf}),
        ("perplexity", {"perplexity_change": math.nan}),
        ("sparsity", {"sparsity": 0.4501}),
        ("sparsity", {"sparsity": 0.2499}),
        ("gradient_flow", {"gradients": GradientFlow(2 / 3, 3, [("a", "no gradient arrives")])}),
    ],
)
def test_each_gate_fails_just_beyond_and_says_what_to_do(name, change):
    found = gates(**change)
    assert found[name]["passed"] is False
    assert "tritpress compress 'model dir' -o out" in found[name]["advice"] or name == "ratio"
    assert [gate["passed"] for other, gate in found.items() if other != name] == [True] * 4


def test_what_was_not_measured_is_null_with_the_reason():
    measured = Measured(ratio_file=7.0, sparsity=0.4, reason="no torch")
    found = {gate["name"]: gate for gate in five_gates(measured)}
    for name in ("accuracy", "perplexity", "gradient_flow"):
        assert found[name]["passed"] is None and found[name]["actual"] is None
        assert found[name]["advice"] == "not measured: no torch"
    assert found["ratio"]["passed"] and found["sparsity"]["passed"]


def test_advice_on_quality_is_the_largest_ratio_that_is_predicted_to_pass():
    changes = {"perplexity_change": 0.14, "accuracy_kept": 0.931, "ratio_file": 9.1, "alternatives": OTHERS}
    found = gates(**changes)
    words = found["perplexity"]["advice"]
    assert "A plane more for 4 tensors (b, c, a and 1 more)" in words
    assert "predicted perplexity from +14.0% to +8.2%" in words and "from 93.1% to 96.1%" in words
    assert "ratio from 9.10 to 8.20" in words and "--ratio 8.2 --overwrite" in words
    assert "Or fine-tune 500,000 tokens" in words and "--tokens 500000" in words
    assert found["accuracy"]["advice"] == words


def test_what_was_pressed_without_calibration_is_advised_to_have_one():
    command = Command.of(CompressionConfig(method="fast", target_ratio=8.0), "m", "o")
    words = gates(perplexity_change=0.3, command=command)["perplexity"]["advice"]
    assert "Calibrated pressing" in words and "Run: tritpress compress m -o o --ratio 8 --overwrite" in words


def test_a_prediction_with_nothing_to_spare_is_no_advice():
    words = gates(perplexity_change=0.3, alternatives=[Alternative(8.0, 0.095, 0.97)])["perplexity"]["advice"]
    assert "No plan of 6x or more is predicted to pass without training: the best, at 8.00x" in words
    words = gates(perplexity_change=0.3, alternatives=[Alternative(8.0, 0.05, 0.955)])["perplexity"]["advice"]
    assert "No plan" in words


def test_tokens_are_foretold_from_the_loss_curve():
    curve = [(0, 0.30), (100_000, 0.22), (200_000, 0.18), (400_000, 0.14)]
    tokens, change = projected(curve, 0.08)
    assert 1_100_000 <= tokens <= 1_140_000 and change == pytest.approx(0.08, abs=1e-3)
    words = gates(
        perplexity_change=math.expm1(0.14), fine_tuned_tokens=400_000, loss_curve=curve
    )["perplexity"]["advice"]  # fmt: skip
    assert "in place of 400,000" in words and "perplexity from +15.0% to +8.5%" in words
    assert f"--tokens {projected(curve, math.log1p(0.085))[0]}" in words
    words = gates(perplexity_change=9.0, fine_tuned_tokens=400_000, loss_curve=[(t, v + 2) for t, v in curve])
    assert "not foreseen to do it: 3,200,000 tokens" in words["perplexity"]["advice"]
    assert projected([(0, 0.3), (100, 0.2), (200, 0.2), (400, 0.2)], 0.1) is None
    assert projected(curve[:3], 0.1) is None


def test_what_pressing_did_not_make_is_pressed_again():
    words = gates(
        perplexity_change=9.0, alternatives=OTHERS, unsound=[("b", "zeros would be nearer")],
        again="tritpress compress --resume R --press-again b",
    )["perplexity"]["advice"]  # fmt: skip
    assert words.startswith("One tensor is not what pressing should have made (b: zeros would be nearer).")
    assert words.endswith("Run: tritpress compress --resume R --press-again b") and "fine-tune" not in words


def test_advice_on_ratio_foretells_its_cost_or_says_that_it_cannot_be_had():
    words = gates(ratio_file=5.0, alternatives=OTHERS)["ratio"]["advice"]
    assert "ratio from 5.00 to 6.00" in words and "--ratio 6 --overwrite" in words and "beyond" not in words
    words = gates(ratio_file=5.0, alternatives=[Alternative(6.0, 0.4, 0.8)])["ratio"]["advice"]
    assert "beyond what the quality gates allow" in words
    words = gates(ratio_file=4.0, largest_ratio=4.4)["ratio"]["advice"]
    assert words.startswith("It cannot be had: 4.40 is the largest ratio") and "Run:" not in words


def test_advice_on_sparsity_names_tensors_and_the_setting_that_did_it():
    layers = [layer("a", sparsity=0.6), layer("b", sparsity=0.4)]
    command = Command.of(CompressionConfig(sparsity=0.6, target_ratio=8.0), "m", "o")
    words = gates(sparsity=0.5, layers=layers, command=command)["sparsity"]["advice"]
    assert "1 of 2" in words and "a (60.0%)" in words and "--sparsity asks for it" in words
    assert "tritpress compress m -o o --ratio 8 --overwrite" in words
    # where the quality fails too, one command has to mend both
    command = Command.of(CompressionConfig(sparsity=0.6, planes=1), "m", "o")
    words = gates(
        sparsity=0.6, perplexity_change=0.5, ratio_file=9.0, layers=layers, command=command,
        alternatives=OTHERS,
    )  # fmt: skip
    for name in ("sparsity", "perplexity"):
        assert "tritpress compress m -o o --ratio 8.2 --overwrite" in words[name]["advice"]


def test_zeros_that_bitnets_fit_chose_are_held_by_another_fit():
    command = Command.of(CompressionConfig(fit="bitnet", planes=1), "m", "o")
    words = gates(sparsity=0.2, layers=[layer("a", sparsity=0.2)], command=command)["sparsity"]["advice"]
    assert "tritpress compress m -o o --planes 1 --overwrite" in words


def test_unsound_gradients_get_a_plane_more():
    bad = GradientFlow(2 / 3, 3, [("a", "no gradient arrives")])
    words = gates(gradients=bad, alternatives=OTHERS)["gradient_flow"]["advice"]
    assert "a: no gradient arrives" in words and "--ratio 8.2" in words


def test_a_pass_that_the_text_cannot_decide_says_so():
    found = gates(perplexity_change=0.09, perplexity_interval=(0.07, 0.11), accuracy_interval=(0.96, 0.98))
    assert found["perplexity"]["passed"] is True
    assert "+7.0% to +11.0%" in found["perplexity"]["advice"]
    assert found["accuracy"]["advice"] is None


def test_the_command_repeats_the_run():
    config = CompressionConfig(
        planes=1, text=["a b.txt"], tokens=5000, seed=4, optimizer="mugrokfast", sparsity="free",
        grokfast_lambda=0.5, weight_decay=0.02,
    )  # fmt: skip
    assert str(Command.of(config, "m", "o")) == (
        "tritpress compress m -o o --planes 1 --sparsity free --tokens 5000 --optimizer mugrokfast "
        "--grokfast-lambda 0.5 --weight-decay 0.02 --seed 4 --text 'a b.txt' --overwrite"
    )


def test_what_has_no_option_goes_into_a_file_that_config_takes(tmp_path):
    from tritpress.config import load_config

    config = CompressionConfig(
        window=128, calibration_tokens=512, alerts=["gate", "nan"], evaluate=False, text=["a"],
        text_field="body", outputs="packed", finetune=False, group_size=128,
    )  # fmt: skip
    assert set(beyond_options(config)) == {"window", "calibration_tokens", "alerts", "evaluate"}
    write_settings(beyond_options(config), tmp_path / "settings.toml")
    again = load_config(tmp_path / "settings.toml")
    assert (again.window, again.calibration_tokens, again.alerts) == (128, 512, ["gate", "nan"])
    words = str(Command.of(config, "m", "o", program="/venv/bin/tritpress", settings="c.toml", runs="/r s"))
    assert words == (
        "/venv/bin/tritpress compress m -o o --config c.toml --group-size 128 --text-field body "
        "--no-finetune --packed-only --text a --runs '/r s' --overwrite"
    )


def test_the_line_that_repeats_a_run_names_its_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my task.yaml").write_text("task: mine\n", encoding="utf-8")
    config = CompressionConfig(tasks=["arc_easy", "my task.yaml"], task_limit=50)
    line = str(Command.of(config, "model", "out"))
    assert f"--tasks arc_easy --tasks '{tmp_path}/my task.yaml'" in line
    assert beyond_options(config) == {"task_limit": 50}
