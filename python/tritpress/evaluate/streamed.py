"""The logits of fixed windows from a paged model: every block is read once for all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tritpress.nn.paging import holding, reading_rows
from tritpress.nn.surgery import find_blocks
from tritpress.ternarize.blocks import BlockRunner

if TYPE_CHECKING:
    from tritpress.events.context import RunContext


HELD_AT_MOST = 1 << 26
"""Weights behind the blocks that are kept in memory for a whole evaluation (256 MB in float32)."""


class Streamed(nn.Module):
    """A paged causal language model over windows int64 [n, window] that are known beforehand.

    The first call runs all windows block by block and keeps what leaves the last block (float32, [n, window,
    hidden]); each call then makes the logits of its own windows. With `keep` those hidden states are left in
    that .npy file and taken from it the next time. Windows other than those given go through the model
    itself.
    """

    def __init__(
        self, model: nn.Module, windows: np.ndarray, context: RunContext, keep: Path | None = None
    ) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.windows, self.context, self.keep = np.asarray(windows, dtype=np.int64), context, keep
        self._places = {window.tobytes(): i for i, window in enumerate(self.windows)}
        # What need not be whole in memory to make logits: blocks, and embeddings that read single rows.
        self._passed_over = [*find_blocks(model)[1], *reading_rows(model)]
        self._runner: BlockRunner | None = None
        self._hidden: Any = None
        self.train(model.training)  # whoever puts the flag back later puts back the model's own

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        places = [self._places.get(row.tobytes()) for row in input_ids.cpu().numpy()]
        if None in places:
            return self.model(input_ids=input_ids, **options)
        hidden = self._behind_the_blocks()
        assert self._runner is not None
        with holding(self.model, without=self._passed_over):
            at = torch.from_numpy(np.stack([hidden[i] for i in places])).to(input_ids.device)
            del hidden  # what was seen of a file does not stay in the resident set
            return self._runner.tail(input_ids, at)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep what follows the blocks (the head) in memory meanwhile, in place of reading it for each call;
        nothing happens where it is larger than `HELD_AT_MOST`."""
        apart = {id(module) for module in self._passed_over}
        weights = sum(
            parameter.numel()
            for module in self.model.modules()
            if id(module) not in apart and module.__dict__.get("_paged") is not None
            for parameter in module.parameters()
        )
        with contextlib.ExitStack() as stack:
            if weights <= HELD_AT_MOST:
                stack.enter_context(holding(self.model, without=self._passed_over))
            yield

    @torch.no_grad()
    def _behind_the_blocks(self) -> np.ndarray:
        if self._hidden is not None:
            return self._hidden
        if self._runner is not None and (found := self._kept()) is not None:
            return found
        _, blocks = find_blocks(self.model)
        found = self._kept()
        windows = self.windows if found is None else self.windows[:1]
        runner = BlockRunner(self.model, blocks, windows, self.context)
        self._runner = runner
        if found is None:
            for number, block in enumerate(blocks):
                with holding(block):
                    for i, hidden in enumerate(runner.hidden):
                        self.context.check()
                        runner.hidden[i] = runner.step(number, hidden)
            found = torch.cat(runner.hidden).float().cpu().numpy()
            self._write(found)
        else:  # whether blocks give tuples is seen by running one
            with holding(blocks[0]):
                runner.step(0, runner.hidden[0])
        runner.hidden, runner.original_hidden = [], []
        if self.keep is None:
            self._hidden = found
        return found

    def _kept(self) -> np.ndarray | None:
        if self.keep is None or not self.keep.is_file():
            return None
        try:
            found = np.load(self.keep, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return found if found.shape[:2] == self.windows.shape and found.dtype == np.float32 else None

    def _write(self, hidden: np.ndarray) -> None:
        if self.keep is None:
            return
        beside = self.keep.with_suffix(".tmp")
        with beside.open("wb") as file:
            np.save(file, hidden, allow_pickle=False)
        os.replace(beside, self.keep)
