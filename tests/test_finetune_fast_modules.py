"""Norms and rotary tables of a training step: the numbers of the model's own code, put back afterwards."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from tritpress.allocator import keep_freed_memory
from tritpress.finetune.fast_modules import faster_modules


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0))
    return made


def gradients(model, ids):
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.log_softmax(dim=-1)[..., 3].sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_logits_and_gradients_are_those_of_the_models_own_norms(model):
    ids = torch.arange(24).reshape(2, 12)
    logits, grads = gradients(model, ids)
    with faster_modules(model):
        assert "forward" in vars(model.model.norm)
        fast_logits, fast_grads = gradients(model, ids)
    torch.testing.assert_close(fast_logits, logits, rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(fast_grads[name], grad, rtol=1e-3, atol=1e-5, msg=name)


def test_under_autocast_they_stay_as_near_to_float32_as_before(model):
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        exact = model(input_ids=ids, use_cache=False).logits
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(input_ids=ids, use_cache=False).logits.float()
            with faster_modules(model):
                fast = model(input_ids=ids, use_cache=False).logits.float()
    assert float((fast - exact).norm()) < 1.5 * float((plain - exact).norm()) + 1e-6


def test_everything_is_put_back_even_after_an_error(model):
    hooks = len(model.model.rotary_emb._forward_hooks)
    with pytest.raises(RuntimeError), faster_modules(model):
        assert len(model.model.rotary_emb._forward_hooks) == hooks + 1
        raise RuntimeError
    assert all("forward" not in vars(module) for module in model.modules())
    assert len(model.model.rotary_emb._forward_hooks) == hooks


def test_a_norm_that_computes_something_else_stays_as_it_is():
    class OffsetRMSNorm(nn.Module):
        """Gemma's: one plus the weight."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.full((8,), 0.3)), 1e-6

        def forward(self, x):
            return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1.0 + self.weight)

    norm = OffsetRMSNorm()
    with faster_modules(nn.Sequential(norm)):
        assert "forward" not in vars(norm)


def test_a_norm_without_a_weight_of_its_own_takes_inputs_of_any_size():
    from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaWeightlessRMSNorm

    norm, x = FalconMambaWeightlessRMSNorm(16, eps=1e-6), torch.randn(2, 4)
    expected = norm(x)
    with faster_modules(norm):
        torch.testing.assert_close(norm(x), expected)


def test_keeping_freed_memory_is_harmless():
    keep_freed_memory()
    assert torch.zeros(1 << 20).sum() == 0
