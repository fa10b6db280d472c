"""Text from a packed or plain model: what `tritpress generate` prints. Needs the extra `hf`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tritpress.errors import InputError, UsageError


def generate(
    path: str | Path,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    activation_bits: int | None = 8,
    device: str = "cpu",
) -> dict[str, Any]:
    """Continue `prompt` with the model in `path`.

    `temperature` 0 takes the likeliest token each time, above 0 draws with `seed` from the `top_p` share of
    the probability. Returns {"text" (the new text alone), "prompt", "tokens" (new ones), "tokens_per_s"
    (prompt included in the time), "seconds", "stopped": "eos" | "length"}.

    Raises `UsageError` for a bad option, `InputError` for a directory that cannot be used.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not 0.0 <= temperature <= 100.0:
        raise UsageError(f"temperature must be from 0 (greedy) to 100, not {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise UsageError(f"top_p must be above 0 and at most 1, not {top_p}")
    from tritpress.formats.huggingface import load_tokenizer, need_transformers

    need_transformers("generating text")
    from tritpress.load import load

    model = load(path, activation_bits=activation_bits, device=device)
    return generate_with(
        model, load_tokenizer(path), prompt, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )


def generate_with(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 100,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """`generate` with a model and tokenizer that are open already."""
    import torch

    from tritpress.formats.huggingface import quiet_transformers

    tokens = tokenizer(prompt)["input_ids"] if prompt else []
    eos = _eos(model, tokenizer)
    if not tokens:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
        if start is None:
            raise InputError("the prompt is empty and the model has no token to begin with; give a prompt")
        tokens = [start]
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and len(tokens) + max_new_tokens > longest:
        if len(tokens) >= longest:
            raise InputError(f"the prompt has {len(tokens)} tokens, the model takes {longest}; shorten it")
        max_new_tokens = longest - len(tokens)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if max(tokens) >= vocabulary:
        raise InputError(
            f"the tokenizer gives token {max(tokens)}, the model knows {vocabulary}: they do not fit"
        )
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
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
            **(
                drawn
                if temperature > 0
                else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            ),
        )
        seconds = time.perf_counter() - started
    new = out[0, len(tokens) :].tolist()
    ended = bool(new) and eos is not None and new[-1] == eos
    return {
        "prompt": prompt,
        "text": tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=False),
        "tokens": len(new),
        "tokens_per_s": len(new) / seconds,
        "seconds": seconds,
        "stopped": "eos" if ended else "length",
    }


def _eos(model: Any, tokenizer: Any) -> int | None:
    """The tokenizer's end of text; the configuration's is often a default that stands for an ordinary
    token.
    """
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    named = getattr(model.config, "eos_token_id", None)
    return (named[0] if named else None) if isinstance(named, list) else named
