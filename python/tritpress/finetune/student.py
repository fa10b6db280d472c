"""The model in training: its pressed layers replaced by `BitLinear`, everything else frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tritpress.config import CompressionConfig
from tritpress.errors import InputError
from tritpress.nn.bit_linear import BitLinear
from tritpress.nn.surgery import replace_module, weight_out_in

if TYPE_CHECKING:
    from torch import nn

BAND = (0.25, 0.44)
"""Zeros stay inside these while training: the gate's band, a point below its upper limit."""
TOLERANCE = 0.004
"""A target sparsity is held this closely."""


def make_student(
    model: nn.Module,
    modules: Mapping[str, str],
    codes_of: Callable[[str], tuple[np.ndarray, np.ndarray]],
    config: CompressionConfig,
    *,
    group_sizes: Mapping[str, int] | None = None,
) -> dict[str, BitLinear]:
    """Replace the layers of `model` in place and freeze the rest; tensor name -> its `BitLinear`.

    Args:
        model: a float32 copy of the original, its weights still the original's (latents start from them);
            embeddings may already be those of the packed model.
        modules: source tensor name -> path of its linear layer in `model`.
        codes_of: name -> (codes uint8 [planes, out, ceil(in/4)], scales float16 [planes, out, groups]), the
            calibrated start.
        config: group size, zeros, activation bits.
        group_sizes: name -> group size, where it is not `config.group_size`.
    """
    students: dict[str, BitLinear] = {}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, path in modules.items():
        module = model.get_submodule(path)
        weight = weight_out_in(module)
        codes, scales = codes_of(name)
        if codes.ndim != 3:
            raise InputError(f"{name}: only plain linear layers are trained, not codes {list(codes.shape)}")
        layer = BitLinear.from_codes(
            codes,
            scales,
            weight.shape[1],
            (group_sizes or {}).get(name, config.group_size),
            bias=getattr(module, "bias", None),
            latent=weight,
            activation_bits=config.activation_bits,
            device=weight.device,
        )
        layer.zero_band = zero_band(config, layer.zero_share())
        replace_module(model, path, layer)
        students[name] = layer
    return students


def zero_band(config: CompressionConfig, calibrated: float) -> tuple[float, float] | None:
    """The limits on zeros for a tensor whose calibrated codes have that share of them.

    They always hold the calibrated share itself, so that training starts from the very codes. None where the
    user lifted the limits, or set a threshold.
    """
    target = config.target_sparsity
    if target is not None:
        return min(calibrated, target - TOLERANCE), max(calibrated, target + TOLERANCE)
    if config.max_sparsity is None:
        return None
    return min(calibrated, BAND[0]), max(calibrated, min(BAND[1], config.max_sparsity))


def export_codes(students: Mapping[str, BitLinear]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, codes, scales) of each layer: the very numbers its last forward pass used."""
    for name, layer in students.items():
        codes, scales = layer.codes_and_scales()
        yield name, codes, scales
