"""The decoder: tokens in, logits out, the keys and values of what went before in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tritpress.config import MemoryFormat, check_memory_format
from tritpress.decoder.architecture import Architecture, read_architecture
from tritpress.decoder.blas import one_thread
from tritpress.decoder.blocks import Gpt2Block, LlamaBlock, RmsNorm, layer_norm
from tritpress.decoder.cache import KVCache
from tritpress.decoder.linear import Product
from tritpress.decoder.rope import frequencies, rotations
from tritpress.decoder.weights import Weights
from tritpress.errors import InputError
from tritpress.formats.packed_reader import PackedModel, open_packed

PROMPT_CHUNK = 128
"""Tokens of a prompt that go through the blocks at once: bounds the memory of a long one."""

_GROWTH = 256
"""Positions by which the cache grows at least."""


class Decoder:
    """A Llama-like or GPT-2-like model out of a packed directory, int8 activations, float32 in between.

    `forward` takes the next tokens of one sequence; `reset` begins another. Not for several Python threads at
    once: it has one cache.
    """

    def __init__(
        self,
        packed: PackedModel,
        threads: int | None = None,
        cache: str = "float16",
        format: MemoryFormat = "2bit",
    ) -> None:
        """`threads` of the kernels; None: their own choice. `cache`: "float16" or "float32", what keys and
        values are held as. `format`: how the kernels hold the codes; what is computed is the same bit for
        bit.

        Raises `UnsupportedModel` for an architecture that transformers must run, `InputError` for tensors
        that are missing, damaged or of the wrong shape, `UsageError` for an unknown format.
        """
        check_memory_format(format)
        told = read_architecture(packed.config)
        weights = Weights(packed, "transformer." if told.gpt2 else "model.", threads, format)
        names = ("wte", "lm_head") if told.gpt2 else ("embed_tokens", "lm_head")
        embedding, head = f"{weights.prefix}{names[0]}.weight", f"{names[1]}.weight"
        if told.tied:
            if not weights.has(embedding) and weights.has(head):
                embedding = head  # the source keeps the tied pair under the head's name
            elif weights.has(head):
                weights.note(head)
            head = embedding
        self.architecture: Architecture = told
        self._embedding = weights.embedding(embedding, told.vocabulary, told.hidden)
        self._head: Product = weights.head(head, told.vocabulary, told.hidden)
        block = Gpt2Block if told.gpt2 else LlamaBlock
        self._blocks = [block(told, layer, weights) for layer in range(told.layers)]
        if told.rope is None:
            self._positions = weights.table(f"{weights.prefix}wpe.weight", told.longest, told.hidden)
            self._norm: RmsNorm | object = layer_norm(weights, f"{weights.prefix}ln_f", told)
            self._frequencies = None
        else:
            self._norm = RmsNorm(weights.vector(f"{weights.prefix}norm.weight", told.hidden), told.epsilon)
            self._frequencies = frequencies(told.rope, told.head_size)
        weights.refuse_unknown()
        turned = np.arange(told.heads + 2 * told.kv_heads) < told.heads + told.kv_heads
        self._turned = turned[:, None]
        self._scales = np.where(np.arange(len(turned)) < told.heads, told.score_scales[0], 1.0).astype(
            np.float32
        )[:, None]
        self.cache = KVCache(told, cache)
        self.position = 0

    @classmethod
    def open(
        cls,
        path: str | Path,
        threads: int | None = None,
        cache: str = "float16",
        format: MemoryFormat = "2bit",
    ) -> Decoder:
        """The decoder of a packed directory; see `__init__` for the options and for what it raises."""
        return cls(open_packed(path, values=False), threads, cache, format)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices and of the cache."""
        return self.weight_bytes + self.cache.nbytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices."""
        return sum(product.nbytes for product in self.products())

    def products(self) -> list[Product]:
        """All matrix products of a token, in their order; the head is the last."""
        found: list[Product] = []
        for block in self._blocks:
            found += [block.attention.qkv, block.attention.out]
            found += (
                [block.gate_up, block.down] if isinstance(block, LlamaBlock) else [block.wide, block.narrow]
            )
        return [*found, self._head]

    def reset(self) -> None:
        """Forget the sequence; the cache's room stays."""
        self.position = 0

    def reserve(self, positions: int) -> None:
        """Room in the cache for a sequence of this length, so that it need not grow on the way."""
        self.cache.reserve(min(positions, self.architecture.longest))

    def forward(self, tokens: Sequence[int] | np.ndarray, *, all_positions: bool = False) -> np.ndarray:
        """Logits float32 [vocabulary] after the last of the next `tokens`, or [n, vocabulary] after each.

        Raises `InputError` for no token, one outside the vocabulary, and more than the model's length.
        """
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        told = self.architecture
        if not len(ids):
            raise InputError("a decoder needs at least one token")
        if ids.min() < 0 or ids.max() >= told.vocabulary:
            wrong = int(ids[(ids < 0) | (ids >= told.vocabulary)][0])
            raise InputError(f"token {wrong} is not one of the model's {told.vocabulary}")
        if self.position + len(ids) > told.longest:
            raise InputError(
                f"{self.position + len(ids)} tokens are more than the {told.longest} that the model takes"
            )
        need = self.position + len(ids)
        if need > self.cache.capacity:
            room = max(need, self.cache.capacity + max(_GROWTH, self.cache.capacity // 2))
            self.cache.reserve(min(room, told.longest))
        found = []
        # exp(-x) of a very negative gate is infinite, and 1 / infinity is 0
        with one_thread(), np.errstate(over="ignore"):
            for start in range(0, len(ids), PROMPT_CHUNK):
                x = self._hidden(ids[start : start + PROMPT_CHUNK])
                if all_positions:
                    found.append(self._head(self._norm(x)).reshape(-1, told.vocabulary))  # type: ignore[operator]
            if all_positions:
                return np.concatenate(found)
            last = x if x.ndim == 1 else x[-1]
            return self._head(self._norm(last))  # type: ignore[operator]

    def _hidden(self, ids: np.ndarray) -> np.ndarray:
        """Hidden states after the blocks: [hidden] for one token, else [n, hidden]."""
        first, stop = self.position, self.position + len(ids)
        one = len(ids) == 1
        x = self._embedding.row(int(ids[0])) if one else self._embedding(ids)
        rotation = None
        if self._frequencies is None:
            x += self._positions[first] if one else self._positions[first:stop]
        else:
            turn = rotations(self._frequencies, first, stop)[:, None]
            turn = np.where(self._turned, turn, np.complex64(1)) * self._scales
            rotation = turn.reshape(-1) if one else turn.reshape(len(ids), -1)
        for block in self._blocks:
            x = block(x, self.cache, first, rotation)
        self.position = stop
        return x
