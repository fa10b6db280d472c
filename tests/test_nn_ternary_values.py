"""Codes and scales that the packed format does not allow are refused where their values are first seen."""

from __future__ import annotations

import pytest
import torch
from ternary_layers import make, tokens
from torch._subclasses.fake_tensor import FakeTensorMode
from tritpress.errors import InputError
from tritpress.nn.ternary_linear import TernaryLinear
from tritpress.ops import linear as ops
from tritpress.ops import values

NAN, INF = float("nan"), float("inf")
WRONG = [
    ("codes", (0, 2, 3), 0b11_01_01_01, "codes hold the value 3"),
    ("codes", (1, 5, 17), 0b00_00_01_01, "padded with something other than 1"),  # 70 inputs: two codes of pad
    ("scales", (1, 5, 2), NAN, "scales must be finite"),
    ("scales", (0, 0, 0), INF, "scales must be finite"),
    ("scales", (0, 3, 1), -0.5, "not negative"),
]


def parts(name=None, place=None, value=None):
    layer, _, _ = make()
    found = {"codes": layer.codes.clone(), "scales": layer.scales.clone()}
    if name:
        found[name][place] = value
    return found


def build(codes, scales, bits=8):
    return TernaryLinear(codes, scales, 70, 32, activation_bits=bits)


@pytest.mark.parametrize(("name", "place", "value", "words"), WRONG)
@pytest.mark.parametrize("bits", [8, None])
def test_a_layer_is_not_made_of_them(name, place, value, words, bits):
    with pytest.raises(InputError, match=words):
        build(**parts(name, place, value), bits=bits)


@pytest.mark.parametrize(("name", "place", "value", "words"), WRONG)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_with_them_is_not_loaded(name, place, value, words, assign):
    model = torch.nn.Sequential(torch.nn.ReLU(), build(**parts(), bits=None))
    state = {f"1.{key}": tensor for key, tensor in parts(name, place, value).items()}
    with pytest.raises(InputError, match=f"the state for 1: .*{words}"):
        model.load_state_dict(state, assign=assign)
    with pytest.raises(InputError):  # nor is it used after all
        model(tokens(70))


@pytest.mark.parametrize(("name", "place", "value", "words"), WRONG)
@pytest.mark.parametrize("bits", [8, None])
def test_they_are_not_used(name, place, value, words, bits):
    wrong = parts(name, place, value)
    words = "scales are finite and not negative|code 3|padding codes other than 1" if bits else words
    with pytest.raises(InputError, match=words):
        ops.ternary_linear(tokens(70), wrong["codes"], wrong["scales"], 70, 32, bits)
    layer = build(**parts(), bits=bits)
    layer(tokens(70))
    getattr(layer, name)[place] = value  # a write in place
    with pytest.raises(InputError, match=words):
        layer(tokens(70))
    layer = build(**parts(), bits=bits)
    setattr(layer, name, wrong[name])  # another tensor
    with pytest.raises(InputError, match=words):
        layer(tokens(70))
    with pytest.raises(InputError):
        layer.dequantize()


def test_other_activations_are_refused():
    right = parts()
    with pytest.raises(InputError, match="activation_bits must be 8 or None, not 4"):
        ops.ternary_linear(tokens(70), right["codes"], right["scales"], 70, 32, 4)
    x = tokens(70)
    x.view(-1)[3] = float("nan")
    with pytest.raises(InputError, match="position 3 is NaN"):
        ops.ternary_linear(x, right["codes"], right["scales"], 70, 32, 8)


def test_a_cast_that_overflows_is_seen():
    layer = build(**parts())
    with pytest.raises(InputError, match=r"lie between .* and inf"):
        layer.load_state_dict({"codes": layer.codes, "scales": torch.full((2, 6, 3), 1e6)})
    layer = build(**parts())
    with pytest.raises(InputError, match=r"scales must be float16 \[2, 6, 3\], not torch.float32"):
        layer.load_state_dict({"codes": layer.codes, "scales": torch.ones(2, 6, 3)}, assign=True)


def test_torchs_own_refusals_stay():
    layer = build(**parts())
    with pytest.raises(RuntimeError, match="size mismatch for scales"):
        layer.load_state_dict({"codes": layer.codes, "scales": torch.ones(2, 6, 4).half()})
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"codes": layer.codes})


def test_values_are_read_once_and_again_after_a_write():
    layer = build(**parts(), bits=None)
    first = values._found_right[layer.codes]
    layer(tokens(70))
    layer(tokens(70).requires_grad_()).sum().backward()
    assert values._found_right[layer.codes] is first
    layer.scales.mul_(2)
    layer(tokens(70))
    second = values._found_right[layer.codes]
    assert second is not first
    layer(tokens(70))
    assert values._found_right[layer.codes] is second


def test_compiled_calls_read_them_once():
    layer = build(**parts(), bits=None)
    first = values._found_right[layer.codes]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(tokens(70)), layer(tokens(70)))
    assert values._found_right[layer.codes] is first


def test_tensors_without_values_are_not_read():
    good = parts()
    meta = build(**{key: tensor.to("meta") for key, tensor in good.items()})
    assert meta(tokens(70).to("meta")).shape == (3, 5, 6)
    meta.to_empty(device="cpu")
    for key, tensor in good.items():  # in pieces, over memory that holds whatever it held
        meta.load_state_dict({key: tensor}, strict=False)
    assert torch.equal(meta(tokens(70)), build(**good)(tokens(70)))
    with FakeTensorMode() as mode:
        fake = build(**{key: mode.from_tensor(tensor) for key, tensor in good.items()})
        assert fake(mode.from_tensor(tokens(70))).shape == (3, 5, 6)
        assert fake.dequantize().shape == (6, 70)


@pytest.mark.parametrize("bits", [8, None])
def test_a_layer_made_while_torch_traces_is_read_when_it_runs(bits):
    def made_inside(codes, scales, x):
        return build(codes, scales, bits)(x)

    compiled = torch.compile(made_inside, fullgraph=True, backend="aot_eager")
    good = parts()
    torch.testing.assert_close(
        compiled(good["codes"], good["scales"], tokens(70)), build(**good, bits=bits)(tokens(70))
    )
    wrong = parts("codes", (0, 0, 0), 3)
    with pytest.raises(InputError, match="code"):
        compiled(wrong["codes"], wrong["scales"], tokens(70))


def test_large_codes_are_read_to_the_end():
    codes = torch.full((1, 3, 1 << 19), 0x55, dtype=torch.uint8)
    values.check_codes(codes, 1 << 21)
    codes[0, 2, -1] = 0x57
    with pytest.raises(InputError, match="value 3"):
        values.check_codes(codes, 1 << 21)
    values.check_scales(torch.zeros(1, 0, 1).half())
    values.check_scales(torch.tensor([-0.0]).half())
