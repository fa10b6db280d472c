"""Steps 4 and 5: plan and ternarize every tensor, then train the ternary model towards the original."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tritpress.formats.source import read_tensor
from tritpress.formats.targets import Target
from tritpress.plan import Plan, foretell, make_plan
from tritpress.report import layer_figures
from tritpress.steps.ceiling import ceiling_cost, hold_zeros
from tritpress.steps.details import record_details
from tritpress.steps.prepare import model_found, untrainable
from tritpress.steps.steering import SteeredContext
from tritpress.steps.work import Work


def ternarization(work: Work) -> None:
    """Step 4: choose planes for the target ratio, then fit every tensor; each is stored as it is finished."""
    work.plan = _make_plan(work)
    announce_targets(work)
    _announce_plan(work)
    for done, (target, seconds, reused) in enumerate(_press_all(work), start=1):
        info = work.store.info(target.name)
        layer = layer_record(work, target, info, seconds)
        _emit_layer(work, layer, reused=reused, **record_details(work, target, work.store, info, reused))
        work.context.emit("step.progress", step=4, done=done, total=len(work.pressed), detail=target.name)
        work.context.check()
    _emit_layer_figures(work)


def fine_tuning(work: Work) -> str | None:
    """Step 5: straight-through training of the ternary model, distilled from the original."""
    reason = _why_not_fine_tune(work)
    if reason:
        return reason
    from tritpress.finetune.recipe import recipe_for
    from tritpress.finetune.teacher import teacher_on_disk
    from tritpress.finetune.trainer import fine_tune
    from tritpress.steps.student import make_student, save_rest
    from tritpress.steps.training_memory import place_of_teacher
    from tritpress.text import TrainingWindows

    assert work.splits is not None and work.plan is not None
    text = TrainingWindows(
        work.tokenizer,
        work.splits.fine_tuning,
        work.window,
        work.config.seed,
        vocabulary=work.vocabulary,
    )
    epoch_tokens = text.epoch_windows() * text.window if work.config.epochs else None
    planes = float(np.mean([work.plan.tensors[target.name].planes for target in work.targets]))
    recipe = recipe_for(work.config, work.window, work.chosen["number_formats"], epoch_tokens, planes)
    validation, folder = work.windows("validation"), work.folder / "fine-tuning"
    on_disk = place_of_teacher(work) == "disk"
    teacher: Any = work.original
    if on_disk:
        teacher = teacher_on_disk(teacher, text, validation, recipe, folder / "teacher", work.context)
    student, modules = make_student(work, in_place=on_disk)
    result = fine_tune(
        student, teacher, text, validation, work.config, folder, work.context, recipe=recipe
    )
    if result.recipe["rest_lr"] > 0:
        save_rest(work, student)
    for target in work.targets:
        if target.name not in modules:
            continue
        started = time.perf_counter()
        codes, scales = modules[target.name].codes_and_scales()
        work.finetuned_store.put(target.name, codes, scales, statistics(target, codes, scales, work))
        info = work.finetuned_store.info(target.name)
        layer = layer_record(work, target, info, time.perf_counter() - started)
        _emit_layer(
            work, layer, fine_tuned=True, **record_details(work, target, work.finetuned_store, info, False)
        )
    for target in work.pressed:  # what is not trained keeps the codes of step 4
        if target.name in modules:
            continue
        codes, scales = work.store.get(target.name)
        work.finetuned_store.put(target.name, codes, scales, work.store.info(target.name))
    work.fine_tuning = result.to_json()
    work.write_json("fine-tuning.json", work.fine_tuning)
    _emit_layer_figures(work)
    return None


def recall(work: Work, number: int) -> None:
    """Read back what a finished step left in the work folder."""
    if number == 2:
        measured = work.read_json("baseline.json")
        if measured is not None:
            work.evaluations["before"] = measured
    elif number == 4:
        work.plan = Plan.load(work.folder / "plan.json")
        announce_targets(work)
        for target in work.pressed:
            layer_record(work, target, work.store.info(target.name), 0.0)
        _note_layer_figures(work)
    elif number == 5:
        work.fine_tuning = work.read_json("fine-tuning.json")
        if work.fine_tuning is not None:
            for target in work.pressed:
                layer_record(work, target, work.finetuned_store.info(target.name), 0.0)
            _note_layer_figures(work)


def announce_targets(work: Work) -> None:
    """Report the model again where the plan presses more than the linear layers."""
    if work.embeddings:
        work.context.emit("model", **model_found(work, work.pressed))


def layer_record(work: Work, target: Target, info: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Figures of one finished tensor from what the store keeps beside its codes; kept in `work.layers`."""
    assert work.plan is not None
    planned = work.plan.tensors[target.name]
    weights = planned.weights
    layer = {
        "name": target.name,
        "layer": target.layer,
        "kind": target.kind,
        "rows": target.rows,
        "cols": target.cols,
        "planes": planned.planes,
        "group_size": planned.group_size or target.cols,
        "bits": planned.bits,
        "ratio": 32.0 / planned.bits,
        "sparsity": info["sparsity"],
        "zeros_all_planes": info["zeros_all_planes"],
        "mse": info["mse"],
        "cosine": info["cosine"],
        "histogram": info["histogram"],
        "weights": weights,
        "bytes": planned.nbytes,
        "seconds": seconds,
    }
    work.layers[target.name] = layer
    return layer


def statistics(target: Target, codes: np.ndarray, scales: np.ndarray, work: Work) -> dict[str, Any]:
    """Sparsity, error and histograms of one tensor against the source's weight."""
    from tritpress.ternarize.stats import layer_statistics

    assert work.plan is not None
    planned = work.plan.tensors[target.name]
    return layer_statistics(_read_weight(target), codes, scales, planned.group_size)


def _make_plan(work: Work) -> Plan:
    path = work.folder / "plan.json"
    if path.is_file():  # a resumed run keeps to the plan that its finished tensors were made by
        return Plan.load(path)
    plan, zeros = planned(work)
    work.write_json("zeros.json", zeros)
    plan.save(path)
    return plan


def planned(work: Work) -> tuple[Plan, dict[str, Any]]:
    """The plan that was given, with its losses predicted anew, or else the one made for the target ratio; and
    what holding its zeros was found to cost (`steps.ceiling.hold_zeros`)."""
    found = _calibration(work)
    if (plan := work.given_plan()) is not None:
        plan = foretell(work.source, work.targets, work.config, found, plan)
    else:
        plan = make_plan(work.source, work.targets, work.config, found)
    return plan, hold_zeros(work, plan)


def _calibration(work: Work) -> Any:
    """What step 3 found of each tensor; None where the method needs none."""
    if not work.calibrates:
        return None
    from tritpress.ternarize.calibration import load_calibration

    return load_calibration(work.folder / "calibration.safetensors")


def _announce_plan(work: Work) -> None:
    plan = work.plan
    assert plan is not None
    choices = _plane_losses(work)
    work.context.emit(
        "plan",
        tensors=[
            {
                "name": p.name,
                "layer": p.layer,
                "kind": p.kind,
                "rows": p.rows,
                "cols": p.cols,
                "weights": p.weights,
                "planes": p.planes,
                "bits": p.bits,
                "method": work.method,
                "threshold": p.threshold,
                "sparsity": p.sparsity,
                "max_sparsity": p.max_sparsity,
                "predicted_loss": p.predicted_loss,
                "plane_losses": choices.get(p.name),
            }
            for p in plan.tensors.values()
        ],
        predicted_ratio=plan.predicted_ratio,
        target_ratio=plan.target_ratio,
        embeddings=plan.embeddings,
        basis=plan.basis,
        predicted_loss=plan.predicted_loss,
        predicted_perplexity_change=plan.predicted_change,
    )


def _plane_losses(work: Work) -> dict[str, list[float]]:
    """What one, two or three planes were foretold to cost each tensor, where the calibration weighed them."""
    return {
        name: [float(loss) for loss in moments["plane_losses"]]
        for name, moments in (_calibration(work) or {}).items()
        if "plane_losses" in moments
    }


def _emit_layer(work: Work, layer: dict[str, Any], **more: Any) -> None:
    work.context.emit("layer.finished", **layer, **more)


def _note_layer_figures(work: Work) -> dict[str, Any]:
    assert work.plan is not None
    held = ceiling_cost(work.read_json("zeros.json"), work.plan)
    figures = {**layer_figures(work), "zeros_ceiling": held}
    work.figures.update(figures)
    return figures


def _emit_layer_figures(work: Work) -> None:
    work.context.emit("figures", **_note_layer_figures(work))


def _read_weight(target: Target) -> np.ndarray:
    """The source's weight as float32 [out, in]; experts one below the other."""
    weight = read_tensor(target.entry)
    if target.transposed:
        weight = np.swapaxes(weight, -1, -2)
    return np.ascontiguousarray(weight.reshape(-1, target.cols))


def _press_all(work: Work) -> Iterator[tuple[Target, float, bool]]:
    """Press every tensor that is not in the store yet; yields each target with its seconds when it is."""
    assert work.plan is not None
    by_name = {target.name: target for target in work.pressed}
    finished = {target.name for target in work.pressed if work.store.has(target.name)}
    context = SteeredContext(work.context, work.plan, work.folder / "plan.json")
    if work.method != "gptq":
        from tritpress.press.fast import fast_tensors

        weighing = _calibration(work)
        made = fast_tensors(work.pressed, work.plan, work.config, work.store, context, weighing)
    else:
        from tritpress.nn.paging import is_paged
        from tritpress.press.gptq import gptq_tensors

        made = gptq_tensors(
            work.original if is_paged(work.original) else copy.deepcopy(work.original),
            work.source,
            work.pressed,
            work.plan,
            work.windows("calibration"),
            work.config,
            work.store,
            context,
            _calibration(work),
        )
    for name, seconds in made:
        yield by_name[name], seconds, name in finished


def _why_not_fine_tune(work: Work) -> str | None:
    config = work.config
    if config.finetune is False:
        return "switched off"
    if work.torch_missing or work.splits is None:
        return work.torch_missing or work.no_text_reason
    if not work.may_train:
        return (
            f"not asked for, and {work.source.parameters / 1e6:.0f} M parameters train slowly on a CPU "
            "(--finetune with --tokens or --minutes does it)"
        )
    return untrainable(work)
