"""The model that step 5 trains: the original with `BitLinear` in place of every layer that is called."""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import Tensor

from tritpress.errors import InputError
from tritpress.formats.packed import dense_as_packed
from tritpress.formats.targets import Target
from tritpress.nn.bit_linear import BitLinear
from tritpress.nn.surgery import is_read_by_its_model, replace_module, weight_out_in
from tritpress.plan import TensorPlan
from tritpress.steps.work import Work

ZERO_FLOOR, ZERO_SLACK = 0.25, 0.005
"""Least share of zeros that the sparsity gate allows, and how near a sparsity that was asked for is met."""


def make_student(work: Work, in_place: bool = False) -> tuple[Any, dict[str, BitLinear]]:
    """(student, target name -> its `BitLinear`), starting from the codes of step 4. A layer whose model reads
    the weight itself has none: it stays a plain one with the values of its codes, which are not trained.

    `in_place` makes it of the original in memory, which `work` then forgets and reads again when needed.

    What is not ternarized is frozen at the values that will be written (float16, or int8 rows), so that
    training heals the model which is handed over and no other.
    """
    from tritpress.formats.huggingface import model_name, modules_of

    assert work.plan is not None
    student = work.original if in_place else copy.deepcopy(work.original)
    if in_place:
        work.forget_original()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    parameters = dict(student.named_parameters())
    pressed = {target.name for target in work.targets}
    for name, value in dense_as_packed(work.source, work.plan, skip=pressed):
        own = model_name(student, name, parameters)
        if own is not None:
            parameters[own].data.copy_(_tensor(value))
    places = modules_of(student, [target.name for target in work.targets])
    read = {t.name: t for t in work.targets if is_read_by_its_model(student, places[t.name][0])}
    for target in (*work.embeddings, *read.values()):  # ternary, and not trained
        own = model_name(student, target.name, parameters)
        if own is not None:
            parameters[own].data.copy_(_decoded(work, target))
            parameters[own].kept = True  # type: ignore[attr-defined]
    layers: dict[str, BitLinear] = {}
    for target in work.targets:
        if target.name in read:
            continue
        path, module = places[target.name]
        planned = work.plan.tensors[target.name]
        codes, scales = work.store.get(target.name)
        layer = BitLinear.from_codes(
            codes,
            scales,
            target.cols,
            planned.group_size,
            bias=cast(Tensor | None, module.bias),
            latent=weight_out_in(module),
            activation_bits=work.config.activation_bits,
            zero_band=_zero_band(planned),
            device=work.device,
        )
        replace_module(student, path, layer)
        layers[target.name] = layer
    return student, layers


def save_rest(work: Work, student: Any) -> None:
    """Write what training changed beside the codes to `work.rest_path`, by the source's names, float32."""
    from tritpress.finetune.checkpoints import save_checkpoint
    from tritpress.finetune.trainer import rest_of
    from tritpress.formats.huggingface import file_tensors, model_name

    assert work.plan is not None
    tensors: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    for name, value in rest_of(student).items():
        own = model_name(work.original, name, work.source.tensors)
        (tensors if own is not None else left)[own or name] = value
    for name, value in file_tensors(work.original, left).items():
        own = model_name(work.original, name, work.source.tensors) or work.source.tied.get(name)
        if own is None:
            raise InputError(f"parameter {name} was trained, but {work.source.path} has no tensor for it")
        tensors[own] = value
    save_checkpoint(work.rest_path, tensors, {})


def _decoded(work: Work, target: Target) -> Tensor:
    """What the codes of step 4 stand for, as both outputs hold it: rounded once to float16."""
    from tritpress.ops import reference

    assert work.plan is not None
    codes, scales = (_tensor(array) for array in work.store.get(target.name))
    weight = reference.dequantize(codes, scales, target.cols, work.plan.tensors[target.name].group_size)
    return weight.half().float()


def _zero_band(planned: TensorPlan) -> tuple[float, float] | None:
    """Limits for the zeros of a tensor while it trains, as it was pressed; None where they are free."""
    if planned.sparsity is not None:
        return max(0.0, planned.sparsity - ZERO_SLACK), planned.sparsity + ZERO_SLACK
    return (ZERO_FLOOR, planned.max_sparsity) if planned.max_sparsity is not None else None


def _tensor(value: Any) -> Any:
    import torch

    return torch.from_numpy(value)
