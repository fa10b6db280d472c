"""The built-in model: a 5.3 M parameter Llama trained on Python sources, fp16, with its tokenizer."""

from __future__ import annotations

from pathlib import Path


def reference_model_path() -> Path:
    """The packaged Hugging Face directory of the built-in model."""
    return Path(__file__).resolve().parent / "reference_model"


def is_reference_model(path: str | Path) -> bool:
    """Whether `path` is the built-in model's own directory (its text then is the built-in one)."""
    return Path(path).resolve() == reference_model_path()
