"""`--text self`: the model writes its own text by sampling, for when there is none (as in LLM-QAT, Liu et al.
2023). What is measured on it says how well the pressed model keeps to the original, not how well it reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from tritpress.errors import InputError
from tritpress.formats.output import write_atomically
from tritpress.steps.work import Work
from tritpress.text import SPLITS, Document, Splits, drop_near_duplicates

BATCH = 16
"""Texts sampled at a time."""
TRAINING_TOKENS = 500_000
"""Fine-tuning text written at most; longer trainings see it more than once."""
SPARE = 1.1
"""Tokens written for each one needed: text does not always come back as the tokens it was sampled in."""
PATIENCE = 8
"""Batches in a row without text after which the model is taken for one that writes none."""


def self_written_splits(work: Work) -> Splits:
    """The four parts, written by the original model at temperature 1 and kept in the work folder.

    Each part gets what the run will use of it. The seed decides the text; a resumed run finds the parts that
    were whole again. Raises `InputError` when the model writes nothing.
    """
    needed = {part: math.ceil(tokens * SPARE) for part, tokens in tokens_needed(work).items()}
    parts: dict[str, list[Document]] = {}
    for number, part in enumerate(SPLITS):
        path = work.folder / f"self-text-{part}.jsonl"
        if not path.is_file():
            lines = [json.dumps(row, ensure_ascii=False) for row in _write(work, number, needed)]
            write_atomically(path, "\n".join(lines) + "\n")
        # not splitlines: the texts may hold line ends of other kinds than \n, which JSON leaves as they are
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
        parts[part] = [Document(row["name"], row["text"]) for row in rows]
    parts, dropped = drop_near_duplicates(parts)
    empty = [part for part in SPLITS if not parts[part]]
    if empty:
        raise InputError(
            f"{work.source.path} writes the same text over and over, so none is left for {empty[0]}: "
            "give text with --text"
        )
    source = f"written by the model itself (temperature 1, seed {work.config.seed})"
    return Splits(source, **parts, left_out=len(dropped))


def tokens_needed(work: Work) -> dict[str, int]:
    """Part -> tokens of it that the run uses."""
    config = work.config
    training = min(config.tokens or TRAINING_TOKENS, TRAINING_TOKENS) if work.may_train else 0
    return {
        "calibration": config.calibration_tokens,
        "fine_tuning": max(training, work.window),
        "validation": config.evaluation_tokens // 2,
        "held_out": config.evaluation_tokens,
    }


def _write(work: Work, part_number: int, needed: dict[str, int]) -> Iterator[dict[str, str]]:
    """The texts of one part, of whose tokens each part needs so many."""
    import torch

    from tritpress.nn.paging import holding

    if not work.source.architecture.endswith(("ForCausalLM", "LMHeadModel")) and not hasattr(
        work.original, "generate"
    ):
        raise InputError(f"{work.source.path} is no model that writes text: give text with --text")
    window, part = work.window, SPLITS[part_number]
    total, done = sum(needed.values()), sum(needed[before] for before in SPLITS[:part_number])
    start = _start_token(work)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), holding(work.original):
        torch.manual_seed(len(SPLITS) * work.config.seed + part_number)
        written = number = idle = 0
        while written < needed[part]:
            work.context.check()
            rows = _sample(work, start, window)
            idle = 0 if any(text.strip() for text, _ in rows) else idle + 1
            if idle >= PATIENCE:
                raise InputError(f"{work.source.path} writes no text by itself: give text with --text")
            for text, tokens in rows:
                if text.strip():
                    number += 1
                    written += tokens
                    yield {"part": part, "name": f"self/{part}/{number:06d}", "text": text}
            work.context.emit(
                "step.progress",
                step=1,
                done=min(total, done + written),
                total=total,
                detail="tokens of the model's own text",
            )


def _start_token(work: Work) -> int | None:
    """What a text begins with; None where the model has no such token and a drawn one must do."""
    known = work.vocabulary
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(work.tokenizer, name, None)
        if isinstance(found, int) and (known is None or found < known):
            return found
    return None


def _sample(work: Work, start: int | None, length: int) -> list[tuple[str, int]]:
    """`BATCH` texts of at most `length` tokens, each with its number of tokens."""
    import torch

    model: Any = work.original
    vocabulary = int(model.config.vocab_size)
    first_B1 = torch.randint(0, vocabulary, (BATCH, 1)) if start is None else torch.full((BATCH, 1), start)
    first_B1 = first_B1.to(work.device)
    end = getattr(work.tokenizer, "eos_token_id", None)
    out_BT = model.generate(
        first_B1,
        attention_mask=torch.ones_like(first_B1),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length,
        pad_token_id=end if end is not None and end < vocabulary else 0,
    )
    skip = 0 if start is None else 1
    texts = []
    for row in out_BT[:, skip:].tolist():
        if end is not None and end in row:
            row = row[: row.index(end)]
        texts.append((work.tokenizer.decode(row, skip_special_tokens=True), len(row)))
    return texts
