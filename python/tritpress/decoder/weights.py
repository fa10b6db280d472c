"""From a packed directory to the decoder's products, one tensor after the other.

Ternary codes go straight into the kernels' layout, so loading needs little more memory than the result.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tritpress.config import MemoryFormat
from tritpress.decoder.architecture import UnsupportedModel
from tritpress.decoder.linear import INT8_BLOCK_ROWS, Beside, Dense, Int8Rows, Part, Product, Ternary
from tritpress.errors import InputError
from tritpress.formats.dense import decode_rows
from tritpress.formats.packed_reader import PackedModel, check_scales
from tritpress.formats.source import read_raw

DENSE_HEAD_WEIGHTS = 1 << 22
"""An int8 head of at most this many weights is kept in float32: it stays in the cache."""

_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(bias|masked_bias))$")
"""Tables that older files carry and the decoder makes itself."""


@dataclass(frozen=True)
class Piece:
    """A weight as the model uses it: [rows, cols], rows in the order `order` of the file's if given.
    `conv1d`: where it was not pressed, the file has [cols, rows] (GPT-2).
    """

    weight: str
    rows: int
    cols: int
    order: np.ndarray | None = None
    conv1d: bool = False


class Weights:
    """Reads a model's tensors by name and keeps the account of what was read."""

    def __init__(
        self, packed: PackedModel, prefix: str, threads: int | None, format: MemoryFormat = "2bit"
    ) -> None:
        """`prefix` is that of the full model (`model.`, `transformer.`); a bare model's file lacks it."""
        self.packed = packed
        self.threads = threads
        self.format: MemoryFormat = format
        self._names = set(packed.names())
        self.prefix = prefix if any(name.startswith(prefix) for name in self._names) else ""
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._names

    def vector(self, name: str, size: int, order: np.ndarray | None = None) -> np.ndarray:
        """A norm's weight or a bias: float32 [size]."""
        self._need(name, (size,))
        values = self.packed.dense(name).astype(np.float32)
        return values if order is None else values[order]

    def table(self, name: str, rows: int, cols: int) -> np.ndarray:
        """A small table whole: float32 [rows, cols]."""
        self._need(name, (rows, cols))
        return self.packed.dense(name).astype(np.float32)

    def linear(self, *pieces: Piece) -> Product:
        """The product with one weight, or with several of the same input stacked along their outputs."""
        if all(piece.weight in self.packed.tensors for piece in pieces):
            return Ternary([self._part(piece) for piece in pieces], self.threads, self.format)
        found: list[Product] = [
            Ternary([self._part(piece)], self.threads, self.format)
            if piece.weight in self.packed.tensors
            else self._dense(piece)
            for piece in pieces
        ]
        return found[0] if len(found) == 1 else Beside(found)

    def head(self, name: str, rows: int, cols: int) -> Product:
        """The output head: ternary, int8 rows on the kernels, or float32."""
        if name not in self.packed.int8 or rows * cols <= DENSE_HEAD_WEIGHTS:
            return self.linear(Piece(name, rows, cols))
        self._need(name, (rows, cols))
        q8, scale = self.packed.entries[f"{name}.q8"], self.packed.entries[f"{name}.q8_scale"]
        scales = read_raw(scale)
        check_scales(scales, scale.file, name)
        made = Int8Rows(self.threads)
        for start in range(0, rows, INT8_BLOCK_ROWS):
            stop = min(rows, start + INT8_BLOCK_ROWS)
            made.append(read_raw(q8, start * cols, stop * cols).reshape(-1, cols), scales[start:stop])
        return made

    def embedding(self, name: str, rows: int, cols: int) -> Embedding:
        """The embedding's rows, read from the file as they are asked for."""
        self._need(name, (rows, cols))
        return Embedding(self.packed, name)

    def refuse_unknown(self) -> None:
        """`UnsupportedModel` when the file has tensors that nothing asked for: the model is another one."""
        left = sorted(n for n in self._names - self._used if not _BUFFERS.search(n))
        if left:
            raise UnsupportedModel(f"{left[0]} is no tensor of this architecture")

    def note(self, name: str) -> None:
        """Count a tensor as known that is not read (a tied head stored twice)."""
        self._used.add(name)

    def _need(self, name: str, shape: Sequence[int]) -> None:
        if name not in self._names:
            raise InputError(f"{self.packed.path} lacks weights that the model needs: {name}")
        found = self.packed.shape(name)
        if name in self.packed.tensors:
            found = self.packed.tensors[name].shape
        if tuple(found) != tuple(shape):
            raise InputError(
                f"{self.packed.path}: {name} is {list(found)} where config.json makes it {list(shape)}"
            )
        self._used.add(name)

    def _bias(self, piece: Piece) -> np.ndarray | None:
        name = piece.weight.removesuffix("weight") + "bias"
        return self.vector(name, piece.rows, piece.order) if self.has(name) else None

    def _part(self, piece: Piece) -> Part:
        self._need(piece.weight, (piece.rows, piece.cols))
        codes, scales, info = self.packed.ternary(piece.weight)
        if piece.order is not None:
            codes, scales = codes[:, piece.order], scales[:, piece.order]
        return Part(codes, scales, info.kernel_group_size, info.cols, self._bias(piece))

    def _dense(self, piece: Piece) -> Dense:
        stored = (piece.cols, piece.rows) if piece.conv1d else (piece.rows, piece.cols)
        self._need(piece.weight, stored)
        weight = np.empty(stored, dtype=np.float32)
        flat, at = weight.reshape(-1), 0
        for chunk in self.packed.dense_chunks(piece.weight):
            flat[at : at + chunk.size] = chunk.reshape(-1)
            at += chunk.size
        if piece.conv1d:
            weight = weight.T
        return Dense(weight if piece.order is None else weight[piece.order], self._bias(piece))


class Embedding:
    """Rows of the embedding read from the file one by one: a token needs one row, the table may be large."""

    def __init__(self, packed: PackedModel, name: str) -> None:
        self.name = name
        self._packed = packed
        self._ternary, self._int8 = name in packed.tensors, name in packed.int8
        self.rows, self.cols = packed.shape(name)
        if self._ternary:
            return
        self._entry = packed.entries[f"{name}.q8" if self._int8 else name]
        if not self._int8 and self._entry.dtype != "F16":
            raise InputError(
                f"{packed.path}: the embedding {name} is {self._entry.dtype}, not F16 or int8 rows"
            )
        self._scales = read_raw(packed.entries[f"{name}.q8_scale"]) if self._int8 else np.zeros(0, np.float16)
        check_scales(self._scales, self._entry.file, name)

    def row(self, token: int) -> np.ndarray:
        """float32 [cols] as the format decodes it."""
        if self._ternary:
            return self._packed.dequantized_rows(self.name, token, token + 1)[0].astype(np.float32)
        values = read_raw(self._entry, token * self.cols, (token + 1) * self.cols)
        if self._int8:
            values = decode_rows(values[None], self._scales[token : token + 1], self.name)[0]
        return values.astype(np.float32)

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """float32 [n, cols] of the tokens [n]."""
        return np.stack([self.row(int(token)) for token in tokens])
