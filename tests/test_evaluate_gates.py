"""Gates at their very limits, null for what was not measured, advice with names, costs and a command."""

from __future__ import annotations

import dataclasses
import math

import pytest
from tritpress.config import CompressionConfig
from tritpress.evaluate.advice import Command
from tritpress.evaluate.gates import Measured, five_gates

try:  # GradientFlow lives beside torch code
    from tritpress.evaluate.gradient_flow import GradientFlow
except ImportError:
    pytest.skip("needs torch", allow_module_level=True)


def layer(name: str, planes: int = 1, **more):
    return {
        "name": name, "weights": 100_000, "planes": planes, "bytes": 28_200 * planes, "sparsity": 0.4,
        "cosine": 0.9, "predicted_loss": None, **more,
    }  # fmt: skip


GOOD = Measured(
    ratio_file=6.0,
    accuracy_kept=0.95,
    perplexity_change=0.10,
    sparsity=0.45,
    gradients=GradientFlow(1.0, 3, []),
    layers=[layer("a"), layer("b", cosine=0.7), layer("c", cosine=0.8), layer("d", cosine=0.95)],
    bytes_fp32=1_600_000,
    bytes_packed=160_000,
    embeddings="int8",
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


def test_advice_on_quality_names_the_worst_tensors_and_the_cost():
    words = gates(perplexity_change=0.3)["perplexity"]["advice"]
    assert "the 3 tensors with the largest error, b, c, a first" in words and "84,600 bytes more" in words
    assert "from 6.00 to 6.54" in words and "--ratio 6.54" in words
    assert "--tokens 500000" in words
    words = gates(perplexity_change=0.3, fine_tuned_tokens=400_000)["perplexity"]["advice"]
    assert "--tokens 800000" in words and "400,000 so far" in words


def test_the_planners_loss_outranks_the_weight_error():
    losses = {"a": 9.0, "b": 0.1, "c": 1.0}
    layers = [layer(name, predicted_loss=loss, cosine=loss / 10) for name, loss in losses.items()]
    words = gates(accuracy_kept=0.9, layers=layers)["accuracy"]["advice"]
    assert "a, c, b" in words


def test_planes_are_only_advised_while_the_ratio_gate_holds():
    words = gates(perplexity_change=0.3, bytes_packed=266_000)["perplexity"]["advice"]
    assert "one plane more" not in words and words.startswith("Fine-tune")


def test_advice_on_ratio_presses_what_has_planes_to_spare():
    layers = [layer("a", 2, cosine=0.99), layer("b", 2, cosine=0.9)]
    words = gates(ratio_file=5.0, layers=layers, bytes_packed=320_000, embeddings="fp16")["ratio"]["advice"]
    assert "int8 rows" in words and "a, b first" in words
    assert "--ratio 6" in words
    words = gates(ratio_file=4.0, bytes_packed=400_000)["ratio"]["advice"]
    assert "4.00 is about the largest" in words


def test_advice_on_sparsity_names_tensors_and_the_setting_that_did_it():
    layers = [layer("a", sparsity=0.6), layer("b", sparsity=0.4)]
    command = Command.of(CompressionConfig(sparsity=0.6, target_ratio=8.0), "m", "o")
    words = gates(sparsity=0.5, layers=layers, command=command)["sparsity"]["advice"]
    assert "1 of 2" in words and "a (60.0%)" in words and "--sparsity asks for it" in words
    assert "tritpress compress m -o o --ratio 8 --overwrite" in words


def test_a_pass_that_the_text_cannot_decide_says_so():
    found = gates(perplexity_change=0.09, perplexity_interval=(0.07, 0.11), accuracy_interval=(0.96, 0.98))
    assert found["perplexity"]["passed"] is True
    assert "+7.0% to +11.0%" in found["perplexity"]["advice"]
    assert found["accuracy"]["advice"] is None


def test_the_command_repeats_the_run():
    config = CompressionConfig(
        planes=1, text=["a b.txt"], tokens=5000, seed=4, optimizer="adamw", sparsity="free",
        grokfast_lambda=0.5,
    )  # fmt: skip
    assert str(Command.of(config, "m", "o")) == (
        "tritpress compress m -o o --planes 1 --sparsity free --tokens 5000 --optimizer adamw "
        "--grokfast-lambda 0.5 --seed 4 --text 'a b.txt' --overwrite"
    )
