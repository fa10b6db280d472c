"""Documents as windows of tokens that anyone can redo. Tokenizers are anything callable like those of
transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tritpress.errors import InputError
from tritpress.text.documents import Document


def tokenize(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Token numbers of each text, int64, without special tokens."""
    if not texts:
        return []
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(one, dtype=np.int64) for one in ids]


def check_known(tokens: Sequence[int] | np.ndarray, vocabulary: int | None, what: str) -> None:
    """`InputError` where a token of `what` is none of the model's `vocabulary` (None: not looked at)."""
    largest = int(np.max(tokens, initial=-1))
    if vocabulary is not None and largest >= vocabulary:
        raise InputError(
            f"the tokenizer gives token {largest} for {what}, the model knows {vocabulary} "
            f"(0 to {vocabulary - 1}): tokenizer and model do not fit, or the text spells out a special "
            "token that the model has no embedding for"
        )


def _join(tokenizer: Any, documents: Sequence[Document], vocabulary: int | None) -> np.ndarray:
    """The documents' tokens in the order given, with the tokenizer's eos (if any) between two documents.

    An eos that is none of the model's `vocabulary` (one added to the tokenizer alone) is left out; any other
    such token is an `InputError`.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is not None and vocabulary is not None and eos >= vocabulary:
        eos = None
    pieces: list[np.ndarray] = []
    for document, tokens in zip(
        documents, tokenize(tokenizer, [document.text for document in documents]), strict=True
    ):
        check_known(tokens, vocabulary, f"the text {document.name}")
        if pieces and eos is not None:
            pieces.append(np.array([eos], dtype=np.int64))
        pieces.append(tokens)
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def windows_sha256(windows: np.ndarray) -> str:
    """Hash of windows [n, window] as little-endian int64: where it is the same, so are the tokens."""
    return hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()


def token_windows(
    tokenizer: Any,
    docs: Sequence[Document],
    window: int = 256,
    limit: int | None = None,
    seed: int = 0,
    part: str = "",
    vocabulary: int | None = None,
) -> np.ndarray:
    """int64 [n, window]: the documents as windows of `window` tokens.

    To redo it: sort the documents by name, tokenize each without special tokens, put the tokenizer's eos
    (if it has one, and the model knows it) between two, cut into consecutive windows and drop the remainder,
    which gives m windows. With `limit` below m, window floor(i * m / limit) is taken for i = 0 .. limit - 1.
    Nothing is drawn by chance (`seed` is accepted for the common signature and changes nothing).

    Raises `InputError` when the text does not fill one window, naming `part` (of the text), and for a token
    beyond the `vocabulary` of the model (None: not looked at). Tokenizes every document: for fine-tuning text
    use `TrainingWindows`.
    """
    tokens = _join(tokenizer, sorted(docs, key=lambda d: d.name), vocabulary)
    count = len(tokens) // window
    if count == 0:
        what = f"{part} text" if part else "text"
        raise InputError(
            f"the {what} has {len(tokens)} tokens, which do not fill one window of {window}; give more"
        )
    windows = tokens[: count * window].reshape(count, window)
    if limit is not None and limit < count:
        windows = windows[np.arange(limit, dtype=np.int64) * count // limit]
    return np.ascontiguousarray(windows)


class TrainingWindows:
    """An endless, deterministic sequence of training windows that tokenizes only what is used.

    Window i depends on the documents, the tokenizer, `window` and `seed` alone, so a resumed run asks for
    the same numbers and gets the same tokens. In each epoch the documents are shuffled and taken in pools
    of about `pool_characters`; a pool is tokenized, joined with eos, cut into windows (remainder dropped)
    and its windows are shuffled. A token beyond the model's `vocabulary` is refused as in `token_windows`.
    """

    def __init__(
        self, tokenizer: Any, docs: Sequence[Document], window: int = 256, seed: int = 0,
        pool_characters: int = 1_000_000, vocabulary: int | None = None,
    ) -> None:  # fmt: skip
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._docs = sorted(docs, key=lambda d: d.name)
        self.window, self.seed, self._pool_characters = window, seed, pool_characters
        self._starts = [0]  # windows before pool k
        self._next = (0, 0)  # (epoch, position in the epoch's order) of the pool after the last known one
        self._pools: list[tuple[int, int, int]] = []  # (epoch, first document, last document + 1)
        self._cached: tuple[int, np.ndarray] | None = None
        self._order: tuple[int, np.ndarray] | None = None
        self._empty_epoch = True

    def take(self, start: int, count: int) -> np.ndarray:
        """int64 [count, window]: windows start, start + 1, .. of the sequence."""
        out = np.empty((count, self.window), dtype=np.int64)
        done = 0
        pool = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < count:
            while pool >= len(self._pools):
                self._add_pool()
            first, after = self._starts[pool], self._starts[pool + 1]
            inside = start + done - first
            if inside < after - first:
                piece = self._windows(pool)[inside : inside + count - done]
                out[done : done + len(piece)] = piece
                done += len(piece)
            pool += 1
        return out

    def epoch_windows(self) -> int:
        """Windows of the first epoch: the number of window i at which the second begins (tokenizes all text
        once).
        """
        while self._next[0] == 0:
            self._add_pool()
        return self._starts[sum(epoch == 0 for epoch, _, _ in self._pools)]

    def epoch_at(self, index: int) -> float:
        """How many epochs the windows before `index` are, counted in documents (tokenizes no text ahead)."""
        pool = int(np.searchsorted(self._starts, index, side="right")) - 1
        while pool >= len(self._pools):
            self._add_pool()
        epoch, begin, end = self._pools[pool]
        first, after = self._starts[pool], self._starts[pool + 1]
        return epoch + (begin + (end - begin) * (index - first) / max(1, after - first)) / len(self._docs)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self._docs)))
        return self._order[1]

    def _add_pool(self) -> None:
        epoch, begin = self._next
        order = self._epoch_order(epoch)
        end, characters = begin, 0
        while end < len(order) and characters < self._pool_characters:
            characters += len(self._docs[order[end]].text)
            end += 1
        self._pools.append((epoch, begin, end))
        windows = self._windows(len(self._pools) - 1)
        self._starts.append(self._starts[-1] + len(windows))
        self._empty_epoch &= len(windows) == 0
        if end >= len(order):
            if self._empty_epoch:
                raise InputError(
                    f"the fine-tuning text does not fill one window of {self.window} tokens; give more"
                )
            self._next = (epoch + 1, 0)
        else:
            self._next = (epoch, end)

    def _windows(self, pool: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != pool:
            epoch, begin, end = self._pools[pool]
            order = self._epoch_order(epoch)
            tokens = _join(self._tokenizer, [self._docs[i] for i in order[begin:end]], self._vocabulary)
            count = len(tokens) // self.window
            windows = tokens[: count * self.window].reshape(count, self.window)
            shuffled = np.random.default_rng([self.seed, epoch, begin]).permutation(count)
            self._cached = (pool, windows[shuffled])
        return self._cached[1]
