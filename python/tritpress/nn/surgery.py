"""Finding and replacing the linear layers of any `nn.Module`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tritpress.errors import InputError


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D (GPT-2): a linear layer that stores its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """`nn.Linear` (and subclasses with a plain weight) or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_read_by_its_model(model: nn.Module, path: str) -> bool:
    """Whether the linear layer at `path` is never called: a Mamba block multiplies by the weight of its
    `dt_proj` itself, which therefore has to stay a plain layer.
    """
    owner, _, name = path.rpartition(".")
    return name == "dt_proj" and hasattr(model.get_submodule(owner), "A_log")


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module of every linear layer, in the model's own order."""
    return {path: module for path, module in model.named_modules() if is_linear(module)}


def weight_out_in(module: nn.Module) -> Tensor:
    """The layer's weight as a view [out, in], detached: writing to it writes to the layer."""
    weight = cast(Tensor, module.weight).detach()
    return weight.t() if is_conv1d(module) else weight


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Write `weight` [out, in] into the layer in place, in the layer's own dtype and layout."""
    with torch.no_grad():
        weight_out_in(module).copy_(weight)


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` in the place of the submodule at `path` (`model.layers.0.mlp.up_proj`)."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if not name or name not in owner._modules:
        raise InputError(f"the model has no submodule {path!r} to replace")
    new.train(owner.training)
    setattr(owner, name, new)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the transformer blocks: the outermost list that holds the most weights in linear
    layers.

    Raises `InputError` where there is none.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        size = sum(cast(Tensor, m.weight).numel() for m in module.modules() if is_linear(m))
        if size and (best is None or size > best[0]):  # named_modules is outermost first: ties stay outside
            best = (size, path, module)
    if best is None:
        raise InputError("the model has no list of blocks with linear layers in them")
    return best[1], best[2]
