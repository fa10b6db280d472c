"""`ternarize_`: any `nn.Module` in place, from its weights alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.nn.surgery import is_read_by_its_model, linear_modules, replace_module, weight_out_in
from tritpress.nn.ternary_linear import TernaryLinear
from tritpress.ternarize import ternarize


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
            compressed models (`lm_head`, or whatever shares its weight with an embedding). Layers whose
            weight their model reads itself (Mamba's `dt_proj`) stay in any case.
        activation_bits: 8 for the int8 kernels, None for float32 activations.

    Raises `InputError` where no layer is left to replace or a weight is not finite.
    """
    config = config or CompressionConfig()
    layers = linear_modules(module)
    keep = filter or _not_an_output_embedding(module)
    chosen = {
        path: layer
        for path, layer in layers.items()
        if keep(path, layer) and not is_read_by_its_model(module, path)
    }
    if not chosen:
        raise InputError(f"{type(module).__name__} has no linear layer to ternarize")
    for path, layer in chosen.items():
        weight, bias = weight_out_in(layer), cast(Tensor | None, layer.bias)
        try:
            result = ternarize(
                weight.float().contiguous().cpu().numpy(),
                fit=config.fit,
                group_size=config.base_group_size,
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
            group_size=config.base_group_size,
            bias=None if bias is None else bias.detach(),
            activation_bits=activation_bits,
        )
        if not path:
            return new
        replace_module(module, path, new)
    return module


def _not_an_output_embedding(module: nn.Module) -> Callable[[str, nn.Module], bool]:
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    if hasattr(module, "get_output_embeddings"):
        output = cast(Any, module).get_output_embeddings()
        if output is not None and hasattr(output, "weight"):
            embeddings.add(id(output.weight))
    return lambda _path, layer: id(layer.weight) not in embeddings
