"""`tritpress.load`: a model directory, packed or plain, as an `nn.Module`. Needs the extra `hf`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritpress.config import MemoryFormat, check_memory_format
from tritpress.errors import InputError
from tritpress.formats.packed_reader import PackedModel, is_packed, open_packed
from tritpress.formats.source import row_chunks

if TYPE_CHECKING:
    from torch import nn


def load(
    path: str | Path,
    activation_bits: int | None = 8,
    device: str = "cpu",
    format: MemoryFormat = "2bit",
) -> nn.Module:
    """Open a model directory in evaluation mode.

    A packed one gets a `TernaryLinear` in the place of every linear (or Conv1D) layer that was pressed;
    everything else is dense in float32 (int8 rows decoded; pressed tensors that have no linear layer of
    their own, such as stacked experts, or whose weight their model reads itself, too). `activation_bits`: 8
    runs the kernels with int8 activations, None multiplies float32 activations and gives the dequantized
    model's logits. `format`: how the int8 kernels hold the codes in memory: "1.6bit" reads a fifth less and
    computes more, which is faster where reading from memory is what takes the time; the results are the same
    bit for bit. A plain Hugging Face directory is opened in float32.

    Nothing is downloaded and no code of the model's maker is run. Raises `InputError` for a directory that is
    damaged or that transformers cannot open, `UsageError` for an unknown format.
    """
    from tritpress.formats.huggingface import load_original, need_transformers

    need_transformers("opening a model")
    if activation_bits not in (8, None):
        raise InputError(f"activation_bits must be 8 or None, not {activation_bits}")
    check_memory_format(format)
    if is_packed(path):
        return _load_packed(open_packed(path, values=False), activation_bits, format).to(device).eval()
    from tritpress.formats.source import open_source

    return load_original(open_source(path), device=device)


def _load_packed(packed: PackedModel, activation_bits: int | None, format: MemoryFormat) -> nn.Module:
    import torch

    from tritpress.formats.huggingface import first_line, modules_of, quiet_transformers, refuse_missing
    from tritpress.nn.surgery import is_linear, is_read_by_its_model, replace_module
    from tritpress.nn.ternary_linear import TernaryLinear

    try:
        with quiet_transformers():
            model_class, config = _model_class(packed)
            with torch.device("meta"):
                empty = model_class(config)
            places = {
                name: path
                for name, (path, module) in modules_of(empty, packed.tensors).items()
                if is_linear(module)
                and tuple(module.weight.shape) == packed.shape(name)  # type: ignore[arg-type,union-attr]
                and name not in packed.tied  # the embedding needs its rows
                and not is_read_by_its_model(empty, path)
            }
            model, told = model_class.from_pretrained(
                None,
                config=config,
                state_dict=_state(packed, places),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with names and shapes
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"transformers cannot open {packed.path}: {first_line(error)}") from error
    refuse_missing(told, packed.path)
    for name, path in places.items():
        codes, scales, info = packed.ternary(name)
        bias = getattr(model.get_submodule(path), "bias", None)
        layer = TernaryLinear(
            torch.from_numpy(codes),
            torch.from_numpy(scales),
            info.cols,
            info.kernel_group_size,
            bias=None if bias is None else bias.detach(),
            activation_bits=activation_bits,
            format=format,
        )
        replace_module(model, path, layer)
    generation = packed.path / "generation_config.json"
    if generation.is_file() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(str(packed.path), local_files_only=True)
    return model


def _model_class(packed: PackedModel) -> tuple[Any, Any]:
    """(class, configuration) that transformers itself has for this model; code beside the model is never
    run.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from tritpress.formats.huggingface import SAFE

    config = AutoConfig.from_pretrained(str(packed.path), **SAFE)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{type(config).__name__} is not a causal language model")
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    return (model_class[0] if isinstance(model_class, tuple | list) else model_class), config


def _state(packed: PackedModel, places: dict[str, str]) -> dict[str, Any]:
    """Every tensor by its name in the file. Layers that become `TernaryLinear` get one zero seen through a
    shape: they take no memory and no time, and are replaced.
    """
    import torch

    state: dict[str, Any] = {}
    for name in packed.names():
        if name in places:
            state[name] = torch.zeros((), dtype=torch.float32).expand(packed.shape(name))
        elif name in packed.tensors:
            state[name] = _dense_ternary(packed, name)
        else:
            state[name] = torch.from_numpy(packed.dense(name))
    return state


def _dense_ternary(packed: PackedModel, name: str) -> Any:
    """A packed tensor without a linear layer of its own, dequantized: float16 in the source's layout."""
    import torch

    info = packed.tensors[name]
    weight = torch.empty(info.shape, dtype=torch.float16)
    rows = weight.view(info.rows, info.cols)
    for start, stop in row_chunks(info.rows, 4 * info.cols):
        rows[start:stop] = torch.from_numpy(packed.dequantized_rows(name, start, stop))
    return weight.transpose(-1, -2).contiguous() if info.transposed else weight
