"""What a loaded model holds in memory: counted tensor by tensor, so that it is the same at every run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def available_bytes() -> int | None:
    """Memory that the system could give to a process now; None where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def held_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, plus the kernels' own copies of packed weights.

    Storage that several tensors share (tied weights, views) counts once; what a paged model reads as it runs
    counts as if it were held. The kernels' copies are made at the first product, so ask after the model has
    run. Activations, caches and the libraries are not in it.
    """
    from tritpress.nn.paging import is_placeholder
    from tritpress.nn.ternary_linear import TernaryLinear
    from tritpress.ops.linear import kernel_bytes

    storages: dict[Any, int] = {}
    for part in model.modules():
        paged = part.__dict__.get("_paged")
        for _, _, name, shape in paged.places if paged is not None else ():
            storages[name] = 4 * math.prod(shape)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if is_placeholder(tensor):
            continue
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    copies = sum(kernel_bytes(layer.codes) for layer in model.modules() if isinstance(layer, TernaryLinear))
    return sum(storages.values()) + copies
