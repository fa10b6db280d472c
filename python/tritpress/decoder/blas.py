"""One thread for numpy's own matrix products while the decoder runs.

Its products are small (attention, a small float32 head). OpenBLAS divides them among threads that wait for
each other by spinning; on a machine with other work, or beside the kernels' own pool, one such product was
seen to take 7 ms instead of 0.05.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


@functools.cache
def _threads() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's functions to read and set its threads, out of the library that numpy has loaded; None where
    numpy uses another one, which is then left alone.
    """
    try:
        core = getattr(np, "_core", None) or np.core
        library = ctypes.CDLL(core._multiarray_umath.__file__)  # its symbols and those of what it links
    except (AttributeError, OSError):
        return None
    for name in _NAMES:
        try:
            get = library[name.format("get_num_threads")]
            put = library[name.format("set_num_threads")]
        except AttributeError:
            continue
        get.restype, get.argtypes = ctypes.c_int, []
        put.restype, put.argtypes = None, [ctypes.c_int]
        return get, put
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, OpenBLAS uses one thread; afterwards as many as before."""
    found = _threads()
    before = 1 if found is None else found[0]()
    if found is None or before == 1:
        yield
        return
    found[1](1)
    try:
        yield
    finally:
        found[1](before)
