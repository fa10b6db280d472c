"""Writes to codes and scales after the first call: those that torch counts are seen, others are told."""

from __future__ import annotations

import copy

import pytest
import torch
from ternary_layers import make, tokens
from tritpress.ops import linear as ops


def made_in_inference_mode(seed=0):
    with torch.inference_mode():
        return make(seed=seed)[0]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_loaded_in_inference_mode_is_used(inside, assign):
    layer = made_in_inference_mode() if inside else make()[0]
    other, _, _ = make(seed=5)
    wanted = other(tokens(70))
    with torch.inference_mode():
        assert not torch.equal(layer(tokens(70)), wanted)
        state = {key: tensor.clone() for key, tensor in other.state_dict().items()}
        layer.load_state_dict(state, assign=assign)
        assert torch.equal(layer(tokens(70)), wanted)
        layer.scales.mul_(2)
        torch.testing.assert_close(layer(tokens(70)), 2 * wanted)
    assert torch.equal(layer(tokens(70)), layer(tokens(70).requires_grad_()))


def test_a_layer_holds_tensors_whose_writes_are_counted():
    with torch.inference_mode():
        layer = made_in_inference_mode()
        copied = copy.deepcopy(layer)
        moved = make()[0]._apply(torch.clone)
        assigned = make()[0]
        assigned.load_state_dict({key: t.clone() for key, t in layer.state_dict().items()}, assign=True)
    for one in (layer, copied, moved, assigned):
        assert not one.codes.is_inference() and not one.scales.is_inference()


def test_what_was_loaded_is_forgotten_even_where_torch_counts_nothing():
    layer, _, _ = make()
    layer(tokens(70))
    assert ops.kernel_bytes(layer.codes) > 0
    layer.load_state_dict(layer.state_dict())
    assert ops.kernel_bytes(layer.codes) == 0


def test_inference_tensors_are_compared_at_every_call():
    with torch.inference_mode():
        codes, scales = (tensor.clone() for tensor in make()[0].state_dict().values())
        y = ops.ternary_linear(tokens(70), codes, scales, 70, 32)
        matrix = ops.packed_matrix(codes, scales, 70, 32)
        assert ops.packed_matrix(codes, scales, 70, 32) is matrix
        assert ops.kernel_bytes(codes) == matrix.nbytes + codes.nbytes + scales.nbytes
        scales.mul_(2)
        torch.testing.assert_close(ops.ternary_linear(tokens(70), codes, scales, 70, 32), 2 * y)
        codes.fill_(0b01010101)
        assert torch.equal(ops.ternary_linear(tokens(70), codes, scales, 70, 32), torch.zeros(3, 5, 6))


def test_scales_that_take_the_place_of_others_in_memory_are_seen():
    layer, _, _ = make()
    y = layer(tokens(70))
    held, room = layer.scales.clone(), torch.empty_like(layer.scales)

    def at_the_same_address(factor):
        room.numpy()[...] = (held * factor).numpy()
        return torch.from_numpy(room.numpy())

    for factor in (2.0, 4.0):
        layer.scales = at_the_same_address(factor)
        torch.testing.assert_close(layer(tokens(70)), factor * y)


@pytest.mark.parametrize("name", ["codes", "scales"])
@pytest.mark.parametrize("way", ["data", "numpy"])
def test_after_a_write_that_torch_does_not_count_forget_says_so(name, way):
    layer, _, _ = make()
    assert layer(tokens(70)).abs().max() > 0
    zero = 0b01010101 if name == "codes" else 0.0
    if way == "data":
        getattr(layer, name).data.fill_(zero)
    else:
        getattr(layer, name).numpy()[...] = zero
    layer.forget()
    assert torch.equal(layer(tokens(70)), torch.zeros(3, 5, 6))
