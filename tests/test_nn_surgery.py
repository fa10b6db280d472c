"""Finding and replacing linear layers in any module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.nn import surgery
from tritpress.nn.ternary_linear import TernaryLinear
from tritpress.ternarize.modules import ternarize_


class Little(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 24)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24)) for _ in range(2))
        self.extra = nn.ModuleList([nn.Linear(24, 4)])
        self.head = nn.Linear(24, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_ternarize_in_place_keeps_tied_heads_and_the_rest_works():
    torch.manual_seed(0)
    model = Little()
    plain = model(torch.arange(10))
    weight = model.layers[0][0].weight.detach().clone()
    assert ternarize_(model, CompressionConfig(planes=3)) is model
    assert isinstance(model.layers[1][1], TernaryLinear) and isinstance(model.extra[0], TernaryLinear)
    assert isinstance(model.head, nn.Linear)
    assert (model.layers[0][0].dequantize() - weight).norm() < 0.2 * weight.norm()
    assert (model(torch.arange(10)) - plain).norm() < 0.3 * plain.norm()


def test_the_filter_decides_and_more_planes_come_closer():
    errors = []
    for planes in (1, 2, 3):
        torch.manual_seed(0)
        model = Little()
        weight = model.layers[0][0].weight.detach().clone()
        ternarize_(
            model, CompressionConfig(planes=planes), filter=lambda path, layer: "layers" in path
        )
        assert isinstance(model.extra[0], nn.Linear)
        errors.append(float((model.layers[0][0].dequantize() - weight).norm() / weight.norm()))
    assert errors[0] > errors[1] > errors[2]


def test_a_bare_layer_comes_back_as_a_ternary_one():
    new = ternarize_(nn.Linear(16, 8), activation_bits=None)
    assert isinstance(new, TernaryLinear) and new.planes == 1 and new.activation_bits is None


def test_conv1d_is_a_linear_layer_turned_round():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer = Conv1D(12, 20)  # 20 inputs, 12 outputs
    assert surgery.is_linear(layer) and surgery.weight_out_in(layer).shape == (12, 20)
    x = torch.randn(3, 20)
    surgery.set_weight(layer, torch.ones(12, 20))
    assert torch.equal(layer.weight, torch.ones(20, 12))
    layer.weight.data.normal_()
    holder = nn.ModuleDict({"c": layer})
    wanted = layer(x)
    ternarize_(holder, CompressionConfig(planes=3), activation_bits=None)
    assert (holder["c"](x) - wanted).norm() < 0.2 * wanted.norm()


def test_blocks_are_the_outermost_list_with_the_most_linear_weights():
    path, blocks = surgery.find_blocks(Little())
    assert path == "layers" and len(blocks) == 2
    with pytest.raises(InputError, match="no list of blocks"):
        surgery.find_blocks(nn.Linear(3, 3))


def test_what_cannot_be_done_is_said():
    with pytest.raises(InputError, match="no linear layer"):
        ternarize_(nn.LayerNorm(4))
    with pytest.raises(InputError, match=r"no submodule 'layers\.9'"):
        surgery.replace_module(Little(), "layers.9", nn.Identity())
    model = Little()
    model.layers[1][0].weight.data[3, 3] = float("nan")
    with pytest.raises(InputError, match=r"layers\.1\.0\.weight"):
        ternarize_(model)


@pytest.mark.parametrize(("kind", "read"), [("mamba", True), ("falcon_mamba", True), ("doge", False)])
def test_a_layer_is_read_by_its_model_in_state_space_blocks_alone(kind: str, read: bool):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = {path: surgery.is_read_by_its_model(model, path) for path in surgery.linear_modules(model)}
    (path,) = [path for path in layers if path.endswith("dt_proj")]
    assert layers.pop(path) is read and not any(layers.values())


def test_a_mamba_model_runs_after_ternarizing_in_place():
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = ternarize_(AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).eval())
    mixer = model.backbone.layers[0].mixer
    assert isinstance(mixer.in_proj, TernaryLinear) and isinstance(mixer.dt_proj, nn.Linear)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(5)[None]).logits).all()
