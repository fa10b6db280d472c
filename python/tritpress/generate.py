"""Text from a packed or plain model: what `tritpress generate` prints.

A packed model that `tritpress.decoder` knows needs `tokenizers` beside the base install; anything else goes
through transformers and needs the extra `hf`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tritpress.config import SEEDS, MemoryFormat, check_memory_format
from tritpress.errors import InputError, UsageError

OnText = Callable[[str], object]


def generate(
    path: str | Path,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    activation_bits: int | None = 8,
    device: str = "cpu",
    threads: int | None = None,
    on_text: OnText | None = None,
    format: MemoryFormat = "2bit",
) -> dict[str, Any]:
    """Continue `prompt` with the model in `path`.

    `temperature` 0 takes the likeliest token each time, above 0 draws with `seed` from the `top_p` share of
    the probability. `threads` of the kernels (None: their own choice). `on_text` is called with each piece of
    new text as it comes. `format`: how the kernels hold the codes in memory ("1.6bit" reads less and computes
    more; the text is the same). Returns {"text" (the new text alone), "prompt", "tokens" (new ones),
    "tokens_per_s" (prompt included in the time), "seconds", "stopped": "eos" | "length", "engine": "decoder"
    | "transformers"}.

    The decoder on the packed kernels runs Llama-like and GPT-2-like packed models on the CPU; all other
    models, devices and `activation_bits=None` go through transformers.

    Raises `UsageError` for a bad option, `InputError` for a directory that cannot be used.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not 0.0 <= temperature <= 100.0:
        raise UsageError(f"temperature must be from 0 (greedy) to 100, not {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise UsageError(f"top_p must be above 0 and at most 1, not {top_p}")
    if not 0 <= seed < SEEDS:
        raise UsageError(f"seed must be from 0 to below 2**63, not {seed}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be 1 or more, not {threads}")
    check_memory_format(format)
    drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    if activation_bits == 8 and device == "cpu":
        from tritpress.formats.packed_reader import is_packed

        if is_packed(path):
            from tritpress.decoder import UnsupportedModel

            try:
                return _by_decoder(Path(path), prompt, max_new_tokens, threads, on_text, format, **drawing)
            except UnsupportedModel:
                pass  # transformers may know it
    from tritpress.formats.huggingface import load_tokenizer, need_transformers

    need_transformers("generating text with this model")
    from tritpress.loading import load

    if threads is not None:
        from tritpress.ops.linear import use_threads

        use_threads(threads)
    model = load(path, activation_bits=activation_bits, device=device, format=format)
    return generate_with(model, load_tokenizer(path), prompt, max_new_tokens, on_text=on_text, **drawing)


def _by_decoder(
    path: Path,
    prompt: str,
    max_new_tokens: int,
    threads: int | None,
    on_text: OnText | None,
    format: MemoryFormat,
    **drawing: Any,
) -> dict[str, Any]:
    """`generate` on the packed kernels. `UnsupportedModel` comes before any work."""
    from tritpress.decoder import Decoder, Sampler, read_architecture
    from tritpress.decoder.tokens import Stream, Tokenizer
    from tritpress.decoder.writing import write_tokens
    from tritpress.formats.packed_reader import open_packed

    packed = open_packed(path, values=False)
    told = read_architecture(packed.config)
    tokenizer: Any = None
    if (path / "tokenizer.json").is_file():
        tokenizer = Tokenizer(path)
        tokens = tokenizer.encode(prompt) if prompt else []
    else:  # an older kind, which transformers turns into tokenizers' own
        from tritpress.formats.huggingface import load_tokenizer

        tokenizer = load_tokenizer(path)
        tokens = tokenizer(prompt)["input_ids"] if prompt else []
    eos = _eos(packed.config.get("eos_token_id"), tokenizer)
    tokens, count = _fit(tokens, tokenizer, eos, told.longest, told.vocabulary, max_new_tokens)
    decoder = Decoder(packed, threads, format=format)

    def decode(found: Sequence[int]) -> str:
        text = tokenizer.decode(found) if isinstance(tokenizer, Tokenizer) else _decode(tokenizer, found)
        return str(text)

    stream = None if on_text is None else Stream(decode, on_text)
    started = time.perf_counter()
    new = write_tokens(
        decoder,
        tokens,
        count,
        Sampler(**drawing),
        eos=() if eos is None else (eos,),
        on_token=None if stream is None else stream.put,
    )
    seconds = time.perf_counter() - started
    if stream is not None:
        stream.end()
    return _result(prompt, new, eos, decode, seconds, "decoder")


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))


def generate_with(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 100,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: OnText | None = None,
) -> dict[str, Any]:
    """`generate` with a model and tokenizer of transformers that are open already."""
    import torch

    from tritpress.decoder.tokens import Stream
    from tritpress.formats.huggingface import quiet_transformers

    tokens = tokenizer(prompt)["input_ids"] if prompt else []
    eos = _eos(getattr(model.config, "eos_token_id", None), tokenizer)
    longest = getattr(model.config, "max_position_embeddings", None)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens, max_new_tokens = _fit(tokens, tokenizer, eos, longest, vocabulary, max_new_tokens)
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}

    def decode(found: Sequence[int]) -> str:
        return _decode(tokenizer, found)

    stream = None if on_text is None else _Streamer(Stream(decode, on_text), eos)
    ids = torch.tensor([tokens], device=model.device)
    with torch.random.fork_rng(), torch.inference_mode(), quiet_transformers():
        torch.manual_seed(seed)
        started = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=eos,
            pad_token_id=eos if eos is not None else 0,
            use_cache=True,
            streamer=stream,
            **(
                drawn
                if temperature > 0
                else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            ),
        )
        seconds = time.perf_counter() - started
    return _result(prompt, out[0, len(tokens) :].tolist(), eos, decode, seconds, "transformers")


class _Streamer:
    """What transformers' `generate` calls with the prompt first and then with each token."""

    def __init__(self, stream: Any, eos: int | None) -> None:
        self._stream, self._eos, self._begun = stream, eos, False

    def put(self, value: Any) -> None:
        if self._begun:
            for token in value.reshape(-1).tolist():
                if token != self._eos:
                    self._stream.put(token)
        self._begun = True

    def end(self) -> None:
        self._stream.end()


def _fit(
    tokens: list[int],
    tokenizer: Any,
    eos: int | None,
    longest: int | None,
    vocabulary: int,
    max_new_tokens: int,
) -> tuple[list[int], int]:
    """(prompt, new tokens) that the model takes: an empty prompt begins with the tokenizer's first token, and
    prompt and text together stay within the model's length.
    """
    if not tokens:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
        if start is None:
            raise InputError("the prompt is empty and the model has no token to begin with; give a prompt")
        tokens = [int(start)]
    if longest is not None and len(tokens) + max_new_tokens > longest:
        if len(tokens) >= longest:
            raise InputError(f"the prompt has {len(tokens)} tokens, the model takes {longest}; shorten it")
        max_new_tokens = longest - len(tokens)
    if max(tokens) >= vocabulary:
        raise InputError(
            f"the tokenizer gives token {max(tokens)}, the model knows {vocabulary}: they do not fit"
        )
    return tokens, max_new_tokens


def _result(
    prompt: str,
    new: list[int],
    eos: int | None,
    decode: Callable[[Sequence[int]], str],
    seconds: float,
    engine: str,
) -> dict[str, Any]:
    ended = bool(new) and eos is not None and new[-1] == eos
    return {
        "prompt": prompt,
        "text": decode(new[:-1] if ended else new),
        "tokens": len(new),
        "tokens_per_s": len(new) / seconds,
        "seconds": seconds,
        "stopped": "eos" if ended else "length",
        "engine": engine,
    }


def _eos(named: Any, tokenizer: Any) -> int | None:
    """The tokenizer's end of text; the configuration's (`named`) is often a default that stands for an
    ordinary token.
    """
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    return (named[0] if named else None) if isinstance(named, list) else named
