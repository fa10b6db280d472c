"""Keys and values of the positions seen so far."""

from __future__ import annotations

import numpy as np

from tritpress.decoder.architecture import Architecture
from tritpress.errors import InputError

BLOCK = 64
"""Positions of a block, as `_core.attend` reads them: a key block runs along positions, a value block along
the value's own numbers."""


DTYPES = ("float16", "float32")
"""What a cache can hold; float16 is half of what has to be read for a token."""

_F16_MAX = np.float32(65504.0)


class KVCache:
    """Keys [layers][blocks, kv_heads, head_size, BLOCK] and values [layers][blocks, kv_heads, BLOCK,
    head_size] in one of `DTYPES`; what is beyond float16 is kept as its largest number.
    """

    def __init__(self, architecture: Architecture, dtype: str = "float16") -> None:
        if dtype not in DTYPES:
            raise InputError(f"the cache must hold {' or '.join(DTYPES)}, not {dtype!r}")
        self.dtype = np.dtype(dtype)
        self._told = architecture
        self.capacity = 0
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.reserve(1)

    def reserve(self, capacity: int) -> None:
        """Room for at least `capacity` positions; what is there stays."""
        blocks = -(-capacity // BLOCK)
        if blocks * BLOCK <= self.capacity:
            return
        told = self._told
        kept = self.capacity // BLOCK
        for layer in range(told.layers):
            # Where memory ends in between, layers done have more room than `capacity` says, and a later call
            # goes on from there.
            keys = np.zeros((blocks, told.kv_heads, told.head_size, BLOCK), dtype=self.dtype)
            values = np.zeros((blocks, told.kv_heads, BLOCK, told.head_size), dtype=self.dtype)
            if layer < len(self.keys):
                keys[:kept], values[:kept] = self.keys[layer][:kept], self.values[layer][:kept]
                self.keys[layer], self.values[layer] = keys, values
            else:
                self.keys.append(keys)
                self.values.append(values)
        self.capacity = blocks * BLOCK

    def put(self, layer: int, position: int, k: np.ndarray, v: np.ndarray) -> None:
        """Keys and values float32 [kv_heads, head_size] of one position."""
        k, v = self._held(k), self._held(v)
        number, at = divmod(position, BLOCK)
        self.keys[layer][number, :, :, at] = k
        self.values[layer][number, :, at] = v

    def put_many(self, layer: int, first: int, k: np.ndarray, v: np.ndarray) -> None:
        """Keys and values float32 [n, kv_heads, head_size] of the positions from `first` on."""
        k, v = self._held(k), self._held(v)
        done = 0
        while done < len(k):
            number, at = divmod(first + done, BLOCK)
            count = min(len(k) - done, BLOCK - at)
            piece = slice(done, done + count)
            self.keys[layer][number, :, :, at : at + count] = k[piece].transpose(1, 2, 0)
            self.values[layer][number, :, at : at + count] = v[piece].transpose(1, 0, 2)
            done += count

    def _held(self, numbers: np.ndarray) -> np.ndarray:
        if self.dtype == np.float32:
            return numbers
        held: np.ndarray = np.minimum(
            np.maximum(numbers, -_F16_MAX), _F16_MAX
        )  # np.clip takes four times as long
        return held

    def of_head(self, layer: int, head: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys [head_size, stop - start], values [stop - start, head_size]) of one head, in float32."""
        begin, end = start // BLOCK, -(-stop // BLOCK)
        inside = slice(start - begin * BLOCK, stop - begin * BLOCK)
        keys, values = self.keys[layer][begin:end, head], self.values[layer][begin:end, head]
        size = self._told.head_size
        keys = keys.transpose(1, 0, 2).reshape(size, -1)[:, inside]
        values = values.reshape(-1, size)[inside]
        return keys.astype(np.float32, copy=False), values.astype(np.float32, copy=False)

    @property
    def nbytes(self) -> int:
        """Bytes of room reserved."""
        return sum(k.nbytes + v.nbytes for k, v in zip(self.keys, self.values))
