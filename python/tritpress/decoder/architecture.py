"""What a `config.json` says of a model, in one form for all kinds; nothing is guessed.

Defaults of absent keys are those of transformers' configuration classes. A value that this decoder does not
follow to the letter raises `UnsupportedModel`, never a nearly right answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tritpress.errors import InputError

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
ACTIVATIONS = ("silu", "swish", "gelu_new", "gelu_pytorch_tanh", "relu")
ROPE_TYPES = ("default", "linear", "llama3")
MOST_LAYERS = 10_000


class UnsupportedModel(Exception):
    """This decoder does not run the model; the message says why. transformers may."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions: `type` is one of `ROPE_TYPES`; the rest is llama3's and linear's."""

    type: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 0


@dataclass(frozen=True)
class Architecture:
    """Sizes and switches of a decoder.

    `windows`: for each block the number of last positions that it attends to, None for all of them.
    `score_scales`: for each block what the products of queries and keys are multiplied by.
    `rope` is None for learned positions (GPT-2).
    """

    model_type: str
    vocabulary: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    activation: str
    epsilon: float
    longest: int
    tied: bool
    rope: Rope | None
    windows: tuple[int | None, ...]
    score_scales: tuple[float, ...]
    query_key_norms: bool

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.windows)

    @property
    def gpt2(self) -> bool:
        """LayerNorm, learned positions and two matrices in the MLP rather than Llama's three."""
        return self.rope is None


def read_architecture(config: dict[str, Any]) -> Architecture:
    """The architecture of a Hugging Face configuration.

    Raises `UnsupportedModel` for kinds and options that the decoder does not have, `InputError` for sizes
    that are missing or make no sense.
    """
    kind = config.get("model_type")
    if kind in LLAMA_LIKE:
        return _llama(config, str(kind))
    if kind == "gpt2":
        return _gpt2(config)
    raise UnsupportedModel(f"model_type {kind!r} is not one of {', '.join((*LLAMA_LIKE, 'gpt2'))}")


def _llama(config: dict[str, Any], kind: str) -> Architecture:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    layers = _layers(config, "num_hidden_layers")
    kv_default = {"llama": heads, "mistral": 8}.get(kind, 32)
    kv_heads = heads if config.get("num_key_value_heads", kv_default) is None else _size(
        config, "num_key_value_heads", kv_default
    )  # fmt: skip
    head_size = _size(config, "head_dim", 128) if kind == "qwen3" else None
    if head_size is None:
        asked = config.get("head_dim") is not None and kind != "qwen2"
        head_size = _size(config, "head_dim") if asked else hidden // heads
    if heads % kv_heads or head_size % 2 or not head_size:
        raise InputError(f"{heads} heads of {head_size} with {kv_heads} for keys do not make an attention")
    activation = _activation(config.get("hidden_act", "silu"))
    return Architecture(
        model_type=kind,
        vocabulary=_size(config, "vocab_size"),
        hidden=hidden,
        inner=_size(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        activation=activation,
        epsilon=_number(config, "rms_norm_eps", 1e-6),
        longest=_size(config, "max_position_embeddings", {"llama": 2048, "mistral": 131072}.get(kind, 32768)),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope=_rope(config),
        windows=_windows(config, kind, layers),
        score_scales=(head_size**-0.5,) * layers,
        query_key_norms=kind == "qwen3",
    )


def _gpt2(config: dict[str, Any]) -> Architecture:
    hidden, heads, layers = _size(config, "n_embd"), _size(config, "n_head"), _layers(config, "n_layer")
    if config.get("add_cross_attention"):
        raise UnsupportedModel("cross attention is not part of this decoder")
    if hidden % heads:
        raise InputError(f"n_embd {hidden} is not a multiple of n_head {heads}")
    scale = (hidden // heads) ** -0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = bool(config.get("scale_attn_by_inverse_layer_idx", False))
    return Architecture(
        model_type="gpt2",
        vocabulary=_size(config, "vocab_size"),
        hidden=hidden,
        inner=4 * hidden if config.get("n_inner") is None else _size(config, "n_inner"),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        activation=_activation(config.get("activation_function", "gelu_new")),
        epsilon=_number(config, "layer_norm_epsilon", 1e-5),
        longest=_size(config, "n_positions", 1024),
        tied=bool(config.get("tie_word_embeddings", True)),
        rope=None,
        windows=(None,) * layers,
        score_scales=tuple(scale / (i + 1) if by_layer else scale for i in range(layers)),
        query_key_norms=False,
    )


def _rope(config: dict[str, Any]) -> Rope:
    """Of `rope_scaling` (older files) or `rope_parameters`; `rope_theta` stands in either or beside them."""
    told = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(told, dict):
        raise InputError(f"config.json: rope parameters must be an object, not {told!r}")
    kind = told.get("rope_type", told.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(f"rope type {kind!r} is not one of {', '.join(ROPE_TYPES)}")
    share = told.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in (None, 1, 1.0):
        raise UnsupportedModel(f"partial_rotary_factor {share} is not 1")
    theta = _number(told, "rope_theta", _number(config, "rope_theta", 10000.0))
    if kind == "default":
        return Rope("default", theta)
    if kind == "linear":
        return Rope("linear", theta, _number(told, "factor"))
    length = config.get("original_max_position_embeddings", told.get("original_max_position_embeddings"))
    if length is None:
        length = config.get("max_position_embeddings", 2048)
    if isinstance(length, float) and length.is_integer():
        length = int(length)
    low, high = _number(told, "low_freq_factor"), _number(told, "high_freq_factor")
    if low == high:
        raise InputError(f"config.json: low_freq_factor and high_freq_factor are both {low}, but must differ")
    key = "original_max_position_embeddings"
    return Rope("llama3", theta, _number(told, "factor"), low, high, _size({key: length}, key))


def _windows(config: dict[str, Any], kind: str, layers: int) -> tuple[int | None, ...]:
    if kind == "llama":
        return (None,) * layers
    window = config.get("sliding_window", 4096)
    if kind == "mistral":
        if "layer_types" in config:
            raise UnsupportedModel("a Mistral model with layer_types")
        return (None if window is None else _size(config, "sliding_window", 4096),) * layers
    if not config.get("use_sliding_window", False) or window is None:
        return (None,) * layers
    window = _size(config, "sliding_window", 4096)
    types = config.get("layer_types")
    if types is None:
        first = config.get("max_window_layers", 28)
        if type(first) is not int:
            raise InputError(f"config.json: max_window_layers must be a whole number, not {first!r}")
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if not isinstance(types, list) or any(t not in ("sliding_attention", "full_attention") for t in types):
        types = []
    if len(types) != layers:
        raise UnsupportedModel("layer_types other than full and sliding attention for each block")
    return tuple(window if t == "sliding_attention" else None for t in types)


def _activation(name: Any) -> str:
    if name not in ACTIVATIONS:
        raise UnsupportedModel(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return str(name)


def _layers(config: dict[str, Any], key: str) -> int:
    """Blocks of the model: something is held for each, so that a number beyond all models is refused."""
    layers = _size(config, key)
    if layers > MOST_LAYERS:
        raise InputError(f"config.json: {key} is {layers}, more than {MOST_LAYERS}")
    return layers


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 0 < value < 2**31:
        raise InputError(f"config.json: {key} must be a whole number above 0, not {value!r}")
    return value


def _number(config: dict[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"config.json: {key} must be a number above 0, not {value!r}")
    return float(value)
