"""Keys and values of the positions seen so far."""

from __future__ import annotations

import numpy as np

from tritpress.decoder.architecture import Architecture

BLOCK = 64
"""Positions of a block, as `_core.attend` reads them: a key block runs along positions, a value block along
the value's own numbers."""


class KVCache:
    """float32 keys [layers][blocks, kv_heads, head_size, BLOCK] and values [layers][blocks, kv_heads, BLOCK,
    head_size].
    """

    def __init__(self, architecture: Architecture) -> None:
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
            keys = np.zeros((blocks, told.kv_heads, told.head_size, BLOCK), dtype=np.float32)
            values = np.zeros((blocks, told.kv_heads, BLOCK, told.head_size), dtype=np.float32)
            if kept:
                keys[:kept], values[:kept] = self.keys[layer], self.values[layer]
                self.keys[layer], self.values[layer] = keys, values
            else:
                self.keys.append(keys)
                self.values.append(values)
        self.capacity = blocks * BLOCK

    def put(self, layer: int, position: int, k: np.ndarray, v: np.ndarray) -> None:
        """Keys and values [kv_heads, head_size] of one position."""
        number, at = divmod(position, BLOCK)
        self.keys[layer][number, :, :, at] = k
        self.values[layer][number, :, at] = v

    def put_many(self, layer: int, first: int, k: np.ndarray, v: np.ndarray) -> None:
        """Keys and values [n, kv_heads, head_size] of the positions from `first` on."""
        done = 0
        while done < len(k):
            number, at = divmod(first + done, BLOCK)
            count = min(len(k) - done, BLOCK - at)
            piece = slice(done, done + count)
            self.keys[layer][number, :, :, at : at + count] = k[piece].transpose(1, 2, 0)
            self.values[layer][number, :, at : at + count] = v[piece].transpose(1, 0, 2)
            done += count

    def of_head(self, layer: int, head: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys [head_size, stop - start], values [stop - start, head_size]) of one head."""
        begin, end = start // BLOCK, -(-stop // BLOCK)
        inside = slice(start - begin * BLOCK, stop - begin * BLOCK)
        size = self._told.head_size
        return (
            self.keys[layer][begin:end, head].transpose(1, 0, 2).reshape(size, -1)[:, inside],
            self.values[layer][begin:end, head].reshape(-1, size)[inside],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of room reserved."""
        return sum(k.nbytes + v.nbytes for k, v in zip(self.keys, self.values))
