"""Text to tokens and back with the `tokenizers` package alone, and text that grows token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tritpress.errors import InputError, TritpressError
from tritpress.formats.source import read_json, safe_file

_TAIL = 8
"""Tokens before the new ones that are decoded with them: spaces and long characters need them."""


class Tokenizer:
    """`tokenizer.json` of a model directory; the names of its special tokens from `tokenizer_config.json`."""

    def __init__(self, path: str | Path) -> None:
        """Raises `InputError` for a directory without a usable `tokenizer.json`, `TritpressError` when the
        package `tokenizers` is not installed.
        """
        folder = Path(path)
        if not (folder / "tokenizer.json").is_file():
            raise InputError(f"{folder} has no tokenizer.json, so text cannot be read with this model")
        try:
            from tokenizers import Tokenizer as Fast
        except ImportError as error:
            raise TritpressError("reading text needs tokenizers: pip install tokenizers") from error
        try:
            self._fast = Fast.from_file(str(safe_file(folder, "tokenizer.json")))
        except InputError:
            raise
        except Exception as error:  # tokenizers raises Exception itself
            raise InputError(f"the tokenizer in {folder} cannot be opened: {error}") from error
        self._fast.no_truncation()
        self._fast.no_padding()
        self.bos_token_id = self._special(folder, "bos_token")
        self.eos_token_id = self._special(folder, "eos_token")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with those that the tokenizer itself puts around it."""
        return list(self._fast.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        return str(self._fast.decode(list(tokens), skip_special_tokens=False))

    def _special(self, folder: Path, name: str) -> int | None:
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if not (folder / file).is_file():
                continue
            told: Any = read_json(safe_file(folder, file)).get(name)
            text = told.get("content") if isinstance(told, dict) else told
            if isinstance(text, str):
                found = self._fast.token_to_id(text)
                return None if found is None else int(found)
        return None


class Stream:
    """Gives text out as tokens come, never half a character."""

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: Callable[[str], object]) -> None:
        self._decode, self._on_text = decode, on_text
        self._tokens: list[int] = []
        self._shown = 0  # tokens whose text is out

    def put(self, token: int) -> None:
        """One more token."""
        self._tokens.append(token)
        self._show(finish=False)

    def end(self) -> None:
        """No more tokens: what was held back comes as it is."""
        self._show(finish=True)

    def _show(self, finish: bool) -> None:
        begin = max(0, self._shown - _TAIL)
        before = self._decode(self._tokens[begin : self._shown]) if self._shown else ""
        text = self._decode(self._tokens[begin:])
        if not finish and text.endswith("\ufffd"):
            return  # the first bytes of a character whose last ones are still to come
        self._shown = len(self._tokens)
        if len(text) > len(before):
            self._on_text(text[len(before) :])
