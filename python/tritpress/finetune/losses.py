"""The training loss: KL divergence from the original's full distribution plus a share of cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritpress.finetune.teacher import TopTargets


class _DistillationLoss(torch.autograd.Function):
    """Loss and its gradient in one go: softmax(student) - ((1 - share) * teacher + share * one-hot)."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NV: Tensor,
        teacher_NV: Tensor | TopTargets,
        target_N: Tensor,
        share: float,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logp_NV = student_NV.float().log_softmax(dim=-1)
        if isinstance(teacher_NV, TopTargets):
            teacher_logp_NV = _filled_up(teacher_NV, logp_NV)
        else:
            teacher_logp_NV = teacher_NV.float().log_softmax(dim=-1)
        teacher_p_NV = teacher_logp_NV.exp()
        rows = torch.arange(len(target_N), device=target_N.device)
        kl = teacher_logp_NV.sub_(logp_NV).mul_(teacher_p_NV).sum(dim=-1).double().sum()
        ce = -logp_NV[rows, target_N].double().sum()
        if ctx.needs_input_grad[0]:
            grad_NV = logp_NV.exp_().sub_(teacher_p_NV, alpha=1.0 - share)
            grad_NV[rows, target_N] -= share
            ctx.grad = grad_NV.mul_(scale).to(student_NV.dtype)
        loss = ((1.0 - share) * kl + share * ce) * scale
        ctx.mark_non_differentiable(kl, ce)
        return loss.float(), kl, ce

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _kl: Tensor, _ce: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.grad * grad if float(grad) != 1.0 else ctx.grad, None, None, None, None


def _filled_up(teacher: TopTargets, logp_NV: Tensor) -> Tensor:
    """The teacher's log-probabilities [N, V]: its own of the tokens it names, and what they leave of 1 over
    the others in the student's proportions, where it then neither pushes nor pulls."""
    left_N1 = (1.0 - teacher.logp.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-7)
    named_N1 = logp_NV.gather(-1, teacher.ids).exp().sum(dim=-1, keepdim=True)
    others_N1 = (1.0 - named_N1).clamp(min=1e-7)
    return (logp_NV + (left_N1 / others_N1).log()).scatter_(-1, teacher.ids, teacher.logp)


def distillation_loss(
    student_NV: Tensor, teacher_NV: Tensor | TopTargets, target_N: Tensor, ce_share: float, scale: float
) -> tuple[Tensor, float, float]:
    """((1 - ce_share) * KL(teacher || student) + ce_share * CE(target)) * scale, summed over N positions.

    student_NV, teacher_NV: logits [positions, vocabulary], the teacher's whole or its likeliest tokens;
    target_N int64. `scale` is 1 / positions of the whole batch. Returns the loss (float32, differentiable in
    the student) and the two plain sums in nats.
    """
    loss, kl, ce = _DistillationLoss.apply(student_NV, teacher_NV, target_N, ce_share, scale)
    return loss, float(kl.detach()), float(ce.detach())
