"""Loading torch and transformers in a process of ours, so that its other threads go on meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import os
import sys
from pathlib import Path

LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so")
"""What the linker takes longest for: as much as the rest of `import torch` together."""
MODULES = ("torch", "transformers", "transformers.modeling_utils")


def load_torch() -> None:
    """Import torch and transformers, if they are not yet.

    An import holds Python's lock while the linker loads a library (a third of a second for torch's), and
    collecting garbage among the million objects that come to be holds it for as long again: whoever listens
    for commands hears none then. So the large libraries are loaded first, through a foreign function, which
    gives the lock away; garbage is not collected in between; and what was imported is not looked at again
    by any later collection. It takes a quarter less time, too.
    """
    if "torch" in sys.modules and "transformers" in sys.modules:
        return
    if sys.platform == "linux" and "torch" not in sys.modules:
        _load_libraries()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for module in MODULES:
            importlib.import_module(module)
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


def _load_libraries() -> None:
    """Have the linker load what `import torch` will find loaded; the rest is left to the import."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return
    folder = Path(found.origin).parent / "lib"
    with contextlib.suppress(OSError, AttributeError):
        dlopen = ctypes.CDLL(None).dlopen  # `ctypes.CDLL(path)` would keep the lock
        dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
        for name in LIBRARIES:
            if (folder / name).is_file():
                dlopen(os.fsencode(folder / name), os.RTLD_NOW | os.RTLD_LOCAL)
