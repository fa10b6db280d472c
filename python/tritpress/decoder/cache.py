"""Keys and values of the positions seen so far."""

from __future__ import annotations

import numpy as np

from tritpress.decoder.architecture import Architecture

BLOCK = 64
"""Positions of a block: 16 KB of keys for a head of 64, so that a block's product stays in the cache and is
one of the small ones that OpenBLAS does on one thread and without packing. Measured against 128, 256 and no
blocks."""


class KVCache:
    """float32 keys [layers][blocks, kv_heads, head_size, BLOCK] and values [layers][blocks, kv_heads, BLOCK,
    head_size].

    In memory a key block of shared heads (several queries each) runs along positions, that of single heads
    along the key's own numbers: the faster way for each, seen through the same shape.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._told = architecture
        self.capacity = 0
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.scratch = np.zeros(0, np.float32)
        self.reserve(1)

    def reserve(self, capacity: int) -> None:
        """Room for at least `capacity` positions; what is there stays."""
        blocks = -(-capacity // BLOCK)
        if blocks * BLOCK <= self.capacity:
            return
        told = self._told
        shape = (blocks, told.kv_heads, BLOCK, told.head_size)
        kept = self.capacity // BLOCK
        for layer in range(told.layers):
            values = np.zeros(shape, dtype=np.float32)
            if told.heads > told.kv_heads:
                keys = np.zeros((*shape[:2], told.head_size, BLOCK), dtype=np.float32)
            else:
                keys = np.zeros(shape, dtype=np.float32).transpose(0, 1, 3, 2)
            if kept:
                keys[:kept], values[:kept] = self.keys[layer], self.values[layer]
                self.keys[layer], self.values[layer] = keys, values
            else:
                self.keys.append(keys)
                self.values.append(values)
        self.capacity = blocks * BLOCK
        self.scratch = np.empty(told.heads * self.capacity, dtype=np.float32)

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
        return sum(k.nbytes + v.nbytes for k, v in zip(self.keys, self.values)) + self.scratch.nbytes
