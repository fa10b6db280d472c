"""A backward pass one block at a time: what a whole graph would hold lies in a file meanwhile.

Forward, the input of every block is put aside; backward, each block runs again from its input, and the
gradient of its output is handed on to the block before it (gradient checkpointing, Chen et al. 2016, arXiv
1604.06174, with the blocks as the segments). Of a paged model only one block is in memory at any time.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tritpress.errors import InputError
from tritpress.events.context import RunContext
from tritpress.nn.paging import holding
from tritpress.ternarize.blocks import BlockRunner

HEAD_LOGITS = 8 * 1024 * 1024
"""Logits held at once (32 MB in float32), whatever the vocabulary."""

Around = Callable[[nn.Module | None], contextlib.AbstractContextManager[None]]
"""Entered while gradients go through a block (its weights in memory), or through what lies behind the last
one (None)."""


class Spill:
    """Tensors put aside in an unnamed file of `folder`, and read back one by one."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by close)
        self._places: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}

    def put(self, key: tuple[int, int], tensor: Tensor) -> None:
        values = tensor.detach().float().cpu().contiguous().numpy()
        at = self._file.seek(0, 2)
        try:
            self._file.write(values.reshape(-1).view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            raise InputError(f"no room for the activations of calibration: {error.strerror}") from None
        self._places[key] = (at, tuple(values.shape))

    def get(self, key: tuple[int, int]) -> Tensor:
        at, shape = self._places[key]
        values = np.empty(shape, dtype=np.float32)
        self._file.seek(at)
        self._file.readinto(values.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return torch.from_numpy(values)

    def close(self) -> None:
        self._file.close()


def backward(
    runner: BlockRunner,
    around: Around,
    context: RunContext,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Send the gradient of the summed next-token cross-entropy (nats) of all windows back to the first block.

    `runner` stands in front of block 0; afterwards behind the last. `around` gets the block whose graph is
    alive, to watch or collect what it wants; `progress` (blocks done, blocks in all) counts both ways.
    Returns what arrives in front of block 0, batch by batch.

    Raises `InputError` where the loss is not finite or the disk is full.
    """
    model, blocks, spill = runner.model, runner.blocks, Spill(folder)
    total = 2 * len(blocks) + 1
    tell = progress or (lambda done, total: None)
    try:
        with torch.no_grad():
            for number, block in enumerate(blocks):
                with holding(block):
                    for i, hidden in enumerate(runner.hidden):
                        context.check()
                        spill.put((number, i), hidden)
                        runner.hidden[i] = runner.step(number, hidden)
                tell(number + 1, total)
        with around(None), holding(model, without=blocks):
            gradients = [
                _through_head(runner, ids, hidden, context)
                for ids, hidden in zip(runner.batches, runner.hidden, strict=True)
            ]
        tell(len(blocks) + 1, total)
        for number in reversed(range(len(blocks))):
            with holding(blocks[number]), around(blocks[number]), torch.enable_grad():
                for i, gradient in enumerate(gradients):
                    context.check()
                    hidden = spill.get((number, i)).to(gradient).requires_grad_(True)
                    runner.step(number, hidden).backward(gradient)
                    assert hidden.grad is not None
                    gradients[i] = hidden.grad
            tell(total - number, total)
        return gradients
    finally:
        spill.close()


def _through_head(runner: BlockRunner, ids: Tensor, hidden: Tensor, context: RunContext) -> Tensor:
    """Gradient of the loss at the hidden states behind the last block: [B, T, hidden]."""
    gradient = torch.empty_like(hidden)
    vocabulary = int(getattr(getattr(runner.model, "config", None), "vocab_size", 0) or 32_768)
    size = max(1, HEAD_LOGITS // (ids.shape[1] * vocabulary))
    for start in range(0, len(ids), size):
        context.check()
        piece = slice(start, start + size)
        at = hidden[piece].detach().requires_grad_(True)
        with torch.enable_grad():
            logits = runner.tail(ids[piece], at)
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), ids[piece, 1:].flatten(), reduction="sum"
            )
            if not bool(torch.isfinite(loss)):
                raise InputError("the model's loss on the calibration text is not finite")
            loss.backward()
        assert at.grad is not None
        gradient[piece] = at.grad
    return gradient
