"""BitLinear: exact codes at the start, straight-through gradients, held zeros, the packed layout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tritpress.errors import InputError
from tritpress.nn.bit_linear import BitLinear, fake_quantize_activations, pack_trits, unpack_trits

SHAPES = [(1, 1, 64), (5, 64, 64), (7, 130, 64), (4, 70, 0), (6, 96, 32)]

pytestmark = pytest.mark.usefixtures("one_thread")


def random_codes(planes: int, rows: int, columns: int, group: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    trits = torch.from_numpy(rng.integers(-1, 2, (planes, rows, columns)).astype(np.int8))
    groups = -(-columns // (group or columns))
    first = rng.uniform(0.05, 0.2, (1, rows, groups))
    shrink = np.array([1.0, 0.4, 0.15])[:planes].reshape(-1, 1, 1)
    scales = (first * shrink * rng.uniform(0.9, 1.1, (planes, rows, groups))).astype(np.float16)
    latent = torch.from_numpy(rng.normal(0, 0.2, (rows, columns)).astype(np.float32))
    return trits, torch.from_numpy(scales), latent


def by_hand(trits, scales, group: int) -> torch.Tensor:
    """sum over planes of scale * T, float32, planes in order, element by element over groups."""
    planes, rows, columns = trits.shape
    group = group or columns
    out = torch.zeros(rows, columns)
    for plane in range(planes):
        for column in range(columns):
            out[:, column] += scales[plane, :, column // group].float() * trits[plane, :, column]
    return out


@pytest.mark.parametrize("rows,columns,group", SHAPES)
@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("with_latent", [False, True])
def test_starts_at_exactly_the_given_codes(planes, rows, columns, group, with_latent):
    trits, scales, latent = random_codes(planes, rows, columns, group)
    packed = pack_trits(trits)
    layer = BitLinear.from_codes(packed, scales, columns, group, latent=latent if with_latent else None)
    codes, written = layer.codes_and_scales()
    assert codes.dtype == np.uint8 and codes.shape == (planes, rows, -(-columns // 4))
    np.testing.assert_array_equal(codes, packed.numpy())
    np.testing.assert_array_equal(written, scales.numpy())
    expected = by_hand(trits, scales, group)
    torch.testing.assert_close(layer.quantized(), expected, rtol=0, atol=0)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ expected.T)


def test_packing_is_the_files_layout():
    trits = torch.tensor([[-1, 0, 1, 1, 0]], dtype=torch.int8)
    packed = pack_trits(trits)
    # T + 1 = 0 1 2 2 | 1, then padding 1: bits 2 (c mod 4) of byte c / 4
    assert packed.tolist() == [[0 | 1 << 2 | 2 << 4 | 2 << 6, 1 | 1 << 2 | 1 << 4 | 1 << 6]]
    assert torch.equal(unpack_trits(packed, 5), trits)
    with pytest.raises(InputError, match="value 3"):
        unpack_trits(torch.tensor([[3]], dtype=torch.uint8), 1)


def test_a_latent_is_moved_no_further_than_its_cell():
    trits, scales, latent = random_codes(1, 8, 64, 64)
    layer = BitLinear.from_codes(pack_trits(trits), scales, 64, 64, latent=latent, margin=0.1)
    half = 0.5 * scales[0].float()
    start, codes = layer.latent.detach(), trits[0]
    inside = torch.where(codes == 0, latent.abs() <= half * 0.8, latent * codes >= half * 1.2)
    torch.testing.assert_close(start[inside], latent[inside])
    moved = start[~inside].abs()
    border = half.expand_as(start)[~inside]
    assert bool(((moved - border).abs() <= 0.2001 * border).all())


@pytest.mark.parametrize("planes", [1, 2])
def test_gradients_are_the_hand_written_ones(planes):
    rows, columns, group = 6, 130, 64
    trits, scales, latent = random_codes(planes, rows, columns, group)
    layer = BitLinear.from_codes(pack_trits(trits), scales, columns, group, latent=latent)
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(4, columns, generator=generator) for _ in range(2)]
    up = [torch.randn(4, rows, generator=generator) for _ in range(2)]
    grads_x = []
    for x, g in zip(batches, up):  # two micro-batches: gradients add up
        x = x.requires_grad_()
        (layer(x) * g).sum().backward()
        grads_x.append(x.grad)
    weight = by_hand(trits, scales, group)
    weight_grad = sum(g.T @ x.detach() for x, g in zip(batches, up))
    torch.testing.assert_close(layer.latent.grad, weight_grad)
    for x_grad, g in zip(grads_x, up):
        torch.testing.assert_close(x_grad, g @ weight)
    expected = torch.zeros_like(layer.gain)
    for plane, row, column in itertools.product(range(planes), range(rows), range(columns)):
        expected[plane, row, column // group] += weight_grad[row, column] * trits[plane, row, column]
    torch.testing.assert_close(layer.gain.grad, expected * scales.float(), rtol=1e-4, atol=1e-5)


def test_quantizes_once_an_optimizer_step():
    trits, scales, latent = random_codes(1, 8, 64, 64)
    layer = BitLinear.from_codes(pack_trits(trits), scales, 64, 64, latent=latent)
    x = torch.randn(2, 64)
    layer(x)
    first = layer.quantized()
    layer(x).sum().backward()
    assert layer.quantized() is first
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer.step()
    assert layer.quantized() is not first
    with torch.no_grad():
        layer.gain.mul_(2.0)
    np.testing.assert_array_equal(
        layer.codes_and_scales()[1], (scales.float() * layer.gain.detach()).half().numpy()
    )


def test_trains_after_it_was_evaluated():
    trits, scales, latent = random_codes(2, 8, 64, 64)
    layer = BitLinear.from_codes(pack_trits(trits), scales, 64, 64, latent=latent)
    x = torch.randn(2, 64)
    with torch.inference_mode():
        expected = layer(x)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert float(layer.latent.grad.norm()) > 0


def test_codes_are_the_nearest_of_all_sums_even_when_scales_cross():
    generator = torch.Generator().manual_seed(3)
    for planes in (1, 2, 3):
        scales = torch.rand(planes, 5, 2, generator=generator).half()  # in no order, close to each other
        latent = torch.randn(5, 128, generator=generator)
        layer = BitLinear(latent, scales, 64)
        combos = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=planes)))
        values = torch.einsum("cp,pog->ogc", combos, scales.float()).repeat_interleave(64, dim=1)
        nearest = (values - latent.unsqueeze(-1)).abs().amin(dim=-1)
        torch.testing.assert_close((layer.quantized() - latent).abs(), nearest, rtol=1e-5, atol=1e-6)
        codes, written = layer.codes_and_scales()
        decoded = by_hand(unpack_trits(torch.from_numpy(codes), 128), torch.from_numpy(written), 64)
        torch.testing.assert_close(layer.quantized(), decoded, rtol=0, atol=0)


def test_a_scale_of_zero_has_codes_of_zero():
    latent = torch.randn(2, 64)
    layer = BitLinear(latent, torch.tensor([[[0.0], [0.1]], [[0.0], [0.0]]]), 64)
    trits = unpack_trits(torch.from_numpy(layer.codes_and_scales()[0]), 64)
    assert not trits[:, 0].any() and not trits[1].any() and trits[0, 1].any()
    with torch.no_grad():
        layer.gain.fill_(-1.0)  # a scale is never negative, however the optimizer pulls
    codes, scales = layer.codes_and_scales()
    assert not scales.any() and not unpack_trits(torch.from_numpy(codes), 128).any()


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("spread,band", [(0.03, (0.25, 0.44)), (0.2, (0.25, 0.44)), (0.05, (0.345, 0.355))])
def test_zeros_stay_in_their_band(planes, spread, band):
    """Latents too small (mostly zeros) or too large (hardly any) are brought inside."""
    latent = torch.randn(64, 130, generator=torch.Generator().manual_seed(4)) * spread
    scales = torch.tensor([0.1, 0.04])[:planes].reshape(-1, 1, 1).expand(planes, 64, 3)
    free = BitLinear(latent, scales, 64)
    held = BitLinear(latent, scales, 64, zero_band=band)
    assert not band[0] <= free.zero_share() <= band[1]
    assert band[0] - 1e-9 <= held.zero_share() <= band[1] + 1e-9
    trits = unpack_trits(torch.from_numpy(held.codes_and_scales()[0]), 130)
    assert abs(float((trits == 0).float().mean()) - held.zero_share()) < 1e-6


def test_the_ceiling_is_met_exactly_by_the_weights_nearest_to_their_border():
    rng = np.random.default_rng(3)
    scales = torch.from_numpy(rng.uniform(0.1, 0.3, (1, 40, 2)).astype(np.float32))
    latent = torch.from_numpy(rng.normal(0, 0.12, (40, 100)).astype(np.float32))  # the last group is short
    free = BitLinear(latent, scales, 64)
    assert free.zero_share() > 0.5
    held = BitLinear(latent, scales, 64, zero_band=(0.25, 0.44))
    assert held.zero_share() == pytest.approx(0.44, abs=1 / latent.numel())
    became = (held._codes[0] != 0) & (free._codes[0] == 0)
    stayed = held._codes[0] == 0
    border = 0.5 * scales[0].half().float().repeat_interleave(64, dim=-1)[:, :100]
    ratio = latent.abs() / border
    assert float(ratio[became].min()) > float(ratio[stayed].max())
    assert bool((held._codes[0][became] == latent[became].sign()).all())
    full = BitLinear(latent * 20, scales, 64, zero_band=(0.25, 0.44))
    assert full.zero_share() < 0.25  # borders lean no further than the next value


@pytest.mark.parametrize("planes", [1, 2])
def test_the_pull_leads_to_the_middle_of_the_cell_and_flips_nothing(planes):
    trits, scales, latent = random_codes(planes, 6, 64, 32)
    layer = BitLinear.from_codes(pack_trits(trits), scales, 64, 32, latent=latent, margin=0.05)
    layer.quantized()
    before = layer._codes.clone()
    middle = by_hand(before, scales, 32)
    gap = (layer.latent.detach() - middle).abs()
    for _ in range(3):
        layer.pull_to_middle(0.25)
        layer.quantized()
    torch.testing.assert_close((layer.latent.detach() - middle).abs(), gap * 0.75**3, rtol=1e-4, atol=1e-6)
    assert torch.equal(layer._codes, before)


def test_int8_activations_as_the_kernels_make_them():
    x = torch.tensor([[1.0, -127.0, 0.5, 2.5], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    y = fake_quantize_activations(x)
    torch.testing.assert_close(y, torch.tensor([[1.0, -127.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]))
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 4))


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match="do not fit a weight"):
        BitLinear(torch.zeros(4, 64), torch.ones(1, 4, 2), 64)
    with pytest.raises(InputError, match="1 to 3 planes"):
        BitLinear(torch.zeros(4, 64), torch.ones(4, 4, 1), 64)
