"""Perplexity and top-1 of any model directory, packed or not: what `tritpress eval` prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritpress.devices import choose_device
from tritpress.errors import InputError
from tritpress.evaluate.latency import NO_CACHE, decode_latency
from tritpress.evaluate.perplexity import evaluate_model
from tritpress.formats.huggingface import embedded_tokens, load_tokenizer
from tritpress.formats.packed_reader import is_packed
from tritpress.loading import load
from tritpress.ops.linear import use_threads
from tritpress.text import FIELD, builtin_splits, load_splits, token_windows, windows_sha256


def evaluate_directory(
    path: str | Path,
    text: list[str] | None = None,
    *,
    text_field: str = FIELD,
    tasks: list[str] | None = None,
    task_limit: int | None = None,
    reference: str | Path | None = None,
    window: int = 256,
    tokens: int = 32_768,
    device: str = "auto",
    threads: int | None = None,
    activation_bits: int | None = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate the model in `path` on the held-out part of `text` (the built-in text where none is given).

    The text is split by document exactly as in a compression run, so that figures of the same text can be
    compared; `windows_sha256` of the result is the same where the same tokens were seen. `reference`: a model
    directory to measure `kl` and `agreement` against. `activation_bits`: 8 for the int8 activations of the
    kernels, None for float32 ones (packed models only). `tasks`: lm-eval tasks to score as well
    (`evaluate.tasks`), on `task_limit` documents of each at most. `threads`: of torch and of the kernels,
    from then on in this process.

    Raises `InputError` for a directory or text that cannot be used, `UsageError` for a missing device.
    """
    device = choose_device(device)
    if threads:
        use_threads(threads)
    opened = None
    if tasks:
        from tritpress.evaluate.tasks import open_tasks

        opened = open_tasks(tasks)
    splits = load_splits(text, text_field) if text else builtin_splits()
    tokenizer = load_tokenizer(path)
    model = load(path, activation_bits=activation_bits, device=device)
    settings: Any = model.config
    longest = getattr(settings, "max_position_embeddings", None) or window
    window = min(window, int(longest))
    windows = token_windows(
        tokenizer, splits.held_out, window, max(1, tokens // window), vocabulary=embedded_tokens(model)
    )
    other = None
    if reference is not None:
        other = load(reference, device=device)
        known: Any = other.config
        if known.vocab_size != settings.vocab_size:
            raise InputError(
                f"{reference} has a vocabulary of {known.vocab_size}, {path} one of "
                f"{settings.vocab_size}: only models of one tokenizer can be compared"
            )
    found = evaluate_model(model, windows, reference=other, progress=progress)
    latency = decode_latency(model, windows[0][: max(2, window // 4)])
    scores: list[dict[str, Any]] | None = None
    if opened is not None:
        from tritpress.evaluate.tasks import run_tasks

        scores = [
            {"task": one.task, "metric": one.metric, "value": one.value, "documents": len(one.hits)}
            for one in run_tasks(opened, model, tokenizer, longest=int(longest), limit=task_limit)
        ]
    return {
        "path": str(path),
        "kind": "packed" if is_packed(path) else "plain",
        "bytes": sum(file.stat().st_size for file in Path(path).glob("*.safetensors")),
        **found.figures(),
        "latency_ms": None if latency is None else latency.latency_ms,
        "latency_reason": NO_CACHE if latency is None else None,
        "window": window,
        "windows_sha256": windows_sha256(windows),
        "tasks": scores,
        "text": {"source": splits.source, "held_out_sha256": splits.sha256("held_out")},
    }
