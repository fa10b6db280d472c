"""The one place where stock transformers opens a directory. Needs the extra `hf`; imports lie inside."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritpress.errors import InputError, TritpressError
from tritpress.formats.source import SourceModel

if TYPE_CHECKING:
    from torch import nn

SAFE = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is downloaded and no code that comes with a model is ever run."""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings from transformers while a model is opened."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def need_transformers(purpose: str) -> None:
    """One sentence instead of an ImportError when the extra is not installed."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise TritpressError(
            f"{purpose} needs torch and transformers: pip install 'tritpress[hf]'"
        ) from error


def load_original(source: SourceModel | str | Path, dtype: Any = None, device: str = "cpu") -> nn.Module:
    """The model in evaluation mode through `AutoModelForCausalLM`, in float32 unless another dtype is
    given. `InputError` for what transformers cannot open, and for weights that are missing or of another
    shape than `config.json` says.
    """
    need_transformers("opening a model")
    import torch
    from transformers import AutoModelForCausalLM

    path = source.path if isinstance(source, SourceModel) else Path(source)
    try:
        with quiet_transformers():
            opened: Any = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=dtype or torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with names and shapes
                **SAFE,
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"transformers cannot open {path}: {first_line(error)}") from error
    model, told = opened
    refuse_missing(told, path)
    return model.to(device).eval()


def refuse_missing(told: dict[str, Any], path: Path) -> None:
    """`InputError` when weights were missing or of another shape than `config.json` says; transformers fills
    both with random values and warns.
    """
    for name, stored, due in sorted(told.get("mismatched_keys") or ()):
        raise InputError(
            f"{path}: tensor {name} is {list(stored)} in the weight files, but by config.json it is "
            f"{list(due)}"
        )
    if told["missing_keys"]:
        raise InputError(
            f"{path} lacks weights that the model needs: {', '.join(sorted(told['missing_keys'])[:3])}"
        )


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model directory."""
    need_transformers("reading text with a model")
    from transformers import AutoTokenizer

    path = Path(path)
    if not any(
        (path / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    ):
        raise InputError(f"{path} has no tokenizer (tokenizer.json), so text cannot be read with this model")
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(str(path), **SAFE)
    except Exception as error:  # the tokenizers' own errors derive from Exception alone
        raise InputError(f"the tokenizer in {path} cannot be opened: {first_line(error)}") from error


def embedded_tokens(model: Any) -> int | None:
    """Tokens that a loaded model has an embedding for; None for a module that does not tell."""
    found = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weight = getattr(found, "weight", None)
    return None if weight is None else int(weight.shape[0])


def first_line(error: BaseException) -> str:
    """The first line of an error of transformers, whose messages run to pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def model_name(model: nn.Module, name: str, known: Iterable[str]) -> str | None:
    """The model's own name for a source's tensor (or module) name, None when it has none.

    A checkpoint of the bare model lacks the prefix (`h.0.` for `transformer.h.0.`), one of a larger model may
    have it where this one does not.
    """
    known = known if isinstance(known, set | dict) else set(known)
    prefix = getattr(model, "base_model_prefix", "") or ""
    candidates = [name]
    if prefix:
        candidates += [f"{prefix}.{name}", name.removeprefix(prefix + ".")]
    return next((candidate for candidate in candidates if candidate in known), None)


def file_tensors(model: nn.Module, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Some of a loaded model's parameters as its files hold them: experts that transformers stacked when
    loading are separate again, names are the files'.
    """
    if not parameters:
        return {}
    from transformers.core_model_loading import revert_weight_conversion

    made: Any = model
    return dict(revert_weight_conversion(made, dict(parameters)))


def parameters_of(
    model: nn.Module, names: Iterable[str]
) -> tuple[dict[str, tuple[nn.Module, str]], dict[str, Any]]:
    """Where a loaded model has its source's tensors: ({tensor name: (module, name of the parameter in it)},
    {name of a parameter in the model: parameter} of those that hold several tensors, such as the experts of a
    block that transformers stacks when loading: `file_tensors` takes them apart). A name in neither has no
    parameter.
    """
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))
    own: dict[str, tuple[nn.Module, str]] = {}
    taken, left = set(), set()
    for name in names:
        known = model_name(model, name, parameters)
        if known is None:
            left.add(name)
            continue
        path, _, key = known.rpartition(".")
        own[name] = model.get_submodule(path), key
        taken.add(id(parameters[known]))
    stacked = {}
    for name, parameter in model.named_parameters() if left else ():
        if id(parameter) not in taken and parameter.ndim > 1:
            shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            if tensors_among(model, {name: shape}, left):
                stacked[name] = parameter
    return own, stacked


def tensors_among(model: nn.Module, parameters: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the tensors `names` that some of a loaded model's parameters hold (`file_tensors`)."""
    known = names if isinstance(names, set | dict) else set(names)
    made = file_tensors(model, parameters)  # few of many names: these are looked up, not those
    found = ((model_name(model, name, known), value) for name, value in made.items())
    return {name: value for name, value in found if name is not None}


def modules_of(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, nn.Module]]:
    """Tensor name -> (module path, module), for those of `names` that are a module's two-dimensional
    `weight`.

    Expert tensors that this version of transformers keeps in one stacked parameter have no module and are
    left out.
    """
    modules = dict(model.named_modules())
    found = {}
    for name in names:
        if not name.endswith(".weight"):
            continue
        path = model_name(model, name.removesuffix(".weight"), modules)
        if path is not None and getattr(getattr(modules[path], "weight", None), "ndim", 0) == 2:
            found[name] = (path, modules[path])
    return found


def module_of(model: nn.Module, source: SourceModel | None, target_name: str) -> tuple[str, nn.Module]:
    """(module path, module) whose `weight` is the source's tensor; `InputError` when the model has none."""
    found = modules_of(model, [target_name])
    if not found:
        raise InputError(f"tensor {target_name} belongs to no module of {type(model).__name__}")
    return found[target_name]
