"""The inner loops of the second-order fit in Rust (`tritpress._core`), for tensors on a CPU.

Their twins in torch (`sweep`, `refine`, `zeros`) serve other devices: a loop over columns there is a dozen
small operations each, most of the time of a fit on a CPU. Shapes: R rows, G inputs of one group, K points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tritpress import _core
from tritpress.errors import InputError
from tritpress.ternarize.points import zero_counts


def serves(tensor: Tensor) -> bool:
    """Whether this tensor's loops run in Rust."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def sweep_group(
    weights: Tensor, table: Tensor, planes: int, price: Tensor | None, factor: Tensor, index: Tensor
) -> None:
    """Nearest points [R, K] column by column, each error passed on by factor [G, G].

    weights [R, G] become the errors over the pivots, index int64 [R, G] the points taken.
    """
    _core.sweep_group(
        weights.numpy(),
        _array(table),
        _array(zero_counts(planes)),
        None if price is None else float(price),
        _array(factor),
        index.numpy(),
        threads=torch.get_num_threads(),
    )


def descend_group(
    values: Tensor,
    gradient: Tensor,
    table: Tensor,
    planes: int,
    price: Tensor | None,
    hessian: Tensor,
    index: Tensor,
) -> None:
    """One pass of coordinate descent over the codes of a group.

    values [R, G] is what the codes stand for, before and after; gradient [R, G] is (W - Q) H there, hessian
    [G, G] the group's own part of H; index int64 [R, G] becomes the points taken.
    """
    _core.descend_group(
        values.numpy(),
        _array(gradient),
        _array(table),
        _array(zero_counts(planes)),
        None if price is None else float(price),
        _array(hessian),
        index.numpy(),
        threads=torch.get_num_threads(),
    )


def zero_price(
    weights: Tensor, importance: Tensor, table: Tensor, planes: int, allowed: float, both_ways: bool
) -> float:
    """The price on one zero code at which weights [R, G] have about `allowed` of them; see `solve_price`."""
    return _core.zero_price(
        _array(weights),
        _array(importance),
        _array(table),
        _array(zero_counts(planes)),
        allowed,
        both_ways,
        threads=torch.get_num_threads(),
    )


def alternate_scales(weights: Tensor, importance: Tensor, scales: Tensor, rounds: int) -> Tensor:
    """Better scales [R, P] for weights [R, G] with importance [G]: codes and scales in turn, `rounds` times.

    Raises `InputError` where a scale leaves float16.
    """
    found = scales.numpy(force=True).copy()
    try:
        _core.alternate_scales(
            _array(weights), _array(importance), found, rounds, threads=torch.get_num_threads()
        )
    except _core.CoreError as error:
        raise InputError(str(error)) from None
    return torch.from_numpy(found)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
