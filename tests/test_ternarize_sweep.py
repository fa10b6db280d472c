"""The second-order sweep on random problems, against plain rounding and against brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from tritpress.errors import InputError
from tritpress.ternarize import points as pt
from tritpress.ternarize.first import first_scale
from tritpress.ternarize.points import FitSpec
from tritpress.ternarize.refine import quadratic
from tritpress.ternarize.sweep import curvature, damped, sweep

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(rows=24, cols=130, seed=0):
    """A weight and second moments of inputs that are correlated and differ in size, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator) * 0.05
    mixing = torch.eye(cols) + 0.3 * torch.randn(cols, cols, generator=generator) / cols**0.5 * 3
    x = (
        torch.randn(2000, cols, generator=generator)
        @ mixing
        * (0.2 + torch.rand(cols, generator=generator) * 2)
    )
    return weight, x.T @ x / len(x)


def loss(weight, hessian, decoded):
    return quadratic(weight - decoded, damped(hessian).float()) / quadratic(weight, damped(hessian).float())


def rounded(weight, spec):
    """The data-free fit of the Rust core, decoded."""
    from tritpress import _core

    codes, scales = _core.ternarize(weight.numpy(), group_size=spec.group_size, planes=spec.planes)
    return torch.from_numpy(_core.dequantize(codes, scales, weight.shape[1], spec.group_size))


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("group_size", [0, 64])
def test_the_sweep_beats_plain_rounding_and_refinement_the_sweep(planes, group_size):
    weight, hessian = problem()
    spec = FitSpec(planes=planes, group_size=group_size)
    at = curvature(hessian, group_size)
    fitted = sweep(weight, at, spec)
    assert fitted.loss <= fitted.sweep_loss
    assert loss(weight, hessian, fitted.decoded(at)) < 0.8 * loss(weight, hessian, rounded(weight, spec))
    assert fitted.trits.shape == (planes, *weight.shape) and set(fitted.trits.unique().tolist()) <= {-1, 0, 1}
    width = group_size or weight.shape[1]
    assert fitted.scales.shape == (planes, len(weight), -(-weight.shape[1] // width))
    assert torch.equal(fitted.scales, fitted.scales.half().float()) and bool((fitted.scales >= 0).all())
    naive = sum(
        fitted.trits[p].float() * fitted.scales[p].repeat_interleave(width, 1)[:, : weight.shape[1]]
        for p in range(planes)
    )
    torch.testing.assert_close(fitted.decoded(at), naive)


def test_more_planes_leave_less():
    weight, hessian = problem()
    at = curvature(hessian, 64)
    losses = [sweep(weight, at, FitSpec(planes=planes)).loss for planes in (1, 2, 3)]
    assert losses[0] > 4 * losses[1] > 8 * losses[2]


def test_short_rows_are_mostly_the_true_optimum():
    weight, hessian = problem(rows=20, cols=6)
    at = curvature(hessian, 0)
    fitted = sweep(weight, at, FitSpec(group_size=0), rounds=6, passes=6)
    h = damped(hessian)
    got = (weight - fitted.decoded(at)).double()
    ratios = []
    for row in range(20):
        best = np.inf
        for trits in itertools.product((-1.0, 0.0, 1.0), repeat=6):  # every code, each with its best scale
            t = torch.tensor(trits, dtype=torch.float64)
            if t.any():
                w = weight[row].double()
                scale = (t @ h @ w) / (t @ h @ t)
                best = min(best, float((w - scale * t) @ h @ (w - scale * t)))
        ratios.append(float(got[row] @ h @ got[row]) / best)
    assert min(ratios) > 0.999 and np.median(ratios) < 1.01 and np.quantile(ratios, 0.9) < 2


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_the_ceiling_on_zeros_holds_and_costs_little(planes):
    weight, hessian = problem(rows=40)
    weight = weight * weight.abs().sqrt() * 4  # heavier tails: a free fit takes many zeros
    at = curvature(hessian, 64)
    free = sweep(weight, at, FitSpec(planes=planes))
    held = sweep(weight, at, FitSpec(planes=planes, max_sparsity=0.44))
    share = float((held.trits == 0).float().mean())
    assert float((free.trits == 0).float().mean()) > 0.46 and share <= 0.44
    assert loss(weight, hessian, held.decoded(at)) < 1.25 * loss(weight, hessian, free.decoded(at))


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_a_target_share_of_zeros_is_met(planes, share):
    weight, hessian = problem()
    fitted = sweep(weight, curvature(hessian, 64), FitSpec(planes=planes, sparsity=share))
    assert abs(float((fitted.trits == 0).float().mean()) - share) < 0.001


def test_a_threshold_decides_the_first_groups_zeros():
    weight, hessian = problem(cols=64)
    fitted = sweep(weight, curvature(hessian, 64), FitSpec(threshold=0.7))
    limit = 0.7 * weight.abs().mean(1, keepdim=True)
    assert torch.equal(fitted.trits[0], (weight.sign() * (weight.abs() > limit)).to(torch.int8))
    assert fitted.loss <= fitted.sweep_loss


def test_zero_rows_dead_inputs_and_tiny_weights():
    weight, hessian = problem()
    weight[3] = 0
    weight[4] = 1e-12  # a scale that underflows
    hessian[:, 7] = 0
    hessian[7, :] = 0
    for planes in (1, 2):
        fitted = sweep(weight, curvature(hessian, 64), FitSpec(planes=planes, max_sparsity=0.44))
        assert bool(torch.isfinite(fitted.scales).all())
        for row in (3, 4):
            assert not fitted.trits[:, row].any() or fitted.scales[:, row].any()
        empty = fitted.scales.repeat_interleave(64, 2)[:, :, : weight.shape[1]] == 0
        assert not fitted.trits[empty].any()
    with pytest.raises(InputError, match="above float16"):
        sweep(weight * 1e8, curvature(hessian, 64), FitSpec())


def test_fits_are_what_they_say():
    weight, _ = problem(cols=64)
    one = torch.ones(64)
    assert torch.allclose(first_scale(weight, one, "absmean", None), weight.abs().mean(1))
    twn = [row[row > 0.7 * row.mean()].mean() for row in weight.abs()]
    assert torch.allclose(first_scale(weight, one, "twn", None), torch.stack(twn))
    for row, scale in zip(weight, first_scale(weight, one, "exact", None)):
        magnitude = row.abs().sort(descending=True).values
        gains = [float(magnitude[:k].sum() ** 2 / k) for k in range(1, 65)]
        k = int(np.argmax(gains)) + 1
        assert abs(float(scale) - float(magnitude[:k].mean())) < 1e-6


def test_the_same_input_gives_the_same_bytes():
    weight, hessian = problem()
    first, second = (sweep(weight, curvature(hessian, 64), FitSpec(planes=2)) for _ in range(2))
    assert torch.equal(first.trits, second.trits) and torch.equal(first.scales, second.scales)


def test_a_row_of_many_scales_is_solved_by_several_threads():
    """In a process of its own: what torch's batched LU makes of such sizes does not end."""
    code = """
import torch
from tritpress.ternarize.points import ridge_solve
torch.set_num_threads(2)
for n in (90, 200, 300):
    half = torch.randn(40, n, n + 20, generator=torch.Generator().manual_seed(n))
    normal, right, before = half @ half.mT / n, torch.randn(40, n), torch.randn(40, n)
    normal[3, 5], normal[3, :, 5] = 0.0, 0.0
    solved = ridge_solve(normal, right, before).double()
    ridge = 1e-4 * normal.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).double()
    back = (normal.double() @ solved[..., None])[..., 0] + ridge * solved
    wanted = right + ridge * before
    assert solved[3, 5] == before[3, 5]
    wanted[3, 5] = back[3, 5]
    assert float((back - wanted).abs().max()) < 1e-3
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_system_that_rounding_made_indefinite_is_solved_too():
    normal = torch.tensor([[[1.0, 2.0], [2.0, 1.0]], [[2.0, 0.0], [0.0, 4.0]]])
    solved = pt.ridge_solve(normal, torch.tensor([[3.0, 3.0], [2.0, 4.0]]), torch.ones(2, 2))
    assert torch.allclose(solved, torch.ones(2, 2), atol=1e-5)
