"""Products of activations with the model's matrices; x is float32 [in] (one token) or [n, in].

Ternary weights stay in the kernels' packed form. Matrices that take the same input (queries, keys and values;
gate and up) are stacked into one, so that the activations are quantized once and one call does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tritpress._core import PackedMatrix
from tritpress.config import MemoryFormat

INT8_BLOCK_ROWS = 8192
"""Rows of an int8 head that are turned into planes at once: what loading needs beside the result."""

INT8_PLANES = 6
"""Digits of base 3, each -1, 0 or 1, that hold -127..127 (five reach 121)."""


class Product(Protocol):
    """x [in] -> [out], x [n, in] -> [n, out]; float32."""

    rows: int

    def __call__(self, x: np.ndarray) -> np.ndarray: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Part:
    """One weight of a stack: codes uint8 [planes, out, ceil(in / 4)], scales float16 [planes, out, groups],
    `group_size` as the kernels take it (0: the whole row), bias float32 [out] or None.
    """

    codes: np.ndarray
    scales: np.ndarray
    group_size: int
    cols: int
    bias: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return self.codes.shape[1]


class Ternary:
    """Ternary weights stacked along their outputs, in the order given.

    Parts with the same number of planes and group size share one `PackedMatrix`; the others have their own.
    """

    def __init__(
        self, parts: Sequence[Part], threads: int | None = None, format: MemoryFormat = "2bit"
    ) -> None:
        self.rows = sum(part.rows for part in parts)
        self.threads = threads
        starts = np.cumsum([0, *(part.rows for part in parts)])
        kinds: dict[tuple[int, int], list[int]] = {}
        for i, part in enumerate(parts):
            kinds.setdefault((len(part.codes), part.group_size), []).append(i)
        self.matrices: list[PackedMatrix] = []
        self._places: list[list[tuple[slice, slice]]] = []
        for (_, group_size), members in kinds.items():
            chosen = [parts[i] for i in members]
            codes, scales = (
                arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
                for arrays in ([p.codes for p in chosen], [p.scales for p in chosen])
            )
            shape = (codes.shape[1], chosen[0].cols)
            self.matrices.append(PackedMatrix(codes, scales, group_size, shape, format))
            places, at = [], 0
            for i in members:
                places.append((slice(at, at + parts[i].rows), slice(int(starts[i]), int(starts[i + 1]))))
                at += parts[i].rows
            self._places.append(places)
        biases = [np.zeros(p.rows, np.float32) if p.bias is None else p.bias for p in parts]
        self.bias = np.concatenate(biases) if any(p.bias is not None for p in parts) else None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if len(self.matrices) == 1:
            matrix = self.matrices[0]
            out = matrix.matvec(x, self.threads) if x.ndim == 1 else matrix.matmul(x, self.threads)
        else:
            out = np.empty((*x.shape[:-1], self.rows), dtype=np.float32)
            for matrix, places in zip(self.matrices, self._places):
                y = matrix.matvec(x, self.threads) if x.ndim == 1 else matrix.matmul(x, self.threads)
                for source, target in places:
                    out[..., target] = y[..., source]
        if self.bias is not None:
            out += self.bias
        return out

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)


class Dense:
    """A weight [out, in] that was not pressed, in float32."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        self.weight = np.ascontiguousarray(weight, dtype=np.float32)
        self.bias = bias
        self.rows = self.weight.shape[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out: np.ndarray = self.weight @ x if x.ndim == 1 else x @ self.weight.T
        if self.bias is not None:
            out += self.bias
        return out

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


class Beside:
    """Several products of the same input, their outputs one after the other."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = list(products)
        self.rows = sum(product.rows for product in products)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([product(x) for product in self.products], axis=-1)

    @property
    def nbytes(self) -> int:
        return sum(product.nbytes for product in self.products)


def _digit_table() -> np.ndarray:
    """uint32 [65536]: for two int8 values, seen as one little-endian uint16, the two 2-bit codes of each of
    their `INT8_PLANES` balanced base-3 digits: plane p's nibble at bits 4p.
    """
    values = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int32)
    nibbles = np.zeros(256, dtype=np.uint32)
    for plane in range(INT8_PLANES):
        digit = (values + 1) % 3 - 1  # -1, 0 or 1, with (values - digit) divisible by 3
        nibbles |= (digit + 1).astype(np.uint32) << np.uint32(4 * plane)
        values = (values - digit) // 3
    pairs = np.arange(65536)
    return nibbles[pairs & 255] | nibbles[pairs >> 8] << np.uint32(2)


class Int8Rows:
    """Rows q8 [out, in] times a scale each, on the ternary kernels: a matrix too large to keep in float32.

    An int8 value is the sum of six digits -1, 0, 1 times 1, 3, 9, .. 243, so the rows are six planes with
    those scales, exact in float16; the row's own scale is multiplied on at the end. Activations are rounded
    to int8 twice, the second time what the first left over, which makes them good to about 1 in 32,000 of
    the largest. (The format decodes int8 rows to float16; that last rounding, 1 in 4,000 of each weight, is
    not repeated here.) One token is two for the kernels, for which five codes in a byte would be turned into
    two bits each time: these matrices have two bits from the start.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.rows = 0
        self.matrices: list[PackedMatrix] = []
        self._scales: list[np.ndarray] = []
        self._scale = np.zeros(0, np.float32)

    def append(self, q8: np.ndarray, scales: np.ndarray) -> None:
        """Add rows int8 [n, in] with scales float16 [n]; n is best `INT8_BLOCK_ROWS`."""
        rows, cols = q8.shape
        padded = np.zeros((rows, -(-cols // 4) * 4), dtype=np.int8) if cols % 4 else q8
        if cols % 4:
            padded[:, :cols] = q8
        table = _digit_table()
        halves = table[np.ascontiguousarray(padded).view(np.uint16)].reshape(rows, -1, 2)
        low, high = np.ascontiguousarray(halves[:, :, 0]), np.ascontiguousarray(halves[:, :, 1])
        codes = np.empty((INT8_PLANES, rows, low.shape[1]), dtype=np.uint8)
        for plane in range(INT8_PLANES):
            shift, mask = np.uint32(4 * plane), np.uint32(15)
            codes[plane] = low >> shift & mask | (high >> shift & mask) << np.uint32(4)
        powers = (3.0 ** np.arange(INT8_PLANES)).astype(np.float16)
        plane_scales = np.ascontiguousarray(np.broadcast_to(powers[:, None, None], (INT8_PLANES, rows, 1)))
        self.matrices.append(PackedMatrix(codes, plane_scales, group_size=0, shape=(rows, cols)))
        self._scales.append(scales.astype(np.float32))
        self._scale = np.concatenate(self._scales)
        self.rows += rows

    def __call__(self, x: np.ndarray) -> np.ndarray:
        tokens = x.reshape(-1, x.shape[-1])
        count = len(tokens)
        step = (np.maximum.reduce(np.abs(tokens), axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
        step[step == 0] = 1
        both = np.empty((2 * count, tokens.shape[1]), dtype=np.float32)
        both[:count] = tokens
        np.divide(tokens, step, out=both[count:])
        np.rint(both[count:], out=both[count:])
        both[count:] *= step
        np.subtract(tokens, both[count:], out=both[count:])
        out = np.empty((count, self.rows), dtype=np.float32)
        at = 0
        for block in self.matrices:
            y = block.matmul(both, self.threads)
            np.add(y[:count], y[count:], out=out[:, at : at + y.shape[1]])
            at += y.shape[1]
        out *= self._scale
        return out.reshape(*x.shape[:-1], self.rows)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.matrices) + self._scale.nbytes
