"""Running a causal language model block by block, and stopping inside a block where a layer's input is known.

Two streams run side by side: the original model's hidden states and those of the model as compressed so far.
Both start from the embeddings; only one block is worked on at a time.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tritpress.errors import InputError
from tritpress.events.context import RunContext
from tritpress.nn.paging import resting

BATCH_TOKENS = 2048
"""Tokens of one forward pass: windows are batched up to about this many."""

MAX_STAGES = 12
"""Groups of layers that are fitted one after the other inside a block; what is beyond goes in one last
stage."""


StreamRole = Literal["input", "output"] | None


class _Reached(Exception):
    """Ends a forward pass at the point where all that was wanted is known."""


@dataclass
class _Call:
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Stage:
    """Layers of one block that are fitted together, by the input they share.

    Attributes:
        groups: for each distinct input tensor, the paths (in the block) of the layers that read it.
        stop: whether a forward pass may end once every group's input has been seen.
    """

    groups: list[list[str]] = field(default_factory=list)
    stop: bool = True


class BlockRunner:
    """Both streams through a model's blocks.

    Args:
        model: a causal language model of transformers in evaluation mode; its blocks' weights are changed by
        the
            caller as it goes.
        blocks: its list of blocks.
        windows: int64 [n, window] token ids.
        context: asked between batches whether to go on.

    Raises `InputError` where the model does not call its blocks in the usual way.
    """

    def __init__(
        self, model: nn.Module, blocks: nn.ModuleList, windows: np.ndarray | Tensor, context: RunContext
    ) -> None:
        self.blocks = blocks
        self.context = context
        self.model = model
        self._gives_tuples = False
        ids = torch.as_tensor(windows)
        if ids.ndim != 2 or not len(ids):
            raise InputError("calibration needs at least one window of text")
        device = next(model.parameters()).device
        size = max(1, BATCH_TOKENS // ids.shape[1])
        self._calls: dict[int, list[_Call]] = {}
        self._roles: dict[str, StreamRole] = {}
        self._behind: dict[int, Tensor] = {}
        self.hidden: list[Tensor] = []
        self.batches = [batch.to(device) for batch in ids.split(size)]
        for batch in self.batches:
            context.check()
            self.hidden.append(self._enter(model, batch))
        self.original_hidden = list(self.hidden)

    def enter_again(self) -> None:
        """Take the compressed stream's hidden states anew, after the embeddings have changed; the original's
        stay."""
        self.hidden = [self._enter(self.model, batch) for batch in self.batches]

    def leave(self, gradients: list[Tensor]) -> None:
        """Send gradients of the hidden states in front of block 0, batch by batch, back to what made them:
        hooks on the embedding's output see them come, where they let gradients follow."""
        entered: list[Tensor] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        first = self.blocks[0]
        for batch, gradient in zip(self.batches, gradients, strict=True):
            self.context.check()
            with torch.enable_grad(), resting(first), _hooks([first], hook), contextlib.suppress(_Reached):
                self.model(input_ids=batch, use_cache=False)
            hidden = entered.pop()
            if hidden.requires_grad:
                hidden.backward(gradient)

    @torch.no_grad()
    def _enter(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Hidden states in front of block 0. The first batch of each size also records how blocks are called.

        Masks, positions and rotary tables depend on the shape of a batch alone, because windows have no
        padding.
        """
        record = len(batch) not in self._calls
        calls: list[_Call] = []
        entered: list[Tensor] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            kwargs = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "past_key_value")}
            calls.append(_Call(tuple(args[1:]), kwargs))
            if len(calls) == 1:
                entered.append(hidden.detach().clone())
            if not record or len(calls) == len(self.blocks):
                raise _Reached

        with _hooks(self.blocks, hook), contextlib.suppress(_Reached):
            model(input_ids=batch, use_cache=False)
        if not entered or (record and len(calls) != len(self.blocks)):
            raise InputError(
                f"{type(model).__name__} does not run its blocks one after the other, "
                "so it cannot be calibrated: --method fast needs no activations"
            )
        if record:
            self._calls[len(batch)] = calls
        return entered[0]

    def _run(self, number: int, block: nn.Module, hidden: Tensor) -> Tensor:
        call = self._calls[len(hidden)][number]
        out = block(hidden, *call.args, **call.kwargs)
        self._gives_tuples = isinstance(out, tuple | list)
        return out[0] if self._gives_tuples else out

    def step(self, number: int, hidden: Tensor) -> Tensor:
        """One batch of hidden states through a block, gradients following where they are asked for."""
        return self._run(number, self.blocks[number], hidden)

    def tail(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Logits [B, T, vocabulary] of windows whose hidden states behind the last block are known.

        The model's own code makes them (last norm, head, whatever scaling there is); its blocks are passed
        over.
        """

        def behind(*args: Any, **kwargs: Any) -> Any:
            return (hidden,) if self._gives_tuples else hidden

        with contextlib.ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(resting(block))
                block.forward = behind  # type: ignore[method-assign]
                stack.callback(block.__dict__.pop, "forward")
            return self.model(input_ids=ids, use_cache=False).logits

    def twin(self, number: int) -> nn.Module:
        """A copy of a block as the original has it, to be taken before its weights are changed."""
        return copy.deepcopy(self.blocks[number])

    @torch.no_grad()
    def stages(self, number: int, paths: list[str]) -> list[Stage]:
        """The layers at `paths` of a block in the order they are called, those with the same input together.

        Layers that no window reaches (experts) are in no stage.
        """
        block = self.blocks[number]
        names = {id(block.get_submodule(path)): path for path in paths}
        groups: dict[tuple[Any, ...], list[str]] = {}
        count: dict[str, int] = {}
        for turn, hidden in enumerate(self.hidden):
            kept: list[Tensor] = []  # keeps inputs alive, so that an address means one tensor

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                path = names[id(module)]
                count[path] = count.get(path, 0) + 1
                if count[path] == 1:
                    kept.append(args[0])  # noqa: B023
                    key = (turn, args[0].data_ptr(), args[0].shape, args[0].stride())  # noqa: B023
                    groups.setdefault(key, []).append(path)

            with _hooks([block.get_submodule(path) for path in paths], hook):
                self._run(number, block, hidden)
            if len(count) == len(paths):
                break
        once = all(times == 1 for times in count.values())
        stages = [Stage([group], stop=once) for group in groups.values()]
        if len(stages) > MAX_STAGES:
            rest = [group for stage in stages[MAX_STAGES - 1 :] for group in stage.groups]
            stages = [*stages[: MAX_STAGES - 1], Stage(rest, stop=False)]
        return stages

    @torch.no_grad()
    def inputs(self, number: int, block: nn.Module, stage: Stage, hidden: Tensor) -> dict[str, Tensor]:
        """Path of each group's first layer -> its input [tokens, in] for one batch of hidden states."""
        seen: dict[str, list[Tensor]] = {}
        first = {id(block.get_submodule(group[0])): group[0] for group in stage.groups}

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.setdefault(first[id(module)], []).append(args[0].detach().flatten(0, -2).float())
            if stage.stop and len(seen) == len(first):
                raise _Reached

        readers = [block.get_submodule(path) for path in first.values()]
        with _hooks(readers, hook), contextlib.suppress(_Reached):
            self._run(number, block, hidden)
        return {path: torch.cat(parts) for path, parts in seen.items()}

    @torch.no_grad()
    def input_and_stream(
        self, number: int, block: nn.Module, path: str, batch: int, original: bool
    ) -> tuple[Tensor, Tensor]:
        """Of the layer at `path`, whose role is "output": (its input [tokens, in], the stream [B, T, C] that
        it adds to) for one batch of the compressed or the `original` stream, by one pass through the block.

        The original stream's output, which its twin gives however the block is changed, is kept for
        `advance`.
        """
        hidden = (self.original_hidden if original else self.hidden)[batch]
        out, x, y = self.around(number, block, path, hidden)
        if original:
            self._behind[batch] = out
        return x.flatten(0, -2).float(), out - y

    def survey(self, number: int, stage: Stage) -> Iterator[dict[str, Tensor]]:
        """The inputs of a stage's groups for each batch, while the stream moves past the block."""
        block = self.blocks[number]
        first = {id(block.get_submodule(group[0])): group[0] for group in stage.groups}
        readers = [block.get_submodule(path) for path in first.values()]
        for i, hidden in enumerate(self.hidden):
            self.context.check()
            seen: dict[str, list[Tensor]] = {}

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.setdefault(first[id(module)], []).append(args[0].flatten(0, -2).float())  # noqa: B023

            with torch.no_grad(), _hooks(readers, hook):
                self.hidden[i] = self._run(number, block, hidden)
            yield {path: torch.cat(parts) for path, parts in seen.items()}

    @torch.no_grad()
    def stream_role(self, number: int, block: nn.Module, path: str) -> StreamRole:
        """How the layer at `path` of an unchanged block adds to the residual stream, found by trying.

        "output": the block's output is something + y (the last layer of a feed-forward part), for a shift of
        y alone shifts the output by as much. "input": the block's input + y is all that the rest of the
        block sees (the output projection of a sequential block's attention), for a shift moved from y to the
        input changes nothing. None: neither, as where a norm follows the layer.
        """
        if path not in self._roles:
            self._roles[path] = self._try_stream_role(number, block, path)
        return self._roles[path]

    def _try_stream_role(self, number: int, block: nn.Module, path: str) -> StreamRole:
        hidden = self.original_hidden[0]
        layer = block.get_submodule(path)
        plain, _, y = self.around(number, block, path, hidden)
        if y.shape != hidden.shape:
            return None
        generator = torch.Generator().manual_seed(0)
        shift = torch.randn(hidden.shape, generator=generator).to(hidden) * hidden.std()

        def forced(value: Tensor, start: Tensor) -> Tensor:
            handle = layer.register_forward_hook(lambda module, args, out: value)
            try:
                return self._run(number, block, start)
            finally:
                handle.remove()

        def same(found: Tensor, wanted: Tensor) -> bool:
            return float((found - wanted).norm()) <= 1e-3 * float(shift.norm())

        if same(forced(y + shift, hidden), plain + shift):
            return "output"
        return "input" if same(forced(y - shift, hidden + shift), plain) else None

    @torch.no_grad()
    def around(
        self, number: int, block: nn.Module, path: str, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(the block's output, the input and the output of its layer at `path`) for one batch of hidden
        states."""
        seen: list[Tensor] = []
        handle = block.get_submodule(path).register_forward_hook(
            lambda module, args, out: seen.extend((args[0], out))
        )
        try:
            out = self._run(number, block, hidden)
        finally:
            handle.remove()
        return out, seen[0], seen[1]

    @torch.no_grad()
    def advance(self, number: int, twin: nn.Module | None) -> None:
        """Move both streams past a block: the compressed one through it, the original one through its
        twin."""
        for i, hidden in enumerate(self.hidden):
            self.context.check()
            if twin is not None:
                known = self._behind.pop(i, None)
                original = self.original_hidden[i]
                self.original_hidden[i] = self._run(number, twin, original) if known is None else known
            self.hidden[i] = self._run(number, self.blocks[number], hidden)


@contextlib.contextmanager
def _hooks(
    modules: Any, hook: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
