"""Parts of a model that read their weights when they run and drop them afterwards.

A paged model is an ordinary `nn.Module` whose blocks and large single layers hold placeholders (shapes
without memory). Each part reads its parameters as it is called and drops them when the call ends, unless
somebody `holding` it keeps them for longer. So a model larger than the memory can be evaluated and pressed,
at the price of reading it once for each pass.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tritpress.allocator import give_back_freed

Read = Callable[[str], Tensor]
"""Name of a parameter in the model -> its value, float32, in the parameter's shape."""

ReadRows = Callable[[str, Tensor], Tensor]
"""Name of a table and rows of it, int64 [n] -> those rows, float32 [n, cols]."""

SMALLEST = 1 << 20
"""Parameters below which a part outside the blocks stays in memory."""


class _Reader:
    """Where the weights of one model come from: its files, or what stands in for some of them."""

    def __init__(self, read: Read, read_rows: ReadRows) -> None:
        self._read, self._read_rows = read, read_rows
        self.instead: dict[str, tuple[int, ReadRows]] = {}

    def whole(self, name: str) -> Tensor:
        count, rows = self.instead.get(name, (0, None))
        return self._read(name) if rows is None else rows(name, torch.arange(count))

    def rows(self, name: str, rows: Tensor) -> Tensor:
        _, other = self.instead.get(name, (0, None))
        return self._read_rows(name, rows) if other is None else other(name, rows)


class _Part:
    """One module that comes and goes as a whole."""

    def __init__(self, module: nn.Module, names: dict[int, str], reader: _Reader, alive: Any) -> None:
        self.reader, self.read, self.alive, self.count = reader, reader.whole, alive, 0
        self.places = [
            (owner, key, names[id(parameter)], tuple(parameter.shape))
            for owner in module.modules()
            for key, parameter in owner._parameters.items()
            if parameter is not None
        ]
        self._drop()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a module owns its weights: it is not paged."""
        return None

    def acquire(self) -> None:
        self.count += 1
        if self.count > 1:
            return
        for owner, key, name, _ in self.places:
            parameter = self.alive.get(name)  # a weight that two parts share is read once
            if parameter is None:
                parameter = nn.Parameter(self.read(name), requires_grad=False)
                self.alive[name] = parameter
            owner._parameters[key] = parameter

    def release(self) -> None:
        self.count -= 1
        if self.count == 0:
            self._drop()
            give_back_freed()

    def _drop(self) -> None:
        for owner, key, _, shape in self.places:
            owner._parameters[key] = nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)


class _Rows:
    """The forward pass of an embedding that is on disk: it reads the rows of the tokens at hand alone."""

    def __init__(self, module: nn.Embedding, name: str, read_rows: ReadRows) -> None:
        self.module, self.name, self.read_rows = weakref.ref(module), name, read_rows

    def __call__(self, input: Tensor) -> Tensor:
        module = self.module()
        assert module is not None
        if not is_placeholder(module.weight):
            return nn.Embedding.forward(module, input)
        tokens, places = torch.unique(input, return_inverse=True)
        return self.read_rows(self.name, tokens)[places]


def _before(module: nn.Module, args: Any) -> None:
    part = module.__dict__.get("_paged")
    if part is not None:
        part.acquire()


def _after(module: nn.Module, args: Any, output: Any) -> None:
    part = module.__dict__.get("_paged")
    if part is not None:
        part.release()


def page(
    model: nn.Module, blocks: nn.ModuleList, names: dict[int, str], read: Read, read_rows: ReadRows
) -> nn.Module:
    """Make `model` paged, in place: every one of its blocks, and every large layer outside of them.

    `names`: id of each parameter of the model -> the name that `read` and `read_rows` know it by. What stays
    in memory is read now. A plain embedding is not read whole when it runs: only its rows of the tokens.
    """
    alive: Any = weakref.WeakValueDictionary()
    reader = _Reader(read, read_rows)
    originals = list(model.parameters())  # kept until the end, so that an id means one parameter
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = [module for module in model.modules() if id(module) not in inside]
    large = [m for m in outside if sum(p.numel() for p in m.parameters(recurse=False)) >= SMALLEST]
    kept: dict[str, nn.Parameter] = {}
    for owner in outside:
        if owner not in large:
            for key, parameter in owner._parameters.items():
                if parameter is not None:
                    name = names[id(parameter)]
                    if name not in kept:
                        kept[name] = nn.Parameter(read(name), requires_grad=False)
                    owner._parameters[key] = kept[name]
    for module in [*blocks, *large]:
        if type(module) is nn.Embedding and module.max_norm is None:
            module.forward = _Rows(module, names[id(module.weight)], reader.rows)  # type: ignore[assignment]
        else:
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(_after, always_call=True)
        module._paged = _Part(module, names, reader, alive)  # type: ignore[assignment]
    del originals
    return model


def is_paged(model: nn.Module) -> bool:
    """Whether parts of the model hold their weights only while they run."""
    return any(module.__dict__.get("_paged") is not None for module in model.modules())


@contextlib.contextmanager
def holding(module: nn.Module, without: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Keep the weights of `module` and everything in it in memory; nothing happens where it is not paged.

    `without`: parts (the blocks, say) that keep coming and going. What was changed in place is lost at the
    end: the next reading brings the weights as they are on disk.
    """
    left_out = {id(m) for m in without}
    paged = (m.__dict__.get("_paged") for m in module.modules() if id(m) not in left_out)
    parts: list[_Part] = [part for part in paged if part is not None]
    taken: list[_Part] = []
    try:
        for part in parts:
            part.acquire()
            taken.append(part)
        yield
    finally:
        for part in reversed(taken):
            part.release()


@contextlib.contextmanager
def resting(module: nn.Module) -> Iterator[None]:
    """Let calls of `module` pass without reading its weights (while something else runs in its place)."""
    part = module.__dict__.get("_paged")
    try:
        if part is not None:
            module._paged = None  # type: ignore[assignment]
        yield
    finally:
        if part is not None:
            module._paged = part


def reading_rows(model: nn.Module) -> list[nn.Module]:
    """Its paged embeddings, which run as well without being held."""
    return [module for module in model.modules() if isinstance(module.__dict__.get("forward"), _Rows)]


def weight_rows(module: nn.Module, start: int, stop: int) -> Tensor:
    """Rows start:stop of a module's weight as float32 [n, cols], read from disk where it is not in memory."""
    weight = cast(Tensor, module.weight)
    if not is_placeholder(weight):
        return weight.detach()[start:stop].float()
    return module.__dict__["_paged"].reader.rows(_weight_name(module), torch.arange(start, stop))


def same_weight(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have one weight between them, in memory or on disk."""
    name = _weight_name(first)
    return first.weight is second.weight or (name is not None and name == _weight_name(second))


def _weight_name(module: nn.Module) -> str | None:
    part = module.__dict__.get("_paged")
    places = [] if part is None else part.places
    return next((name for owner, key, name, _ in places if owner is module and key == "weight"), None)


@contextlib.contextmanager
def weights_instead(modules: Mapping[nn.Module, ReadRows]) -> Iterator[None]:
    """Let paged modules read the rows of their weight from elsewhere meanwhile."""
    taken: list[tuple[_Reader, str]] = []
    try:
        for module, rows in modules.items():
            reader, name = module.__dict__["_paged"].reader, _weight_name(module)
            assert name is not None
            reader.instead[name] = (len(cast(Tensor, module.weight)), rows)
            taken.append((reader, name))
        yield
    finally:
        for reader, name in taken:
            del reader.instead[name]


def is_placeholder(tensor: Tensor) -> bool:
    """Whether a parameter's values are not in memory now."""
    return tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()
