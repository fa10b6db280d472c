"""Rotary positions as products of complex numbers.

transformers rotates the pair (x_j, x_{j + d/2}) of a head by the angle position * frequency_j. Here the rows
of the query and key matrices are put in another order when they are loaded (`interleave`), so that the pairs
lie beside each other and a head is a vector of complex64: the rotation is one multiplication. Queries and
keys are permuted alike, so their products stay the same.
"""

from __future__ import annotations

import math

import numpy as np

from tritpress.decoder.architecture import Rope


def interleave(heads: int, head_size: int) -> np.ndarray:
    """int64 [heads * head_size]: row i of the new order is row `interleave[i]` of the file's."""
    one = np.arange(head_size).reshape(2, head_size // 2).T.ravel()
    return (np.arange(heads)[:, None] * head_size + one).ravel()


def frequencies(rope: Rope, head_size: int) -> np.ndarray:
    """float32 [head_size / 2]: radians a position, as transformers' rope utilities define them."""
    powers = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    found = (1.0 / (rope.theta ** powers.astype(np.float64))).astype(np.float32)
    if rope.type == "linear":
        return (found / np.float32(rope.factor)).astype(np.float32)
    if rope.type == "default":
        return found
    wavelength = 2 * math.pi / found.astype(np.float64)
    longest, shortest = (rope.original_length / f for f in (rope.low_freq_factor, rope.high_freq_factor))
    slow = found / rope.factor
    smooth = (rope.original_length / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * slow + smooth * found
    out = np.where(wavelength > longest, slow, np.where(wavelength < shortest, found, between))
    return out.astype(np.float32)


def rotations(frequency: np.ndarray, start: int, stop: int) -> np.ndarray:
    """complex64 [stop - start, head_size / 2]: cos + i sin of the angles, which are products in float32 as
    transformers makes them.
    """
    angles = np.arange(start, stop, dtype=np.float32)[:, None] * frequency
    out = np.empty(angles.shape, dtype=np.complex64)
    out.real, out.imag = np.cos(angles), np.sin(angles)
    return out
