"""TernaryLinear and its operator, against arithmetic on unpacked codes."""

from __future__ import annotations

import functools
import gc
import re
import shutil

import numpy as np
import pytest
import torch
from ternary_layers import make, tokens
from tritpress.errors import InputError, UsageError
from tritpress.nn.ternary_linear import TernaryLinear
from tritpress.ops import linear as ops
from tritpress.ops import reference


@pytest.mark.parametrize("cols", [1, 3, 4, 64, 70, 257])
@pytest.mark.parametrize("group_size", [0, 32, 64])
def test_float_activations_multiply_the_dequantized_weight(cols, group_size):
    layer, weight, trits = make(cols=cols, group_size=group_size, activation_bits=None, bias=True)
    assert torch.equal(reference.unpack(layer.codes, cols), trits)
    assert torch.equal(layer.dequantize(), weight.float().half().float())
    x = tokens(cols)
    wanted = x.double() @ weight.half().double().T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_int8_activations_are_the_kernels(planes):
    layer, weight, _ = make(out=33, cols=130, group_size=64, planes=planes)
    for shape in [(1,), (7,), (2, 3)]:
        x = tokens(130, shape)
        q = torch.clamp(torch.round(x / (x.abs().amax(-1, keepdim=True) / 127)), -127, 127).double()
        wanted = q * (x.abs().amax(-1, keepdim=True) / 127).double() @ weight.T
        torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(torch.zeros(2, 130)), torch.zeros(2, 33))


def test_the_gradient_reaches_the_input_alone():
    layer, weight, _ = make(activation_bits=None)
    x = tokens(70).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(
        x.grad.double(), weight.half().double().sum(0).expand_as(x), rtol=1e-4, atol=1e-4
    )
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("bits", [8, None])
def test_second_and_third_derivatives_are_those_of_the_dequantized_weight(bits):
    layer, _, _ = make(activation_bits=bits)
    weight = layer.dequantize()

    def derivatives(product):
        x = tokens(70).requires_grad_()
        factor = torch.linspace(0.5, 1.5, 6).requires_grad_()
        (first,) = torch.autograd.grad((product(x) * factor**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), factor, create_graph=True)
        (third,) = torch.autograd.grad(second.sin().sum(), factor)
        return first, second, third

    wanted = derivatives(functools.partial(torch.nn.functional.linear, weight=weight))
    for found, right in zip(derivatives(layer), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-3)


def _penalty(product, x):
    (first,) = torch.autograd.grad(product(x).tanh().sum(), x, create_graph=True)
    return first.pow(2).sum()


def test_a_penalty_on_the_gradient_reaches_the_input():
    layer, _, _ = make(activation_bits=None)
    x = tokens(70).requires_grad_()
    found = torch.autograd.grad(_penalty(layer, x), x)[0]
    dense = functools.partial(torch.nn.functional.linear, weight=layer.dequantize())
    right = torch.autograd.grad(_penalty(dense, x), x)[0]
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [0, 8])
def test_the_operator_passes_torchs_own_checks(bits):
    layer, _, _ = make()
    x = tokens(70).requires_grad_()
    arguments = (x, layer.codes, layer.scales, 70, 32, bits)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.tritpress.ternary_linear.default, arguments, test_utils=tests)
    arguments = (torch.ones(3, 6, requires_grad=True), layer.codes, layer.scales, 70, 32)
    torch.library.opcheck(torch.ops.tritpress.ternary_linear_backward.default, arguments, test_utils=tests)


def test_compile_and_export_see_the_operator():
    layer, _, _ = make(bias=True)
    x = tokens(70)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    exported = torch.export.export(layer, (x,))
    assert any("ternary_linear" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_around_the_operator_forward_and_backward():
    layer, _, _ = make(bias=True)
    x = tokens(70).requires_grad_()
    expected = torch.nn.functional.silu(layer(x)).sum()
    (gradient,) = torch.autograd.grad(expected, x)
    compiled = torch.compile(lambda x: torch.nn.functional.silu(layer(x)).sum(), fullgraph=True)
    found = compiled(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], gradient)


def test_both_formats_compute_the_same_and_keep_the_same_state():
    layer, _, _ = make(out=48, cols=320, group_size=64, bias=True)
    other = TernaryLinear(
        layer.codes.clone(), layer.scales, layer.in_features, layer.group_size, layer.bias, format="1.6bit"
    )
    for x in (tokens(320)[:1], tokens(320)):
        assert torch.equal(other(x), layer(x))
    assert 0 < ops.kernel_bytes(other.codes) < 0.9 * ops.kernel_bytes(layer.codes)
    assert "format=1.6bit" in repr(other) and other.state_dict().keys() == layer.state_dict().keys()
    with pytest.raises(UsageError, match="must be 2bit or"):
        TernaryLinear(layer.codes, layer.scales, 320, 64, format="2.5bit")


def test_one_packed_matrix_for_each_codes_tensor_and_none_after_it():
    layer, _, _ = make()
    gc.collect()
    before = len(ops._matrices)
    x = tokens(70)
    layer(x)
    first = ops.packed_matrix(layer.codes, layer.scales, 70, 32)
    layer(x)
    assert ops.packed_matrix(layer.codes, layer.scales, 70, 32) is first
    assert len(ops._matrices) == before + 1
    y = layer(x)
    layer.scales.mul_(2.0)  # a change in place is seen
    torch.testing.assert_close(layer(x), 2 * y, rtol=1e-5, atol=1e-5)
    del layer
    gc.collect()
    assert len(ops._matrices) == before


def test_threads_do_not_change_the_result():
    layer, _, _ = make(out=64, cols=256, group_size=64)
    x = tokens(256)
    y = layer(x)
    try:
        ops.set_threads(1)
        assert torch.equal(layer(x), y)
    finally:
        ops.set_threads(None)


def test_conversions_leave_the_format_alone():
    layer, _, _ = make(bias=True)
    y = layer(tokens(70))
    layer.double().bfloat16().float()
    assert layer.codes.dtype == torch.uint8 and layer.scales.dtype == torch.float16
    torch.testing.assert_close(layer(tokens(70)), y, rtol=1e-2, atol=2e-2)
    other, _, _ = make(bias=True, seed=9)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(tokens(70)), layer(tokens(70)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"codes": lambda c: c.to(torch.int8)}, "codes must be uint8"),
        ({"codes": lambda c: c[:, :, 1:]}, "do not hold"),
        ({"scales": lambda s: s.float()}, "scales must be float16"),
        ({"scales": lambda s: s[:, :, 1:]}, "scales must be float16"),
        ({"bias": lambda b: torch.zeros(5)}, "bias must be"),
        ({"activation_bits": lambda a: 4}, "activation_bits"),
    ],
)
def test_wrong_parts_are_refused(change, word):
    layer, _, _ = make()
    parts = {"codes": layer.codes, "scales": layer.scales, "bias": None, "activation_bits": 8}
    for key, alter in change.items():
        parts[key] = alter(parts[key])
    with pytest.raises(InputError, match=word):
        TernaryLinear(
            parts["codes"], parts["scales"], 70, 32, parts["bias"], activation_bits=parts["activation_bits"]
        )


@pytest.mark.parametrize("bits", [8, None])
def test_an_input_of_another_width_is_refused_by_name(bits):
    layer, _, _ = make(activation_bits=bits)
    meta = make(activation_bits=bits)[0].to("meta")
    for shape, given in [((2, 69), "..., 69"), ((2, 35), "..., 35"), ((140,), "..., 140"), ((), "")]:
        words = re.escape(f"x must be [..., 70] for this weight, not [{given}]")
        for x in (torch.ones(shape), torch.ones(shape, requires_grad=True)):
            with pytest.raises(InputError, match=words):
                layer(x)
        with pytest.raises(InputError, match=words):
            meta(torch.ones(shape, device="meta"))
    words = re.escape("x must be [..., 70] for this weight, not [..., 69]")
    with pytest.raises(InputError, match=words):
        torch.export.export(layer, (torch.ones(2, 69),))
    for dynamic in (False, True):
        compiled = torch.compile(layer, backend="aot_eager", dynamic=dynamic)
        with pytest.raises(RuntimeError, match=words):
            compiled(torch.ones(2, 69))


def test_an_export_may_leave_the_width_to_the_run():
    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make()[0]

        def forward(self, x, width):
            cols = width.item()
            torch._check(cols >= 0)
            torch._check(cols <= 100)
            return self.layer(x[..., :cols])

    model, x = Cut(), tokens(100)
    exported = torch.export.export(model, (x, torch.tensor(70))).module()
    torch.testing.assert_close(exported(x, torch.tensor(70)), model(x, torch.tensor(70)))
    with pytest.raises((InputError, RuntimeError)):
        exported(x, torch.tensor(69))


def test_reference_packing_is_the_cores():
    from tritpress import _core

    trits = torch.randint(-1, 2, (2, 5, 13), dtype=torch.int8)
    codes = reference.pack(trits)
    assert np.array_equal(codes.numpy(), _core.pack(trits.numpy()))
    scales = torch.rand(2, 5, 1).half()
    whole = torch.from_numpy(_core.dequantize(codes.numpy(), scales.numpy(), 13, 0))
    assert torch.equal(reference.dequantize(codes, scales, 13, 0), whole.half().float())


@pytest.mark.cuda
def test_cuda_gives_what_the_cpu_gives():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for bits in (8, None):
        layer, _, _ = make(out=64, cols=256, group_size=64, bias=True, activation_bits=bits)
        x = tokens(256)
        y = layer(x)
        torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), y, rtol=1e-3, atol=1e-3)
