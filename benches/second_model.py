"""A small GPT-2-like model trained on other text than the reference model's, to see methods on a second kind.

    python benches/second_model.py [--out target/second-model] [--tokens 8000000] [--threads N]

The text is the English of docstrings: those of numpy, torch, transformers, sympy and networkx, which the
extra `hf` brings along, each docstring once and those of one file together as one document. A byte-level BPE
tokenizer of 2,048 tokens is trained on the same text's fine-tuning part, and so is the model (3.7 M
parameters, learned positions, Conv1D weights, biases, LayerNorm, tied head) by Muon and AdamW. Nothing held
out is seen. `benches/methods.py --model target/second-model --text target/second-model/text.jsonl` then
compares the methods on it.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tritpress.evaluate.perplexity import evaluate_model
from tritpress.finetune.mugrokfast import Muon
from tritpress.finetune.number_formats import measure_number_formats
from tritpress.text import TrainingWindows, load_splits, token_windows

PACKAGES = ("numpy", "torch", "transformers", "sympy", "networkx")
VOCABULARY = 2048
WINDOW = 256
BATCH = 8
"""Windows of one step: 2,048 tokens."""
RATE = 4e-3
WARM_UP = 40
"""Steps."""


def docstrings(package: str) -> Iterator[tuple[str, list[str]]]:
    """(path below the package's parent, docstrings of at least 200 characters) of each of its files."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    root = Path(found.origin).parent
    for path in sorted(root.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        places = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, places)]
        yield path.relative_to(root.parent).as_posix(), [text for text in texts if len(text) >= 200]


def write_text(path: Path) -> int:
    """One document a file of the packages, as JSON lines; returns the characters in all."""
    seen: set[str] = set()
    characters = 0
    with path.open("w", encoding="utf-8") as out:
        for package in PACKAGES:
            for name, texts in docstrings(package):
                fresh = [text for text in texts if text not in seen]
                seen.update(fresh)
                if fresh:
                    text = "\n\n".join(fresh)
                    characters += len(text)
                    out.write(json.dumps({"text": text, "file": name}) + "\n")
    return characters


def make_tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|endoftext|>")


def make_model() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=WINDOW,
        n_embd=256,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def train(model: torch.nn.Module, windows: TrainingWindows, tokens: int) -> float:
    """Train on so many tokens; the rate falls to 0 towards the end. Returns the minutes it took.

    Forward and backward in the format that this machine multiplies faster.
    """
    matrices: list[Tensor] = [p for n, p in model.named_parameters() if p.ndim == 2 and "transformer.h." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "transformer.h." in n)]
    inner = [
        Muon(matrices, lr=RATE, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    half = measure_number_formats()["autocast"] == "bfloat16"
    started = said = time.monotonic()
    steps = max(1, tokens // (BATCH * WINDOW))
    model.train()
    for step in range(steps):
        used = step / steps
        factor = min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * used))
        for optimizer in inner:
            for group in optimizer.param_groups:
                group["lr"] = RATE * factor
        ids = torch.from_numpy(windows.take(step * BATCH, BATCH))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in inner:
            optimizer.step()
            optimizer.zero_grad()
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{used:4.0%} step {step} loss {loss.item():.3f}", flush=True)
    return (time.monotonic() - started) / 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("target/second-model"))
    parser.add_argument("--tokens", type=int, default=8_000_000)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = arguments.out / "text.jsonl"
    print(f"{write_text(text):,} characters of text")
    splits = load_splits([text])
    tokenizer = make_tokenizer([document.text for document in splits.fine_tuning])
    model = make_model()
    held_out = token_windows(tokenizer, splits.held_out, WINDOW, 128)
    windows = TrainingWindows(tokenizer, splits.fine_tuning, WINDOW, 0)
    minutes = train(model, windows, arguments.tokens)
    found = evaluate_model(model, held_out)
    told = f"held-out perplexity {found.perplexity:.3f}, top-1 {found.top1:.4f}"
    print(f"{arguments.tokens:,} tokens in {minutes:.0f} minutes: {told}")
    model.half().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
