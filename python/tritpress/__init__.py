"""tritpress: press trained models into ternary weights, measure what it cost, run them on a plain CPU.

The base install (numpy, safetensors, pydantic, typer, rich) carries the import, the data-free methods, the
inspection of files and the kernels; torch and transformers are imported when something that needs them is
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tritpress._core import PackedMatrix, __version__
from tritpress.ternarize import Ternary, ternarize  # the function takes the place of the package's name

if TYPE_CHECKING:
    from tritpress.api import compress
    from tritpress.config import CompressionConfig
    from tritpress.errors import InputError, StopRequested, TritpressError, UsageError
    from tritpress.loading import load
    from tritpress.nn.bit_linear import BitLinear
    from tritpress.nn.ternary_linear import TernaryLinear
    from tritpress.ternarize.modules import ternarize_

_LAZY = {
    "compress": "tritpress.api",
    "CompressionConfig": "tritpress.config",
    "TritpressError": "tritpress.errors",
    "InputError": "tritpress.errors",
    "UsageError": "tritpress.errors",
    "StopRequested": "tritpress.errors",
    "load": "tritpress.loading",
    "ternarize_": "tritpress.ternarize.modules",
    "TernaryLinear": "tritpress.nn.ternary_linear",
    "BitLinear": "tritpress.nn.bit_linear",
}

__all__ = [
    "BitLinear",
    "CompressionConfig",
    "InputError",
    "PackedMatrix",
    "StopRequested",
    "Ternary",
    "TernaryLinear",
    "TritpressError",
    "UsageError",
    "__version__",
    "compress",
    "load",
    "ternarize",
    "ternarize_",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tritpress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
