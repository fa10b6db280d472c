"""Steps 6 and 7: write both models, read them back, measure them, judge the gates and the handoff."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritpress.errors import InputError
from tritpress.formats.dequantized import write_dequantized
from tritpress.formats.output import clear_stale, disk_errors, write_atomically
from tritpress.formats.packed import write_packed
from tritpress.formats.writing import sha256_of
from tritpress.report import plain, versions
from tritpress.steps.alternatives import rerun, ways_out
from tritpress.steps.places import dequantized_folder, packed_folder
from tritpress.steps.prepare import emit_evaluation, measure, time_in_turns
from tritpress.steps.tasks import tasks_after
from tritpress.steps.work import PAGED_FROM, Work

GRADIENT_WINDOWS = 16
"""Held-out windows of the backward pass that measures gradient norms."""

GRADIENT_WINDOWS_LARGE = 4
"""The same for models of `PAGED_FROM` weights and more, whose passes are long; all are taken where there are
experts, who see few tokens each."""


def outputs(work: Work) -> None:
    """Step 6: the packed model, then the dequantized one made from its bytes on disk.

    The one that was not asked for is written to the work folder, until step 7 has measured both.
    """
    assert work.plan is not None
    for folder in (packed_folder(work), dequantized_folder(work)):
        with disk_errors(folder):
            clear_stale(folder)  # what lies there is looked at as it was before a kill
    write_packed(
        work.source,
        work.plan,
        work.final_store,
        packed_folder(work),
        seed=work.config.seed,
        versions=_versions_in_file(),
        dense=work.trained_rest,
        overwrite=_may_replace(work, packed_folder(work)),
        ctx=work.context,
    )
    _note_written(work, packed_folder(work))
    work.context.check()
    write_dequantized(
        packed_folder(work),
        work.source,
        dequantized_folder(work),
        overwrite=_may_replace(work, dequantized_folder(work)),
        ctx=work.context,
    )
    _note_written(work, dequantized_folder(work))


def validation(work: Work) -> str | None:
    """Step 7: read both models back from disk, evaluate them, measure gradients, judge gates and handoff.

    What cannot be measured (no text, no torch) stays null in its gate, with the reason.
    """
    from tritpress.allocator import give_back_freed
    from tritpress.evaluate.gates import judge

    _list_outputs(work)
    _size_figures(work)
    reason = work.cannot_measure
    gradients = None
    models: dict[str, Any] = {}
    if reason is None:
        from tritpress.nn.paging import is_paged

        models = _evaluate_outputs(work)
        if is_paged(models["dequantized"]) or _has_experts(work):  # makes room for what follows
            del models["packed"]
            give_back_freed()
        gradients = _measure_gradients(work, models["dequantized"])
    if work.config.tasks:
        tasks_after(work, models.get("packed") or _open_packed(work))
    work.figures["prediction"] = _prediction(work)
    work.context.emit("figures", prediction=work.figures["prediction"])
    command = rerun(work)
    work.gates = judge(work, gradients, command=command, not_measured=reason)
    if any(gate["passed"] is False for gate in work.gates):  # what could mend it costs a while to find
        work.gates = judge(work, gradients, command=command, ways=ways_out(work), not_measured=reason)
    for gate in work.gates:
        work.context.emit("gate", **gate)
    if models and "packed" not in models:
        give_back_freed()
        models["packed"] = _open_packed(work)
    work.handoff = _handoff(work, models)
    work.context.emit("handoff", items=work.handoff)
    return None if work.config.tasks else reason


def publish_report(work: Work, report: dict[str, Any]) -> None:
    """Write `OUT/report.json`, at once or not at all."""
    path = work.out / "report.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {path.parent}: {error.strerror or error}") from error
    write_atomically(path, json.dumps(plain(report), indent=1) + "\n")


def _may_replace(work: Work, folder: Path) -> bool:
    """Whether `folder` may be replaced: on request, or when it is what this very run wrote before a stop."""
    if work.config.overwrite:
        return True
    written = (work.read_json("written.json") or {}).get(str(folder))
    if not _listing(folder):
        work.write_json("written.json", {**(work.read_json("written.json") or {}), str(folder): "begun"})
        return False
    if written == "begun":  # killed between the renaming and the note of it
        return _holds_only_our_files(work, folder)
    return written is not None and written == _listing(folder)


def _holds_only_our_files(work: Work, folder: Path) -> bool:
    """Whether a folder that was empty when this run began to write holds nothing but such a model."""
    assert work.plan is not None
    known = {path.name for path in work.source.path.iterdir()} | {"tritpress.json", "config.json"}
    names = {path.name for path in folder.rglob("*")}
    if not all(name in known or (name[:5] == "model" and ".safetensors" in name) for name in names):
        return False
    told = packed_folder(work) / "tritpress.json"
    try:
        found = json.loads(told.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found.get("seed") == work.config.seed and set(found.get("plan", {}).get("tensors", {})) == set(
        work.plan.tensors
    )


def _note_written(work: Work, folder: Path) -> None:
    """Remember what this run put there, file by file, so that a resumed run knows it again."""
    written = work.read_json("written.json") or {}
    work.write_json("written.json", {**written, str(folder): _listing(folder)})


def _listing(folder: Path) -> list[list[Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_ino] for path in files]


def _versions_in_file() -> dict[str, str]:
    # the packed bytes follow from tritpress and the libraries that compute, not from the interpreter's patch
    return {name: version for name, version in versions().items() if name in ("tritpress", "numpy", "torch")}


def _list_outputs(work: Work) -> None:
    for kind, folder in (("packed", packed_folder(work)), ("dequantized", dequantized_folder(work))):
        weights = 0
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            size = path.stat().st_size
            if path.suffix == ".safetensors":
                weights += size
            if work.out in path.parents:
                entry = {"path": str(path.relative_to(work.out)), "bytes": size, "sha256": sha256_of(path)}
                work.output_files.append(entry)
                work.context.emit("output", **entry)
        work.output_bytes[kind] = weights


def _size_figures(work: Work) -> None:
    packed = work.output_bytes["packed"]
    work.figures.update(
        ratio_file=work.source.bytes_fp32 / packed,
        ratio_disk=work.source.bytes_on_disk / packed,
    )
    work.context.emit("figures", packed_bytes=packed, **work.figures)


def _evaluate_outputs(work: Work) -> dict[str, Any]:
    """Evaluate both models as read back from disk against the original, then time all three in turns."""
    from tritpress.evaluate.bootstrap import perplexity_interval, ratio_interval
    from tritpress.formats.source import open_source
    from tritpress.nn.paging import is_paged

    def packed() -> Any:
        return _open_packed(work)

    dequantized = work.open_dense(open_source(dequantized_folder(work)))
    speeds = None
    if is_paged(dequantized):  # too large to hold them side by side: each is opened for its own turns
        speeds = time_in_turns(
            work, {"before": work.original, "packed": packed, "dequantized": dequantized}, turns=2
        )
    models = {"packed": packed(), "dequantized": dequantized}
    measured = {
        when: measure(work, model, step=7, reference=work.reference) for when, model in models.items()
    }
    measured = {"before": work.evaluations["before"], **measured}
    speeds = speeds or time_in_turns(work, {"before": work.original, **models})
    for when, figures in measured.items():
        emit_evaluation(work, when, figures | speeds[when])
    before, after = work.evaluations["before"], work.evaluations["packed"]
    work.figures.update(
        perplexity_change=after["perplexity"] / before["perplexity"] - 1,
        perplexity_interval=perplexity_interval(
            np.asarray(before["nll_per_window"]),
            np.asarray(after["nll_per_window"]),
            work.window - 1,
            seed=work.config.seed,
        ),
        accuracy_kept=after["top1"] / before["top1"] if before["top1"] else None,
        accuracy_interval=ratio_interval(
            np.asarray(after["hits_per_window"]),
            np.asarray(before["hits_per_window"]),
            seed=work.config.seed,
        ),
    )
    work.context.emit("figures", **work.figures)
    work.forget_reference()
    return models


def _open_packed(work: Work) -> Any:
    from tritpress.loading import load

    return load(packed_folder(work), device=work.device)


def _measure_gradients(work: Work, dequantized: Any) -> Any:
    from tritpress.evaluate.gradient_flow import gradient_flow, gradient_norms, gradient_norms_by_block
    from tritpress.formats.huggingface import parameters_of, tensors_among
    from tritpress.nn.paging import is_paged

    few = work.source.parameters >= PAGED_FROM and not _has_experts(work)
    windows = work.windows("held_out")[: GRADIENT_WINDOWS_LARGE if few else GRADIENT_WINDOWS]
    norms = {}
    names = [target.name for target in work.pressed]
    for which, model in (("dequantized", dequantized), ("original", work.original)):
        places, stacked = parameters_of(model, names)
        if is_paged(model):  # its parameters are one to one the files' tensors
            norms[which] = gradient_norms_by_block(
                model, windows, places, folder=work.folder, ctx=work.context
            )
            continue
        norms[which] = gradient_norms(
            model,
            windows,
            {name: getattr(owner, key) for name, (owner, key) in places.items()},
            stacked=stacked,
            apart=partial(tensors_among, model, names=set(names)),
            ctx=work.context,
        )
    work.gradient_norms = norms["dequantized"]
    for name, norm in work.gradient_norms.items():
        work.context.emit("gradient", layer=name, norm=norm, original=norms["original"].get(name))
    return gradient_flow(norms["dequantized"], norms["original"], names)


def _has_experts(work: Work) -> bool:
    return any(target.kind == "expert" for target in work.targets)


def _prediction(work: Work) -> dict[str, Any]:
    """What the planner foretold beside what was measured; null for what it or the run could not tell.

    `loss` (nats a token, where `basis` is calibrated) is to be held against the KL divergence from the
    original; both predictions are of the model before any fine-tuning.
    """
    assert work.plan is not None
    return {
        "basis": work.plan.basis,
        "loss": work.plan.predicted_loss,
        "perplexity_change": work.plan.predicted_change,
        "measured_kl": (work.evaluations.get("packed") or {}).get("kl"),
        "measured_perplexity_change": work.figures.get("perplexity_change"),
        "fine_tuned_tokens": int((work.fine_tuning or {}).get("tokens") or 0),
    }


def _handoff(work: Work, models: dict[str, Any]) -> list[dict[str, Any]]:
    from tritpress.evaluate.handoff import check_handoff

    return check_handoff(
        packed_folder(work),
        dequantized_folder(work),
        work.source,
        models=models,
        windows=work.windows("held_out")[:1] if models else None,
        gates=work.gates,
    )
