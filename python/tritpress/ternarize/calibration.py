"""What calibration text says about each tensor: second moments of its inputs and of its output gradients.

The input moments weigh the inputs in a fit (the diagonal of the layer's Hessian); the gradient moments say
how much an error in each output changes the loss, which is what the planner needs to compare tensors (the
diagonal of the empirical Fisher information, factored as in K-FAC, arXiv 1503.05671).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import numpy as np

from tritpress.config import CompressionConfig
from tritpress.errors import InputError, writing_safetensors
from tritpress.events.context import RunContext

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH_TOKENS = 2048
"""Tokens of one forward and backward pass."""


class Moments(TypedDict):
    """input_moment: float32 [in], mean of x^2 over tokens; output_grad_moment: float32 [out], mean of
    (d loss / d y)^2 over tokens, the loss being the sum over a window's tokens (nats); plane_losses: float32
    [3], predicted loss at 1, 2 and 3 planes (nats a token), where it could be foretold; swept_zeros: float64
    [2], threshold and sparsity that it was foretold with, NaN for none, where they are the tensor's own.
    """

    input_moment: np.ndarray
    output_grad_moment: np.ndarray
    plane_losses: NotRequired[np.ndarray]
    swept_zeros: NotRequired[np.ndarray]


def calibrate(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    windows: np.ndarray,
    context: RunContext,
    config: CompressionConfig | None = None,
    folder: str | Path | None = None,
    own: Mapping[str, CompressionConfig] | None = None,
) -> dict[str, Moments]:
    """Moments of every module that the windows reach, in one forward and one backward pass a batch.

    With `config` a second pass, block by block, foretells what its kind of fit would cost (`prediction`).

    Args:
        model: causal language model in evaluation mode; neither its weights nor their gradients are touched.
        modules: tensor name -> its linear module.
        windows: int64 [n, window] token ids.
        context: asked between batches whether to go on.
        folder: where activations may be put aside; the system's own place for temporary files if None.
        own: tensor name -> what is asked of that tensor in place of `config`.

    A paged model goes through block by block, so that no more than one is in memory.

    Raises `InputError` where there is no window or the loss is not finite.
    """
    import torch

    from tritpress.nn.paging import is_paged

    ids = torch.as_tensor(windows)
    if ids.ndim != 2 or len(ids) == 0 or ids.shape[1] < 2:
        raise InputError("calibration needs at least one window of two tokens")
    inputs = {name: _Mean() for name in modules}
    gradients = {name: _Mean() for name in modules}
    if is_paged(model):
        _watch_by_block(model, modules, ids, inputs, gradients, context, folder)
    else:
        _watch(model, modules, ids, inputs, gradients, context)
    found: dict[str, Moments] = {
        name: {"input_moment": inputs[name].value(), "output_grad_moment": gradients[name].value()}
        for name in modules
        if inputs[name].count and gradients[name].count
    }
    if config is not None:
        from tritpress.ternarize.prediction import plane_losses

        sensitivity = {name: moments["output_grad_moment"] for name, moments in found.items()}
        own = own or {}
        for name, losses in plane_losses(model, modules, windows, sensitivity, config, context, own).items():
            found[name]["plane_losses"] = losses
            if name in own:
                found[name]["swept_zeros"] = zeros_of(own[name])
    return found


def zeros_of(config: CompressionConfig) -> np.ndarray:
    """`Moments.swept_zeros` of a tensor of which that is asked."""
    asked = (config.threshold, config.target_sparsity)
    return np.array([np.nan if value is None else value for value in asked])


def _watch(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    ids: Tensor,
    inputs: dict[str, _Mean],
    gradients: dict[str, _Mean],
    context: RunContext,
) -> None:
    """One forward and one backward pass a batch over the whole model."""
    import torch

    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings: nn.Module = cast(Any, model).get_input_embeddings()
    handles = [embeddings.register_forward_hook(lambda m, i, out: out.requires_grad_(True))]
    for name, module in modules.items():
        handles.append(module.register_forward_hook(_hook(inputs[name], gradients[name])))
    for parameter in trained:
        parameter.requires_grad_(False)
    batches = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
    try:
        for done, batch in enumerate(batches, start=1):
            context.check()
            batch = batch.to(device)
            logits = model(input_ids=batch, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
            )
            if not bool(torch.isfinite(loss)):
                raise InputError("the model's loss on the calibration text is not finite")
            loss.backward()
            context.emit("step.progress", step=3, done=done, total=len(batches), detail="calibration windows")
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


def _watch_by_block(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    ids: Tensor,
    inputs: dict[str, _Mean],
    gradients: dict[str, _Mean],
    context: RunContext,
    folder: str | Path | None,
) -> None:
    """The same over a paged model, one block in memory at a time."""
    from tritpress.nn.surgery import find_blocks
    from tritpress.ternarize.backward import backward
    from tritpress.ternarize.blocks import BlockRunner

    _, blocks = find_blocks(model)
    inside = {id(module) for module in blocks.modules()}

    @contextlib.contextmanager
    def around(part: nn.Module | None) -> Iterator[None]:
        chosen = set(map(id, part.modules())) if part is not None else set(map(id, model.modules())) - inside
        handles = [
            module.register_forward_hook(_hook(inputs[name], gradients[name]))
            for name, module in modules.items()
            if id(module) in chosen
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def progress(done: int, total: int) -> None:
        context.emit("step.progress", step=3, done=done, total=total, detail="blocks, forth and back")

    runner = BlockRunner(model, blocks, ids, context)
    runner.leave(backward(runner, around, context, folder, progress))


class _Mean:
    """Running mean of squares over tokens, summed in float64."""

    def __init__(self) -> None:
        self.total: Any = None
        self.count = 0

    def add(self, x: Tensor) -> None:
        flat = x.detach().flatten(0, -2)
        squares = flat.float().square().sum(0).double()
        self.total = squares if self.total is None else self.total + squares
        self.count += len(flat)

    def value(self) -> np.ndarray:
        return (self.total / self.count).float().cpu().numpy()


def _hook(inputs: _Mean, gradients: _Mean) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        inputs.add(args[0])
        if output.requires_grad:
            output.register_hook(gradients.add)

    return hook


def save_calibration(moments: Mapping[str, Moments], path: str | Path) -> None:
    """Write the moments as a safetensors file, whole or not at all; `OSError` where the disk is full."""
    from safetensors.numpy import save_file

    arrays = {
        f"{name}.{key}": np.ascontiguousarray(array)
        for name, m in moments.items()
        for key, array in cast(Mapping[str, np.ndarray], m).items()
    }
    path = Path(path)
    beside = path.with_suffix(".tmp")
    with writing_safetensors(beside):
        save_file(arrays, beside)
    beside.replace(path)


def load_calibration(path: str | Path) -> dict[str, Moments] | None:
    """Read the moments back; None where the file does not exist. Needs no torch."""
    from safetensors.numpy import load_file

    path = Path(path)
    if not path.is_file():
        return None
    found: dict[str, Any] = {}
    for key, array in load_file(path).items():
        name, _, part = key.rpartition(".")
        found.setdefault(name, {})[part] = array
    return found
