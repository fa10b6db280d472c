"""Perplexity, KL, latency, gradient norms and bootstrap against what transformers and numpy give."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from tritpress.errors import InputError
from tritpress.evaluate.bootstrap import mean_interval, perplexity_interval, ratio_interval
from tritpress.evaluate.gates import Measured, five_gates
from tritpress.evaluate.gradient_flow import gradient_flow, gradient_norms
from tritpress.evaluate.latency import NO_CACHE, decode_latency, kept
from tritpress.evaluate.perplexity import Evaluation, evaluate_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


@pytest.fixture(scope="module")
def other(model):
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return other


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 80, (7, 12))


def test_perplexity_is_the_loss_of_stock_transformers(model, windows):
    found = evaluate_model(model, windows, batch_size=3)
    ids = torch.from_numpy(windows)
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)  # mean over the same 11 targets a window
        best = model(input_ids=ids).logits[:, :-1].argmax(-1)
        each = [float(model(input_ids=row[None], labels=row[None]).loss) * 11 for row in ids]
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert found.tokens == 7 * 11 and found.kl is None and found.agreement is None
    assert found.top1 == pytest.approx(float((best == ids[:, 1:]).float().mean()))
    np.testing.assert_allclose(found.nll_per_window, each, rtol=1e-5)
    assert found.hits_per_window.sum() == round(found.top1 * found.tokens)


def test_figures_do_not_depend_on_the_batches(model, windows):
    one, all_ = evaluate_model(model, windows, batch_size=1), evaluate_model(model, windows)
    np.testing.assert_allclose(one.nll_per_window, all_.nll_per_window, rtol=1e-5)


def test_divergence_and_agreement_with_the_original(model, other, windows):
    same = evaluate_model(model, windows, reference=model)
    assert same.kl == pytest.approx(0.0, abs=1e-6) and same.agreement == 1.0
    found = evaluate_model(other, windows, reference=model, batch_size=2)
    with torch.no_grad():
        p, q = (m(input_ids=torch.from_numpy(windows)).logits[:, :-1].log_softmax(-1) for m in (model, other))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert kl > 1e-3 and found.kl == pytest.approx(kl, rel=1e-4)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


def test_progress_checks_and_modes(model, windows):
    class Context:
        checks = 0

        def check(self) -> None:
            self.checks += 1

    ctx, seen = Context(), []
    model.train()
    evaluate_model(model, windows, batch_size=3, ctx=ctx, progress=lambda *counts: seen.append(counts))
    assert model.training and ctx.checks == 3 and seen == [(3, 7), (6, 7), (7, 7)]
    model.eval()


def test_an_evaluation_survives_json(model, windows):
    found = evaluate_model(model, windows, reference=model)
    again = Evaluation.from_json(found.to_json())
    assert again.figures() == found.figures()
    np.testing.assert_array_equal(again.nll_per_window, found.nll_per_window)


def test_windows_without_a_target_are_refused(model):
    with pytest.raises(InputError, match="two tokens"):
        evaluate_model(model, np.zeros((3, 1), dtype=np.int64))


def test_latency_is_measured_and_stays_inside_the_positions(model):
    found = decode_latency(model, np.arange(100) % 80, tokens=20, warm_up=2)
    assert found.latency_ms > 0 and found.tokens == 20
    assert found.tokens_per_s == pytest.approx(1000 / found.latency_ms)


def test_latency_of_a_model_that_keeps_states_instead_of_keys_and_values():
    config = transformers.MambaConfig(vocab_size=80, hidden_size=16, state_size=4, num_hidden_layers=2)
    model = transformers.MambaForCausalLM(config).eval()
    found = decode_latency(model, np.arange(10), tokens=3, warm_up=1)
    assert found is not None and found.latency_ms > 0 and found.tokens == 3
    out = model(input_ids=torch.arange(10)[None], use_cache=True)
    more = model(input_ids=torch.tensor([[10]]), use_cache=True, **kept(out))
    whole = model(input_ids=torch.arange(11)[None]).logits
    assert torch.allclose(more.logits[:, -1], whole[:, -1], atol=1e-4)


def test_latency_of_a_model_that_keeps_nothing_is_not_made_up():
    config = transformers.OpenAIGPTConfig(vocab_size=80, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    model = transformers.OpenAIGPTLMHeadModel(config).eval()
    assert decode_latency(model, np.arange(10), tokens=3, warm_up=1) is None
    assert "no cache that tritpress knows" in NO_CACHE  # RWKV and XLNet keep something


def test_gradient_norms_are_those_of_a_plain_backward_pass(model, windows):
    names = [name for name, _ in model.named_parameters() if name.endswith("_proj.weight")]
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
    model.lm_head.weight.requires_grad_(False)
    found = gradient_norms(model, windows, parameters, batch_size=2)
    assert not model.lm_head.weight.requires_grad and all(p.grad is None for p in parameters.values())
    model.lm_head.weight.requires_grad_(True)
    ids = torch.from_numpy(windows)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in parameters.items():
        assert found[name] == pytest.approx(float(parameter.grad.norm()), rel=1e-4)
    model.zero_grad()


def test_a_norm_that_is_not_finite_is_none_and_an_unreached_tensor_0(model, windows):
    broken = copy.deepcopy(model)
    unused = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    found = gradient_norms(broken, windows, {"x": broken.model.layers[0].mlp.up_proj.weight, "u": unused})
    assert found == {"x": None, "u": 0.0}


def test_gradient_flow_counts_the_sound_tensors():
    original = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 2.0, "f": 0.0}
    norms = {"a": 0.01, "b": 100.0, "c": 0.0099, "d": None, "e": 0.0, "f": 1.0}
    found = gradient_flow(norms, original)
    assert found.share == pytest.approx(2 / 6) and found.tensors == 6
    assert [name for name, _ in found.failing] == ["c", "d", "e", "f"]
    faults = dict(found.failing)
    assert "0.0099 times" in faults["c"] and "not finite" in faults["d"] and "no gradient" in faults["e"]
    assert gradient_flow({}, {}).share == 0.0


def test_what_has_no_gradient_to_measure_is_named_and_not_passed():
    found = gradient_flow({"a": 1.0}, {"a": 1.0}, ["a", "b", "c"])
    assert found.share == pytest.approx(1 / 3) and found.unmeasured == ["b", "c"] and not found.failing
    (gate,) = [g for g in five_gates(Measured(gradients=found)) if g["name"] == "gradient_flow"]
    assert gate["passed"] is None and gate["actual"] is None
    words = "2 of 3 pressed tensors have no gradient of their own in the loaded model: b, c"
    assert gate["advice"] == f"not measured: {words}"
    worse = gradient_flow({"a": 0.0}, {"a": 1.0}, ["a", "b", "c"])
    (gate,) = [g for g in five_gates(Measured(gradients=worse)) if g["name"] == "gradient_flow"]
    assert gate["passed"] is False and gate["actual"] == 0.0 and words in gate["advice"]


def test_the_interval_is_paired_and_seeded():
    rng = np.random.default_rng(0)
    original = rng.normal(500, 100, 60)  # windows differ wildly, the difference hardly at all
    compressed = original + rng.normal(255 * 0.05, 2.0, 60)
    low, high = perplexity_interval(original, compressed, 255, seed=1)
    change = math.exp((compressed - original).mean() / 255) - 1
    assert low < change < high and high - low < 0.01
    assert (low, high) == perplexity_interval(original, compressed, 255, seed=1)
    assert (low, high) != perplexity_interval(original, compressed, 255, seed=2)
    # the interval of a mean of 60 values: about 1.96 standard errors either way
    error = (compressed - original).std() / 255 / math.sqrt(60)
    assert (high - low) / 2 == pytest.approx(1.96 * error * math.exp(0.05), rel=0.2)


def test_a_model_has_an_interval_of_its_own(model, windows):
    found = evaluate_model(model, windows).figures()
    low, high = found["perplexity_interval"]
    assert low < found["perplexity"] < high
    low, high = found["top1_interval"]
    assert 0 <= low <= found["top1"] <= high
    rng = np.random.default_rng(0)
    sums = rng.normal(500, 100, 60)
    low, high = mean_interval(sums, 100)
    # about 1.96 standard errors either way
    assert (high - low) / 2 == pytest.approx(1.96 * sums.std() / 100 / math.sqrt(60), rel=0.2)
    assert low < sums.mean() / 100 < high and (low, high) == mean_interval(sums, 100)


def test_no_interval_from_one_window_or_broken_figures():
    assert mean_interval(np.array([1.0]), 10) is None
    assert mean_interval(np.array([1.0, np.inf]), 10) is None
    assert perplexity_interval(np.array([1.0]), np.array([1.0]), 10) is None
    assert perplexity_interval(np.array([1.0, 2.0]), np.array([1.0, np.nan]), 10) is None
    assert ratio_interval(np.array([1, 2]), np.array([0, 0])) is None
    low, high = ratio_interval(np.array([9, 10, 8, 9]), np.array([10, 10, 10, 10]))
    assert 0.8 <= low <= 0.9 <= high <= 1.0
