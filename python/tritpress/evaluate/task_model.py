"""Any causal language model of ours as lm-eval asks for it: packed, plain, or read block by block.

The rules are those of lm-eval's own `HFLM`, so that its figures can be compared: no special tokens are added,
an empty context is the beginning-of-text token, spaces at a context's end belong to the continuation, and
what is too long loses its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.api.model import LM
from torch import Tensor, nn

from tritpress.errors import InputError
from tritpress.evaluate.latency import kept
from tritpress.evaluate.perplexity import batches_of, device_of, logits_of
from tritpress.events.context import NullContext, RunContext
from tritpress.formats.huggingface import embedded_tokens
from tritpress.nn.paging import is_paged
from tritpress.text import check_known

CHUNK_TOKENS = 16_384
"""Tokens that a model read block by block sees in one reading."""

MAX_NEW_TOKENS = 256
"""Tokens generated at most where a task does not say."""

Progress = Callable[[int, int], None]


class TaskModel(LM):
    """A model and its tokenizer behind lm-eval's three questions.

    `longest`: tokens the model takes at once. `context.check()` is asked between batches, `progress` told
    (requests done, requests in all of this kind).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        longest: int,
        context: RunContext | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.longest = model, tokenizer, longest
        self.context: RunContext = context or NullContext()
        self.progress = progress or (lambda done, total: None)
        self.vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 0) or 32_768)
        settings = getattr(model, "config", None)
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, getattr(settings, "bos_token_id", None))
        self.embedded = embedded_tokens(model) or 2**31
        self.first = next((int(t) for t in known if isinstance(t, int) and t < self.embedded), 0)

    @property
    def max_length(self) -> int:
        return self.longest

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

    def encode(self, text: str) -> list[int]:
        tokens = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        check_known(tokens, self.embedded, "a task's text")
        return tokens

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether it is what greedy decoding gives) of each."""
        return self._score([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Log-probability in nats of each whole text, every token predicted once with as much before it as
        fits."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.encode(request.args[0]),
                prefix_token=self.first,
                max_seq_len=self.longest,
                context_len=1,
            )
            for window in map(make_disjoint_window, windows):
                pairs.append((list(window[0]), list(window[1])))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._score(pairs), strict=True):
            totals[owner] += score
        return totals

    @torch.inference_mode()
    def generate_until(self, requests: list[Any]) -> list[str]:
        """The greedy continuation of each context up to the first of its stop strings."""
        found = []
        for done, request in enumerate(requests, start=1):
            self.context.check()
            found.append(self._generate(*request.args))
            self.progress(done, len(requests))
        return found

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            tokens = self.encode(continuation)
            return ([self.first], tokens) if tokens else ([self.first], [self.first])
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before = self.encode(context) or [self.first]
        whole = self.encode(context + continuation)
        return before, whole[len(before) :] or self.encode(continuation)

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Longest first, padded at the right: what comes later never changes an earlier position."""
        rows = []
        for context, continuation in pairs:
            if len(continuation) > self.longest:
                raise InputError(
                    f"a task's continuation has {len(continuation)} tokens, the model takes {self.longest}"
                )
            whole = (context + continuation)[-(self.longest + 1) :]
            rows.append((whole[:-1], continuation))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        done = 0
        for chunk in _chunks(order, lambda i: len(rows[i][0])):
            width = len(rows[chunk[0]][0])
            ids = np.full((len(chunk), width), self.first, dtype=np.int64)
            for row, i in zip(ids, chunk):
                row[: len(rows[i][0])] = rows[i][0]
            places = iter(chunk)
            for logits in self._logits(ids):
                for line in logits:
                    i = next(places)
                    inputs, continuation = rows[i]
                    end = len(inputs)
                    at = F.log_softmax(line[end - len(continuation) : end].float(), dim=-1)
                    wanted = torch.tensor(continuation, device=at.device)
                    score = at.gather(-1, wanted[:, None]).double().sum()
                    found[i] = (float(score), bool((at.argmax(-1) == wanted).all()))
            done += len(chunk)
            self.progress(done, len(rows))
        return found

    @torch.inference_mode()
    def _logits(self, ids: np.ndarray) -> Iterator[Tensor]:
        """Logits [b, T, vocabulary] of rows int64 [n, T], a few rows at a time."""
        model: nn.Module = self.model
        if is_paged(model):
            from tritpress.evaluate.streamed import Streamed

            model = Streamed(model, ids, self.context)
        device = device_of(self.model)
        for batch in batches_of(ids, self.vocabulary, None):
            self.context.check()
            yield logits_of(model, torch.from_numpy(np.ascontiguousarray(batch)).to(device))

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") or options.get("temperature"):
            raise InputError("a task asks for sampled text; only tasks with greedy decoding can be run here")
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        stops += [token for token in [self.tokenizer.eos_token] if token]
        most = int(options.get("max_gen_toks") or options.get("max_new_tokens") or MAX_NEW_TOKENS)
        most = min(most, self.longest - 1)
        ids = (self.encode(context) or [self.first])[-(self.longest - most) :]
        step = torch.tensor([ids], device=device_of(self.model))
        past: dict[str, Any] = {}
        made: list[int] = []
        while len(made) < most:
            self.context.check()
            out = self.model(input_ids=step, use_cache=True, **past)
            found, token = kept(out), int(out.logits[0, -1].argmax())
            made.append(token)
            text = self.tokenizer.decode(made)
            ends = [text.index(stop) for stop in stops if stop and stop in text]
            if ends or token == self.tokenizer.eos_token_id:
                return text[: min(ends, default=len(text))]
            new = torch.tensor([[token]], device=step.device)
            step, past = (torch.cat((step, new), dim=1), {}) if found is None else (new, found)
        return self.tokenizer.decode(made)


def _chunks(order: list[int], length: Callable[[int], int]) -> Iterator[list[int]]:
    """Consecutive pieces of `order` (longest first) that hold about `CHUNK_TOKENS` when padded alike."""
    start = 0
    while start < len(order):
        size = max(1, CHUNK_TOKENS // max(1, length(order[start])))
        yield order[start : start + size]
        start += size
