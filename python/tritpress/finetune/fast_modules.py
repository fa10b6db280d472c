"""Faster forward and backward passes of small modules while a model trains, the same numbers up to rounding.

Where matrix products run on wide units, the element-wise passes around them take most of a training step: a
root-mean-square norm written out in torch reads and writes its input some twenty times, forward and backward
together. `faster_modules` swaps such forwards for their time in training and puts them back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class _RootMeanSquareNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, rounded once to `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.float()
        size = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.float() * x).mul_(inverse).flatten(0, -2).sum(dim=0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        scaled = grad * weight
        along = (scaled * x).sum(dim=-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])
        return scaled.mul_(inverse).addcmul_(x, along, value=-1.0), grad_weight, None, None


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The format that autocast runs matrix products of `device` in at the moment; None where it is off."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


@contextlib.contextmanager
def faster_modules(*models: nn.Module) -> Iterator[None]:
    """While it lasts, the models' root-mean-square norms are computed in a few passes, and under autocast
    norms and rotary tables give their result in the format that the products after them take.

    A norm is known by its class's name and by giving the same values as the fast form on a random input;
    what is not known stays as it is.
    """
    undo: list[Callable[[], Any]] = []
    try:
        for model in models:
            for module in model.modules():
                if "forward" in vars(module):
                    continue  # somebody else's forward
                kind = type(module).__name__
                if kind.endswith("RMSNorm") and _is_plain_norm(module):
                    module.forward = _fast_norm(module)  # type: ignore[method-assign]
                    undo.append(lambda module=module: delattr(module, "forward"))  # type: ignore[misc]
                elif kind.endswith("RotaryEmbedding"):
                    undo.append(module.register_forward_hook(_in_autocast_format).remove)
        yield
    finally:
        for put_back in undo:
            put_back()


def _fast_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    def forward(hidden_states: Tensor) -> Tensor:
        dtype = autocast_dtype(hidden_states.device) or hidden_states.dtype
        return _RootMeanSquareNorm.apply(hidden_states, norm.weight, _eps_of(norm), dtype)

    return forward


def _eps_of(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


@torch.no_grad()
def _is_plain_norm(norm: Any) -> bool:
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or weight.dtype != torch.float32:
        return False
    if not (hasattr(norm, "variance_epsilon") or isinstance(getattr(norm, "eps", None), float)):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, len(weight), generator=generator).to(weight.device)
    x[1] *= 1e-3  # where the epsilon shows
    with torch.autocast(weight.device.type, enabled=False):
        plain, fast = norm(x), _fast_norm(norm)(x)
    return plain.shape == fast.shape and torch.allclose(plain, fast, rtol=1e-4, atol=1e-6)


def _in_autocast_format(module: nn.Module, args: Any, output: Any) -> Any:
    if not isinstance(output, tuple) or not all(isinstance(part, Tensor) for part in output):
        return output
    dtype = autocast_dtype(output[0].device) if output else None
    return output if dtype is None else tuple(part.to(dtype) for part in output)
