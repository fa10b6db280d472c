"""Fine-tuning: it lowers the loss, survives a kill bit for bit, falls back from NaN, keeps its limits."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from tritpress.config import CompressionConfig
from tritpress.errors import InputError, StopRequested
from tritpress.finetune import trainer
from tritpress.finetune.checkpoints import load_checkpoint, save_checkpoint
from tritpress.finetune.number_formats import measure_number_formats
from tritpress.finetune.recipe import recipe_for
from tritpress.finetune.trainer import fine_tune
from tritpress.finetune.training_text import ShuffledWindows
from tritpress.nn.bit_linear import BitLinear

FLOAT32 = {"muon": "float32", "autocast": "float32"}
WINDOW = 16


class Recorder:
    """A context that keeps events and can stop the run in a given step, as a kill would."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[dict] = []
        self.checks, self.stop_at = 0, stop_at

    def emit(self, type: str, /, **fields) -> None:
        self.events.append({"type": type, **fields})

    def check(self) -> None:
        steps = [event for event in self.events if event["type"] == "finetune.step"]
        if self.stop_at is not None and steps and steps[-1]["step"] >= self.stop_at:
            raise StopRequested("stopped")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, attention_dropout=0.1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    return rng.integers(0, 64, (40, WINDOW)), rng.integers(0, 64, (6, WINDOW))


def make_student(teacher, planes: int = 1) -> torch.nn.Module:
    """Every projection as ternary codes by plain rounding against the mean magnitude of each group."""
    student = copy.deepcopy(teacher)
    for path, module in list(student.named_modules()):
        if not path.endswith("_proj"):
            continue
        weight = module.weight.detach()
        scale = weight.abs().unflatten(-1, (-1, 32)).mean(dim=-1)
        scales = torch.stack([scale, scale * 0.4, scale * 0.15][:planes]).half()
        plain = BitLinear(weight, scales, 32)
        layer = BitLinear.from_codes(*plain.codes_and_scales(), weight.shape[1], 32, zero_band=(0.25, 0.44))
        parent, _, name = path.rpartition(".")
        setattr(student.get_submodule(parent), name, layer)
    return student


def config_for(tokens: int = 24 * 64, **more) -> CompressionConfig:
    return CompressionConfig(tokens=tokens, seed=3, **more)


def recipe(config: CompressionConfig, **changes):
    return recipe_for(config, WINDOW, FLOAT32, **{"batch_windows": 4, "evaluations": 4, **changes})


def run(teacher, windows, work_dir, *, ctx=None, planes=1, config=None, **changes):
    config = config or config_for()
    student = make_student(teacher, planes)
    result = fine_tune(
        student, teacher, windows[0], windows[1], config, work_dir, ctx, recipe=recipe(config, **changes)
    )
    return student, result


def codes_of(student) -> list[bytes]:
    layers = [module for module in student.modules() if isinstance(module, BitLinear)]
    return [array.tobytes() for layer in layers for array in layer.codes_and_scales()]


@pytest.mark.parametrize("optimizer", ["mugrokfast", "muon", "adamw"])
def test_training_lowers_the_validation_loss(teacher, windows, tmp_path, optimizer):
    ctx = Recorder()
    config = config_for(optimizer=optimizer)
    student, result = run(teacher, windows, tmp_path, ctx=ctx, config=config, lr=0.2, scale_lr=0.03)
    assert result.steps == 24 and result.tokens == 24 * 4 * WINDOW and result.stopped == "budget spent"
    assert result.loss_best < 0.95 * result.loss_first
    assert result.optimizer == optimizer and result.tokens_per_s > 0
    steps = [event for event in ctx.events if event["type"] == "finetune.step"]
    assert [event["step"] for event in steps] == list(range(1, 25))
    keys = {"step", "epoch", "loss", "ce", "kl", "lr", "grad_norm", "tokens_per_s"}
    assert all(keys <= event.keys() for event in steps)
    assert steps[-1]["lr"] < 0.1 * max(event["lr"] for event in steps) and steps[9]["epoch"] == 1.0
    for event in steps:
        assert event["loss"] == pytest.approx(0.9 * event["kl"] + 0.1 * event["ce"])
    for module in student.modules():
        if isinstance(module, BitLinear):
            assert 0.2 <= module.zero_share() <= 0.45
    json.dumps(result.to_json())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_step_trains_on_the_codes_of_the_step_before(teacher, windows, tmp_path, optimizer):
    """Fused optimizers change values without torch counting it; without a pull nothing else would tell."""
    config = config_for(optimizer=optimizer)
    student, _ = run(
        teacher, windows, tmp_path, config=config, lr=0.3, scale_lr=0.05, pull=0.0, patience=99
    )
    layers = [module for module in student.modules() if isinstance(module, BitLinear)]
    kept = codes_of(student)
    assert kept != codes_of(make_student(teacher))
    for layer in layers:
        layer.changed()
    assert codes_of(student) == kept


@pytest.mark.parametrize("optimizer,stop_at", [("mugrokfast", 7), ("adamw", 13)])
def test_a_killed_run_goes_on_bit_for_bit(teacher, windows, tmp_path, monkeypatch, optimizer, stop_at):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    config = config_for(optimizer=optimizer)
    whole, first = run(teacher, windows, tmp_path / "whole", config=config, planes=2)
    with pytest.raises(StopRequested):
        run(teacher, windows, tmp_path / "cut", config=config, planes=2, ctx=Recorder(stop_at))
    ctx = Recorder()
    resumed, second = run(teacher, windows, tmp_path / "cut", config=config, planes=2, ctx=ctx)
    assert ctx.events[0]["step"] == stop_at + 1  # nothing is done twice
    assert codes_of(resumed) == codes_of(whole)
    assert (second.loss_best, second.best_step) == (first.loss_best, first.best_step)
    again, third = run(teacher, windows, tmp_path / "cut", config=config, planes=2, ctx=Recorder())
    assert codes_of(again) == codes_of(whole) and third.steps == first.steps  # a finished run stays finished


def test_a_kill_between_checkpoints_repeats_the_lost_steps(teacher, windows, tmp_path):
    whole, _ = run(teacher, windows, tmp_path / "whole")
    with pytest.raises(StopRequested):
        run(teacher, windows, tmp_path / "cut", ctx=Recorder(9))  # the last checkpoint is that of step 6
    ctx = Recorder()
    resumed, _ = run(teacher, windows, tmp_path / "cut", ctx=ctx)
    assert ctx.events[0]["step"] == 7
    assert codes_of(resumed) == codes_of(whole)


def test_ends_at_the_best_validation_loss_and_stops_early(teacher, windows, tmp_path):
    """A rate far too high makes every later evaluation worse: the start is what is left."""
    student, result = run(teacher, windows, tmp_path, planes=3, lr=50.0, scale_lr=0.5, patience=2)
    assert result.best_step == 0 and result.loss_best == result.loss_first
    assert "no better validation loss" in result.stopped and result.steps == 12
    assert codes_of(student) == codes_of(make_student(teacher, planes=3))


def test_nan_goes_back_to_the_best_and_halves_the_rate_once(teacher, windows, tmp_path, monkeypatch):
    real, calls = trainer.distillation_loss, []

    def sometimes_nan(student, teacher, target, share, scale):
        loss, kl, ce = real(student, teacher, target, share, scale)
        if scale != 1.0:  # a training step
            calls.append(0)
            if len(calls) in bad:
                return loss, float("nan"), ce
        return loss, kl, ce

    monkeypatch.setattr(trainer, "distillation_loss", sometimes_nan)
    bad, ctx = {8}, Recorder()
    _, result = run(teacher, windows, tmp_path / "once", ctx=ctx, warm_up=0.01, final_rate=1.0)
    rates = {event["step"]: event["lr"] for event in ctx.events if event["type"] == "finetune.step"}
    assert rates[9] == pytest.approx(0.5 * rates[7]) and 8 not in rates
    logs = [event["message"] for event in ctx.events if event["type"] == "log"]
    assert len(logs) == 1 and "back to step 6" in logs[0]
    assert result.stopped == "budget spent" and result.loss_best < result.loss_first

    calls.clear()
    bad = {24}  # the last step of the budget: there is none after it
    _, result = run(teacher, windows, tmp_path / "last")
    assert result.stopped == "budget spent" and (result.steps, len(calls)) == (24, 24)

    calls.clear()
    bad = {8, 11}
    _, result = run(teacher, windows, tmp_path / "twice")
    assert "again" in result.stopped and "--learning-rate" in result.stopped
    assert result.best_step == 6 and result.loss_best < result.loss_first


def test_a_budget_in_minutes_ends_in_time(teacher, windows, tmp_path):
    config = CompressionConfig(minutes=0.01)
    ctx = Recorder()
    _, result = run(teacher, windows, tmp_path, config=config, ctx=ctx)
    assert result.stopped == "budget spent" and 0.6 <= result.seconds < 3.0
    assert any("validation_loss" in event for event in ctx.events)


def test_another_recipe_does_not_take_up_old_checkpoints(teacher, windows, tmp_path):
    run(teacher, windows, tmp_path, config=config_for(tokens=256))
    with pytest.raises(InputError, match="other settings"):
        run(teacher, windows, tmp_path, config=config_for(tokens=512))


@pytest.mark.parametrize("optimizer", ["mugrokfast", "muon", "adamw"])
def test_weight_decay_is_the_latents_alone(teacher, windows, tmp_path, optimizer):
    assert recipe(config_for()).weight_decay == 0.0
    made = recipe(config_for(optimizer=optimizer, weight_decay=0.25))
    training = trainer._Run(make_student(teacher), teacher, windows[0], windows[1], made, tmp_path, None)
    latents = {id(p) for p in training.matrices.values()}
    decays = {
        id(p): group["weight_decay"]
        for inner in training.optimizer.inner
        for group in inner.param_groups
        for p in group["params"]
    }
    assert latents and decays.keys() > latents
    assert all(decay == (0.25 if p in latents else 0.0) for p, decay in decays.items())


def test_weight_decay_draws_latents_to_zero_and_is_part_of_the_recipe(teacher, windows, tmp_path):
    rates = {"lr": 0.3, "pull": 0.0, "patience": 99}
    sizes = []
    for decay in (0.0, 20.0):
        run(teacher, windows, tmp_path / str(decay), config=config_for(weight_decay=decay), **rates)
        latents, _ = load_checkpoint(tmp_path / str(decay) / "latest.safetensors")
        own = [p for name, p in latents.items() if name.endswith(".latent") and "/" not in name]
        sizes.append(sum(float(p.square().sum()) for p in own))
    assert sizes[1] < 0.9 * sizes[0]
    with pytest.raises(InputError, match="other settings"):
        run(teacher, windows, tmp_path / "0.0", config=config_for(weight_decay=0.1), **rates)


def test_a_model_without_bitlinear_is_refused(teacher, windows, tmp_path):
    with pytest.raises(InputError, match="no BitLinear"):
        fine_tune(copy.deepcopy(teacher), teacher, *windows, config_for(), tmp_path, number_formats=FLOAT32)


def test_recipes_follow_the_configuration():
    made = recipe_for(CompressionConfig(epochs=2), 256, FLOAT32, epoch_tokens=100_000)
    assert made.budget_tokens == 200_000 and made.steps == -(-200_000 // made.batch_tokens)
    assert recipe_for(CompressionConfig(minutes=2), 256, FLOAT32).budget_seconds == 120
    assert recipe_for(CompressionConfig(optimizer="muon"), 256, FLOAT32).grokfast_lambda == 0.0
    factors = [made.rate_factor((step + 1) / 100) for step in range(100)]
    assert max(factors) == pytest.approx(1.0, abs=0.01) and factors[-1] == pytest.approx(made.final_rate)
    assert factors[0] < factors[2] < 1.0


def test_noise_carries_latents_as_far_as_it_should_in_short_and_long_trainings():
    """Simulated: unit noise as AdamW's steps, the recipe's rates, warm-up, cosine and pull."""
    generator = torch.Generator().manual_seed(0)
    walked = {}
    budgets = (65_536, 1.0), (500_000, 1.0), (1_000_000, 1.0), (8_000_000, 1.0), (8_000_000, 2.0)
    for tokens, planes in budgets:
        made = recipe_for(CompressionConfig(tokens=tokens), 256, FLOAT32, planes=planes)
        latents, most = torch.zeros(2_000), 0.0
        for step in range(made.steps):
            factor = made.rate_factor((step + 1) / made.steps)
            latents += made.lr * factor * torch.randn(2_000, generator=generator)
            latents.lerp_(torch.zeros(()), made.pull * factor)
            most = max(most, float(latents.std()))
        walked[tokens, planes] = most
    for (tokens, planes), most in walked.items():  # the border is at 0.5
        low, high = (0.15, 0.27) if tokens >= 1_000_000 and planes == 1.0 else (0.1, 0.2)
        assert low < most < high, walked
    short, long = (recipe_for(CompressionConfig(tokens=n), 256, FLOAT32) for n in (65_536, 8_000_000))
    assert short.pull > long.pull and short.lr > long.lr and short.batch_tokens < long.batch_tokens


def test_what_was_given_goes_before_the_rules():
    config = CompressionConfig(tokens=4_096, learning_rate=0.5, optimizer="muon")
    made = recipe_for(config, 256, FLOAT32, planes=1.4, batch_windows=2)
    assert (made.lr, made.optimizer, made.batch_windows) == (0.5, "muon", 2)
    one = recipe_for(config, 256, FLOAT32)
    assert made.scale_lr < one.scale_lr and made.rest_lr < one.rest_lr
    assert CompressionConfig().optimizer == "adamw"
    assert CompressionConfig(grokfast_lambda=2.0).optimizer == "mugrokfast"  # the filter is Muon's
    assert CompressionConfig(grokfast_lambda=0.1, optimizer="muon").optimizer == "muon"


def test_the_order_of_windows_is_one_permutation_an_epoch():
    text = ShuffledWindows(np.arange(20).reshape(10, 2), seed=1)
    first, second = text.take(0, 10), text.take(10, 10)
    assert sorted(first[:, 0]) == sorted(second[:, 0]) == list(range(0, 20, 2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(text.take(7, 6), np.concatenate([first[7:], second[:3]]))


def test_checkpoints_are_whole_and_refused_when_damaged(tmp_path):
    path = tmp_path / "a" / "latest.safetensors"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"x": torch.arange(3)}, {"step": 4, "loss": 0.1})
    tensors, state = load_checkpoint(path)
    assert tensors["x"].tolist() == [0, 1, 2] and state == {"step": 4, "loss": 0.1}
    assert [p.name for p in path.parent.iterdir()] == ["latest.safetensors"]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"latest\.safetensors cannot be read"):
        load_checkpoint(path)


def test_number_formats_are_measured():
    found = measure_number_formats()
    assert found["gflops"]["float32"] > 0 and found["gflops"]["bfloat16"] > 0
    fast = found["gflops"]["bfloat16"] >= 1.25 * found["gflops"]["float32"]
    assert found["muon"] == found["autocast"] == ("bfloat16" if fast else "float32")
