"""A model directory as a paged `nn.Module`: its blocks are read from the weight files as they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritpress.errors import InputError
from tritpress.formats.huggingface import SAFE, first_line, model_name, quiet_transformers, refuse_missing
from tritpress.formats.source import SourceModel, read_some_rows, read_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_paged(source: SourceModel) -> nn.Module | None:
    """The model in float32 on the CPU, in evaluation mode, with its blocks and embeddings left on disk.

    The values are those of `load_original`. None where the parameters are not one to one the tensors of the
    files (experts that transformers stacks when loading) or no list of blocks is found: such a model has to
    be held whole. Raises `InputError` for what transformers cannot open.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tritpress.nn.paging import page
    from tritpress.nn.surgery import find_blocks

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(source.path), **SAFE)
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config)
            places = _places(empty, source)
            if places is None:
                return None
            blocks_at, _ = find_blocks(empty)
            state = {
                # one zero seen through a shape: it takes no memory, and what stays is read below
                name: torch.zeros(()).expand(entry.shape)
                for name, entry in source.tensors.items()
            }
            model, told = type(empty).from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with names and shapes
            )
            refuse_missing(told, source.path)
            blocks = model.get_submodule(blocks_at)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"transformers cannot open {source.path}: {first_line(error)}") from error
    generation = source.path / "generation_config.json"
    if generation.is_file() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(str(source.path), local_files_only=True)

    def read(name: str) -> Tensor:
        return torch.from_numpy(read_tensor(source.tensors[name]))

    def read_rows(name: str, rows: Tensor) -> Tensor:
        return torch.from_numpy(read_some_rows(source.tensors[name], rows.cpu().numpy()))

    parameters = dict(model.named_parameters())
    names = {id(parameters[own]): name for own, name in places.items() if own in parameters}
    if len(names) != len(parameters):
        return None
    return page(model.eval(), blocks, names, read, read_rows)


def _places(model: nn.Module, source: SourceModel) -> dict[str, str] | None:
    """Parameter's name -> tensor's name, when every parameter is just one tensor of the files."""
    parameters = dict(model.named_parameters())
    places: dict[str, str] = {}
    for name, entry in source.tensors.items():
        own = model_name(model, name, parameters)
        if own is None or tuple(parameters[own].shape) != tuple(entry.shape):
            return None
        places[own] = name
    return places
