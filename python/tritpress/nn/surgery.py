"""Finding and replacing the linear layers of any `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.nn.ternary_linear import TernaryLinear


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D (GPT-2): a linear layer that stores its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """`nn.Linear` (and subclasses with a plain weight) or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module of every linear layer, in the model's own order."""
    return {path: module for path, module in model.named_modules() if is_linear(module)}


def weight_out_in(module: nn.Module) -> Tensor:
    """The layer's weight as a view [out, in], detached: writing to it writes to the layer."""
    weight = module.weight.detach()
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
        size = sum(m.weight.numel() for m in module.modules() if is_linear(m))
        if size and (best is None or size > best[0]):  # named_modules is outermost first: ties stay outside
            best = (size, path, module)
    if best is None:
        raise InputError("the model has no list of blocks with linear layers in them")
    return best[1], best[2]


def ternarize_(
    module: nn.Module,
    config: CompressionConfig | None = None,
    filter: Callable[[str, nn.Module], bool] | None = None,
    activation_bits: int | None = 8,
) -> nn.Module:
    """Replace every linear layer of `module` by a `TernaryLinear`, in place, from the weights alone.

    Args:
        module: any `nn.Module`; returned as it is, or as the new layer where it is itself a linear layer.
        config: planes (default 1), fit, group_size, sparsity or threshold, threads.
        filter: called with (path, layer); False keeps that layer. By default output embeddings stay, as in
            compressed models (`lm_head`, or whatever shares its weight with an embedding).
        activation_bits: 8 for the int8 kernels, None for float32 activations.

    Raises `InputError` where no layer is left to replace or a weight is not finite.
    """
    from tritpress.ternarize import ternarize

    config = config or CompressionConfig()
    layers = linear_modules(module)
    keep = filter or _not_an_output_embedding(module)
    chosen = {path: layer for path, layer in layers.items() if keep(path, layer)}
    if not chosen:
        raise InputError(f"{type(module).__name__} has no linear layer to ternarize")
    for path, layer in chosen.items():
        weight = weight_out_in(layer)
        try:
            result = ternarize(
                weight.float().contiguous().cpu().numpy(),
                fit=config.fit,
                group_size=config.group_size,
                planes=config.planes or 1,
                threshold=config.threshold,
                sparsity=config.target_sparsity,
                max_sparsity=config.max_sparsity,
                threads=config.threads,
            )
        except ValueError as error:
            raise InputError(f"{path or type(layer).__name__}.weight: {error}") from None
        new = TernaryLinear(
            torch.from_numpy(result.codes).to(weight.device),
            torch.from_numpy(result.scales).to(weight.device),
            in_features=weight.shape[1],
            group_size=config.group_size,
            bias=None if layer.bias is None else layer.bias.detach(),
            activation_bits=activation_bits,
        )
        if not path:
            return new
        replace_module(module, path, new)
    return module


def _not_an_output_embedding(module: nn.Module) -> Callable[[str, nn.Module], bool]:
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    if hasattr(module, "get_output_embeddings"):
        output = module.get_output_embeddings()
        if output is not None and hasattr(output, "weight"):
            embeddings.add(id(output.weight))
    return lambda _path, layer: id(layer.weight) not in embeddings
