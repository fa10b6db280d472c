"""MuGrokfast: the Grokfast EMA filter on gradients, then Muon for matrices and AdamW for the rest.

Grokfast (Lee et al. 2024) adds lambda times a slow average of the gradients to each gradient; Muon (Jordan et
al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by a Newton-Schulz iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from tritpress.errors import UsageError

NS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5
EPS = 1e-7


def newton_schulz(matrix: Tensor, steps: int = NS_STEPS) -> Tensor:
    """Roughly the orthogonal factor of `matrix` [m, n], in its own dtype (the quintic iteration of Muon)."""
    a, b, c = NS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` step for step (`adjust_lr_fn="match_rms_adamw"`), but its iteration in float32: for
    machines without fast bfloat16."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = newton_schulz(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


class MuGrokfast:
    """One optimizer over named parameters: filter, then Muon (`matrices`) and AdamW (`others`).

    `units` gives the size that a step of each matrix is measured in: with lr 0.05 the elements of a matrix
    move by about 0.01 units a step (root mean square), under Muon and AdamW alike.
    `other_rates` gives some of the others a rate of their own instead of `other_lr`.
    `kind` "mugrokfast" filters, "muon" doesn't (nor does lambda 0), "adamw" takes AdamW for everything,
    unfiltered. `muon_format` is the format of the iteration: "bfloat16" takes `torch.optim.Muon`.
    """

    def __init__(
        self,
        matrices: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        *,
        units: Mapping[str, float] | None = None,
        kind: Literal["mugrokfast", "muon", "adamw"] = "mugrokfast",
        lr: float,
        other_lr: float,
        other_rates: Mapping[str, float] | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        grokfast_lambda: float = 0.1,
        grokfast_alpha: float = 0.98,
        muon_format: str = "float32",
    ) -> None:
        if kind not in ("mugrokfast", "muon", "adamw"):
            raise UsageError(f"the optimizer must be mugrokfast, muon or adamw, not {kind!r}")
        self.names = {name: p for part in (matrices, others) for name, p in part.items()}
        self.filter_by = grokfast_lambda if kind == "mugrokfast" else 0.0
        self.alpha = grokfast_alpha
        self.average: dict[str, Tensor] = {}
        self.inner: list[torch.optim.Optimizer] = []
        rates = other_rates or {}
        adam: list[dict[str, Any]] = [
            {"params": [p for name, p in others.items() if rates.get(name, other_lr) == rate], "lr": rate}
            for rate in dict.fromkeys(rates.get(name, other_lr) for name in others)
        ]
        for group in adam:
            group["weight_decay"] = 0.0
        groups: list[dict[str, Any]] = [
            {"params": [p], "lr": lr * (units or {}).get(name, 1.0), "weight_decay": weight_decay}
            for name, p in matrices.items()
        ]
        if kind == "adamw":
            adam += groups
        elif groups and muon_format == "bfloat16":
            self.inner.append(torch.optim.Muon(groups, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        elif groups:
            self.inner.append(Muon(groups, momentum=momentum))
        adam = [group for group in adam if group["params"]]
        if adam:
            on_cpu = all(p.device.type == "cpu" for p in self.names.values())
            # one pass over memory instead of eight
            self.inner.append(torch.optim.AdamW(adam, betas=(0.9, 0.95), foreach=False, fused=on_cpu))
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.inner]

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to `factor` times the one given at the start (warm-up, cosine, halving)."""
        for optimizer, rates in zip(self.inner, self.rates):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for p in self.names.values():
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Filter the gradients and update every parameter."""
        if self.filter_by > 0.0:
            for name, p in self.names.items():
                if p.grad is None:
                    continue
                if name not in self.average:
                    self.average[name] = p.grad.clone()
                else:
                    self.average[name].lerp_(p.grad, 1.0 - self.alpha)
                p.grad.add_(self.average[name], alpha=self.filter_by)
        for optimizer in self.inner:
            optimizer.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside parameters and rates, by flat name."""
        out = {f"average/{name}": tensor for name, tensor in self.average.items()}
        for optimizer in self.inner:
            for name, p in self.names.items():
                for key, value in optimizer.state.get(p, {}).items():
                    out[f"{key}/{name}"] = torch.as_tensor(value)
        return out

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up `state_tensors()` again; an empty dict is a fresh start."""
        self.average = {}
        for optimizer in self.inner:
            optimizer.state.clear()
        owner = {id(p): o for o in self.inner for group in o.param_groups for p in group["params"]}
        for flat, tensor in tensors.items():
            key, _, name = flat.partition("/")
            p = self.names[name]
            if key == "average":
                self.average[name] = tensor.clone().to(p.device)
            else:  # AdamW keeps its step count on the CPU
                owner[id(p)].state[p][key] = tensor.clone() if key == "step" else tensor.clone().to(p.device)
