"""MuGrokfast against torch.optim.Muon and the filter written by hand; the loss against plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tritpress.errors import UsageError
from tritpress.finetune.losses import distillation_loss
from tritpress.finetune.mugrokfast import MuGrokfast, Muon, newton_schulz

pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(shape, steps: int):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_float32_muon_follows_torch_within_bfloat16(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    a = Muon([ours], lr=0.02, weight_decay=0.1, momentum=0.95)
    b = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for grad in gradients(shape, 4):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        a.step()
        b.step()
    moved = (theirs - start).norm()
    assert float((ours - theirs).detach().norm() / moved.detach()) < 0.02  # bfloat16 keeps 8 bits
    torch.testing.assert_close(a.state[ours]["momentum_buffer"], b.state[theirs]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_newton_schulz_is_nearly_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    singular = torch.linalg.svdvals(newton_schulz(matrix))
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.3


def test_the_filter_is_grokfast_ema_before_the_optimizer():
    lambda_, alpha, lr = 0.5, 0.9, 0.01
    p = torch.nn.Parameter(torch.zeros(8, 8))
    reference = torch.nn.Parameter(torch.zeros(8, 8))
    ours = MuGrokfast({"p": p}, {}, lr=lr, other_lr=lr, grokfast_lambda=lambda_, grokfast_alpha=alpha)
    theirs = Muon([reference], lr=lr)
    average = None
    for grad in gradients((8, 8), 5):
        average = grad.clone() if average is None else alpha * average + (1 - alpha) * grad
        p.grad, reference.grad = grad.clone(), grad + lambda_ * average
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, reference)


def test_lambda_zero_is_plain_muon_and_keeps_no_average():
    p, q = (torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(2))
    filtered = MuGrokfast({"p": p}, {}, kind="mugrokfast", lr=0.01, other_lr=0.01, grokfast_lambda=0.0)
    plain = MuGrokfast({"p": q}, {}, kind="muon", lr=0.01, other_lr=0.01, grokfast_lambda=0.7)
    for grad in gradients((8, 8), 3):
        p.grad, q.grad = grad.clone(), grad.clone()
        filtered.step()
        plain.step()
    assert torch.equal(p, q) and not filtered.average and not plain.average


@pytest.mark.parametrize(
    "kind,muon_format", [("mugrokfast", "float32"), ("mugrokfast", "bfloat16"), ("adamw", "float32")]
)
def test_the_state_comes_back_bit_for_bit(kind, muon_format):
    def build() -> tuple:
        p, s = torch.nn.Parameter(torch.ones(8, 12)), torch.nn.Parameter(torch.ones(5))
        made = MuGrokfast({"p": p}, {"s": s}, kind=kind, lr=0.02, other_lr=0.01, muon_format=muon_format)
        return p, s, made

    grads = list(zip(gradients((8, 12), 6), gradients((5,), 6)))
    p, s, whole = build()
    for index, (gp, gs) in enumerate(grads):
        if index == 3:
            saved = {name: tensor.clone() for name, tensor in whole.state_tensors().items()}
            middle = p.detach().clone(), s.detach().clone()
        p.grad, s.grad = gp.clone(), gs.clone()
        whole.step()
    q, t, resumed = build()
    resumed.load_state_tensors(saved)
    with torch.no_grad():
        q.copy_(middle[0])
        t.copy_(middle[1])
    for gp, gs in grads[3:]:
        q.grad, t.grad = gp.clone(), gs.clone()
        resumed.step()
    assert torch.equal(p, q) and torch.equal(s, t)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UsageError, match="sgd"):
        MuGrokfast({}, {}, kind="sgd", lr=0.1, other_lr=0.1)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_loss_and_its_gradient_are_autograds(share):
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(6, 11, generator=generator, requires_grad=True)
    plain = student.detach().clone().requires_grad_()
    teacher = torch.randn(6, 11, generator=generator)
    target = torch.randint(0, 11, (6,), generator=generator)
    loss, kl, ce = distillation_loss(student, teacher, target, share, 1 / 6)
    (2.0 * loss).backward()
    logp = F.log_softmax(plain, dim=-1)
    kl_plain = F.kl_div(logp, F.log_softmax(teacher, dim=-1), log_target=True, reduction="sum")
    ce_plain = F.nll_loss(logp, target, reduction="sum")
    expected = ((1 - share) * kl_plain + share * ce_plain) / 6
    (2.0 * expected).backward()
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-5)
    assert math.isclose(kl, kl_plain.item(), rel_tol=1e-5)
    assert math.isclose(ce, ce_plain.item(), rel_tol=1e-5)
    torch.testing.assert_close(student.grad, plain.grad)
