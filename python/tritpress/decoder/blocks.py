"""The blocks of the two kinds of model. Hidden states are float32, [hidden] for one token or [n, hidden]."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tritpress import _core
from tritpress.decoder.architecture import Architecture
from tritpress.decoder.attention import attend_many
from tritpress.decoder.cache import KVCache
from tritpress.decoder.linear import Product
from tritpress.decoder.rope import interleave
from tritpress.decoder.weights import Piece, Weights

_ONE = np.float32(1)
_HALF = np.float32(0.5)
_CUBE = np.float32(0.044715)
_ROOT = np.float32(math.sqrt(2 / math.pi))

Array = np.ndarray


class RmsNorm:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension."""

    def __init__(self, weight: Array, epsilon: float) -> None:
        self.weight = weight
        self.epsilon = epsilon
        self._size = weight.shape[-1]

    def __call__(self, x: Array) -> Array:
        if x.ndim == 1:
            inverse = np.float32(1 / math.sqrt(float(x.dot(x)) / self._size + self.epsilon))
            out: Array = x * inverse
        else:
            squares = np.add.reduce(np.square(x), axis=-1, keepdims=True)
            out = x / np.sqrt(squares / np.float32(self._size) + np.float32(self.epsilon))
        out *= self.weight
        return out


class LayerNorm:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last dimension."""

    def __init__(self, weight: Array, bias: Array, epsilon: float) -> None:
        self.weight, self.bias, self.epsilon = weight, bias, epsilon
        self._size = np.float32(weight.shape[-1])

    def __call__(self, x: Array) -> Array:
        out: Array = x - np.add.reduce(x, axis=-1, keepdims=True) / self._size
        variance = np.add.reduce(np.square(out), axis=-1, keepdims=True) / self._size
        out /= np.sqrt(variance + np.float32(self.epsilon))
        out *= self.weight
        out += self.bias
        return out


def silu(x: Array) -> Array:
    """x / (1 + exp(-x)); exp may overflow to infinity, which gives the right 0."""
    out = np.negative(x)
    np.exp(out, out=out)
    out += _ONE
    return np.divide(x, out, out=out)


def gelu_tanh(x: Array) -> Array:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    out = np.square(x)
    out *= x
    out *= _CUBE
    out += x
    out *= _ROOT
    np.tanh(out, out=out)
    out += _ONE
    out *= x
    out *= _HALF
    return out


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, np.float32(0))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "swish": silu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
}


class Attention:
    """Queries, keys and values from one product, the cache, and the product back to the hidden size.

    With rotary positions the rows of queries and keys are in the order of `rope.interleave`.
    """

    def __init__(
        self, told: Architecture, layer: int, qkv: Product, out: Product, threads: int | None
    ) -> None:
        self.told, self.layer, self.qkv, self.out, self.threads = told, layer, qkv, out, threads
        self.window = told.windows[layer]
        self.norms: Array | None = None
        self._queries = told.heads * told.head_size
        self._keys = self._queries + told.kv_heads * told.head_size
        self._group = told.heads // told.kv_heads
        self._scale = np.float32(told.score_scales[layer])

    def __call__(self, x: Array, cache: KVCache, position: int, rotation: Array | None) -> Array:
        """x [hidden] or [n, hidden] after the norm. `rotation` complex64 [(heads + 2 kv_heads) head_size / 2]
        (with a first dimension n for several tokens) holds the queries' scale too, and 1 for the values.
        """
        told = self.told
        qkv = self.qkv(x)
        if rotation is not None:
            if self.norms is not None:
                self._normalize(qkv[..., : self._keys])
            turned = qkv.view(np.complex64)
            turned *= rotation
        else:
            qkv[..., : self._queries] *= self._scale
        kv_heads, size = told.kv_heads, told.head_size
        if x.ndim == 1:
            k, v = qkv[self._queries :].reshape(2, kv_heads, size)
            cache.put(self.layer, position, k, v)
            q = qkv[: self._queries].reshape(kv_heads, self._group, size)
            stop = position + 1
            start = 0 if self.window is None else max(0, stop - self.window)
            keys, values = cache.keys[self.layer], cache.values[self.layer]
            found = _core.attend(q, keys, values, start, stop, threads=self.threads)
            return self.out(found.reshape(-1))
        count = len(x)
        both = qkv[:, self._queries :].reshape(count, 2, kv_heads, size)
        cache.put_many(self.layer, position, both[:, 0], both[:, 1])
        queries = qkv[:, : self._queries].reshape(count, kv_heads, self._group, size)
        return self.out(attend_many(queries, cache, self.layer, position, self.window))

    def _normalize(self, turned: Array) -> None:
        """RMS norm of every query and key head (Qwen3), in place."""
        heads = turned.reshape(*turned.shape[:-1], -1, self.told.head_size)
        squares = np.add.reduce(np.square(heads), axis=-1, keepdims=True)
        squares /= np.float32(self.told.head_size)
        squares += np.float32(self.told.epsilon)
        np.sqrt(squares, out=squares)
        heads /= squares
        heads *= self.norms


class LlamaBlock:
    """norm, attention, norm, act(gate) * up, down."""

    def __init__(self, told: Architecture, layer: int, weights: Weights) -> None:
        name = f"{weights.prefix}layers.{layer}."
        hidden, size = told.hidden, told.head_size
        attention = f"{name}self_attn."
        orders = interleave(told.heads, size), interleave(told.kv_heads, size)
        qkv = weights.linear(
            Piece(f"{attention}q_proj.weight", told.heads * size, hidden, orders[0]),
            Piece(f"{attention}k_proj.weight", told.kv_heads * size, hidden, orders[1]),
            Piece(f"{attention}v_proj.weight", told.kv_heads * size, hidden),
        )
        out = weights.linear(Piece(f"{attention}o_proj.weight", hidden, told.heads * size))
        self.attention = Attention(told, layer, qkv, out, weights.threads)
        if told.query_key_norms:
            order = interleave(1, size)
            norms = [
                np.tile(weights.vector(f"{attention}{which}_norm.weight", size, order), (heads, 1))
                for which, heads in (("q", told.heads), ("k", told.kv_heads))
            ]
            self.attention.norms = np.concatenate(norms)
        self.gate_up = weights.linear(
            Piece(f"{name}mlp.gate_proj.weight", told.inner, hidden),
            Piece(f"{name}mlp.up_proj.weight", told.inner, hidden),
        )
        self.down = weights.linear(Piece(f"{name}mlp.down_proj.weight", hidden, told.inner))
        self.first = RmsNorm(weights.vector(f"{name}input_layernorm.weight", hidden), told.epsilon)
        self.second = RmsNorm(weights.vector(f"{name}post_attention_layernorm.weight", hidden), told.epsilon)
        self._inner = told.inner
        self._act = ACTIVATIONS[told.activation]

    def __call__(self, x: Array, cache: KVCache, position: int, rotation: Array | None) -> Array:
        x += self.attention(self.first(x), cache, position, rotation)
        both = self.gate_up(self.second(x))
        inner = self._act(both[..., : self._inner])
        inner *= both[..., self._inner :]
        x += self.down(inner)
        return x


class Gpt2Block:
    """norm, attention, norm, widen, act, narrow."""

    def __init__(self, told: Architecture, layer: int, weights: Weights) -> None:
        name = f"{weights.prefix}h.{layer}."
        hidden = told.hidden

        def linear(which: str, rows: int, cols: int) -> Product:
            return weights.linear(Piece(f"{name}{which}.weight", rows, cols, conv1d=True))

        def norm(which: str) -> LayerNorm:
            return layer_norm(weights, f"{name}{which}", told)

        qkv, out = linear("attn.c_attn", 3 * hidden, hidden), linear("attn.c_proj", hidden, hidden)
        self.attention = Attention(told, layer, qkv, out, weights.threads)
        self.wide, self.narrow = (
            linear("mlp.c_fc", told.inner, hidden),
            linear("mlp.c_proj", hidden, told.inner),
        )
        self.first, self.second = norm("ln_1"), norm("ln_2")
        self._act = ACTIVATIONS[told.activation]

    def __call__(self, x: Array, cache: KVCache, position: int, rotation: Array | None) -> Array:
        x += self.attention(self.first(x), cache, position, rotation)
        x += self.narrow(self._act(self.wide(self.second(x))))
        return x


def layer_norm(weights: Weights, name: str, told: Architecture) -> LayerNorm:
    """The LayerNorm `name` of the file."""
    weight, bias = (weights.vector(f"{name}.{part}", told.hidden) for part in ("weight", "bias"))
    return LayerNorm(weight, bias, told.epsilon)
