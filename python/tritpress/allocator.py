"""Telling the C library what to do with memory that tensors give back (glibc's; others are left alone)."""

from __future__ import annotations

import contextlib
import ctypes

MALLOPT_TRIM, MALLOPT_MMAP = -1, -3
KEPT_BYTES = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Keep it for what is asked for next.

    By default blocks of several megabytes return to the system when freed, and every step of a training pays
    for thousands of fresh pages: some 5 % of it.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MALLOPT_MMAP, KEPT_BYTES)
        mallopt(MALLOPT_TRIM, KEPT_BYTES)


def give_back_freed() -> None:
    """Return what was freed to the system now.

    Weights that came and went leave holes of a few megabytes, which would stay in the resident set: heaps
    only shrink from their end, and a model that goes through block by block would leave them in every one.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
