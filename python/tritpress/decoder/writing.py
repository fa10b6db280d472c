"""The loop that writes: one token after the other until the end of text or of the count."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tritpress.decoder.model import Decoder
from tritpress.decoder.sampling import Sampler


def write_tokens(
    decoder: Decoder,
    prompt: Sequence[int],
    count: int,
    sampler: Sampler,
    *,
    eos: Collection[int] = (),
    on_token: Callable[[int], object] | None = None,
) -> list[int]:
    """At most `count` new tokens after `prompt`, ended early by one of `eos`, which is the last then.

    The decoder begins a new sequence. `on_token` is called with each token but one of `eos`.
    """
    decoder.reset()
    decoder.reserve(len(prompt) + count - 1)
    new: list[int] = []
    logits = decoder.forward(prompt)
    while True:
        token = sampler(logits)
        new.append(token)
        if token in eos:
            return new
        if on_token is not None:
            on_token(token)
        if len(new) == count:
            return new
        logits = decoder.forward([token])
