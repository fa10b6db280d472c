"""Steps 1 to 3: open the model, measure it as it is, gather what calibration needs."""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any

from tritpress.config import SELF_TEXT, CompressionConfig
from tritpress.errors import InputError, UsageError
from tritpress.formats.checks import check_finite
from tritpress.formats.fingerprint import fingerprints
from tritpress.formats.source import SourceModel, open_source
from tritpress.formats.targets import Target, embedding_targets, find_targets
from tritpress.formats.writing import sha256_of
from tritpress.plan import largest_reachable
from tritpress.reference import is_reference_model, reference_model_path
from tritpress.report import model_facts
from tritpress.steps.tasks import check_tasks, tasks_before
from tritpress.steps.torch_loading import load_torch
from tritpress.steps.training_memory import check_room
from tritpress.steps.work import Work
from tritpress.text import SPLITS, Splits, builtin_splits, load_splits, windows_sha256


def load(work: Work) -> None:
    """Step 1: open the model directory, find the tensors to press, check that what was asked for can be done.

    What can be refused without reading the weights to be pressed is refused here, before any work.
    """
    open_model(work)
    check_tasks(work)
    if work.splits is not None and work.may_train:
        check_room(work)
        reason = untrainable(work) if work.config.finetune else None
        if reason:
            raise UsageError(f"--finetune: {reason}")
    model = fingerprints(work.source)
    if work.kept.get("model_files") != model:  # a run that goes on with the same files has looked at them
        pressed = {target.name for target in work.targets}
        check_finite(work.source, [name for name in work.source.tensors if name not in pressed])
    _choose_by_machine(work, model)
    _check_same_model(work, model)
    _check_same_text(work)
    work.context.emit("model", **model_found(work, work.targets))
    work.context.emit("figures", bytes=work.source.bytes_on_disk, bytes_fp32=work.source.bytes_fp32)


def model_found(work: Work, targets: list[Target]) -> dict[str, Any]:
    """What the event says of the model and of the tensors to press."""
    return {
        "model": model_facts(work),
        "targets": [
            {
                "name": t.name,
                "layer": t.layer,
                "kind": t.kind,
                "rows": t.rows,
                "cols": t.cols,
                "weights": math.prod(t.shape),
            }
            for t in targets
        ],
    }


def open_model(work: Work) -> float:
    """Set source, targets, text and method from what was asked for; returns the largest reachable ratio.

    Raises `InputError` and `UsageError` for all that can be refused by headers, text and plan alone.
    """
    work.source = open_source(work.request["model"])
    work.targets = find_targets(work.source)
    if work.config.device == "cuda":
        _ = work.device  # refused where there is none
    largest = largest_reachable(work.source, work.targets, work.config)  # refuses a target beyond it
    work.given_plan()  # one that does not fit is refused now rather than after the baseline
    _find_text(work)
    _choose_method(work)
    return largest


def baseline(work: Work) -> str | None:
    """Step 2: perplexity, top-1 and latency of the original in float32 on held-out text."""
    tasks_before(work)
    if work.cannot_measure:
        return None if work.config.tasks else work.cannot_measure
    speed = time_in_turns(work, {"before": work.original})["before"]
    measured = measure(work, work.reference, step=2) | speed
    work.write_json("baseline.json", measured)
    emit_evaluation(work, "before", measured)
    return None


def calibration(work: Work) -> str | None:
    """Step 3: second moments of the inputs and output gradients of every tensor to press."""
    if not work.calibrates:
        return "the fast method reads the weights alone"
    from tritpress.ternarize.calibration import save_calibration
    from tritpress.ternarize.embeddings import calibrate_with_embeddings

    own = None
    if (plan := work.given_plan()) is not None:
        own = {name: planned.asked(work.config) for name, planned in plan.tensors.items()}
    found = calibrate_with_embeddings(
        work.original,
        target_modules(work, work.original),
        target_modules(work, work.original, embedding_targets(work.source)),
        work.windows("calibration"),
        work.context,
        work.config,
        work.folder,
        own,
    )
    save_calibration(found, work.folder / "calibration.safetensors")
    return None


def measure(work: Work, model: Any, *, step: int, reference: Any = None) -> dict[str, Any]:
    """Evaluate `model` over the held-out windows: figures, and per-window sums for the bootstrap.

    Its `tokens_per_s` counts whatever else the machine did meanwhile; `time_in_turns` gives one to compare.
    `memory_bytes` is what the loaded model holds after the evaluation, kernels' copies included.
    """
    from tritpress.evaluate.memory import held_bytes
    from tritpress.evaluate.perplexity import evaluate_model
    from tritpress.evaluate.streamed import Streamed

    windows = work.windows("held_out")
    model = work.for_evaluation(model)

    def progress(done: int, total: int) -> None:
        work.context.emit("step.progress", step=step, done=done, total=total, detail="held-out windows")

    with contextlib.ExitStack() as stack:
        for one in (model, reference):
            if isinstance(one, Streamed):
                stack.enter_context(one.held())
        evaluation = evaluate_model(model, windows, reference=reference, ctx=work.context, progress=progress)
    return evaluation.to_json() | {"memory_bytes": held_bytes(model)}


def time_in_turns(
    work: Work, models: dict[str, Any], turns: int = 3
) -> dict[str, dict[str, Any]]:
    """{name: {latency_ms, tokens_per_s}} of several models, timed one after the other again and again.

    In place of a model there may be a function that opens it. Such a model, and the weights of a paged one,
    are in memory only for its own turns; a paged one that would take more than half of the memory that is
    free is not timed (None), since reading from disk is not what is compared.

    The medians can be compared with each other, whatever else the machine did meanwhile. `latency_ms`: one
    generated token (batch 1, key-value cache or states), None with `latency_reason` for a model that gives
    back neither; `tokens_per_s`: whole windows at once, four in a batch (fewer
    where the vocabulary is large).
    """
    import statistics
    import time

    import torch

    from tritpress.allocator import give_back_freed
    from tritpress.evaluate.latency import NO_CACHE, decode_latency
    from tritpress.evaluate.perplexity import batches_of, logits_of
    from tritpress.nn.paging import holding, reading_rows

    windows = work.windows("held_out")
    vocabulary = int(work.source.config.get("vocab_size") or 32_768)
    batch = torch.from_numpy(batches_of(windows[:4], vocabulary, None)[0].copy()).to(work.device)
    found: dict[str, dict[str, list[float]]] = {name: {"latency": [], "speed": []} for name in models}
    with torch.inference_mode():
        for turn in range(turns + 1):
            for name, given in models.items():
                work.context.check()
                model = given if isinstance(given, torch.nn.Module) else given()
                if _too_large_to_hold(model):
                    continue
                with holding(model, without=reading_rows(model)):
                    latency = decode_latency(
                        model, windows[0][: max(2, work.window // 4)], tokens=16, warm_up=4
                    )
                    started = time.perf_counter()
                    logits_of(model, batch)
                    if work.device == "cuda":
                        torch.cuda.synchronize()
                    seconds = time.perf_counter() - started
                del model
                give_back_freed()
                if turn:  # the first turn warms up
                    if latency is not None:
                        found[name]["latency"].append(latency.latency_ms)
                    found[name]["speed"].append(batch.numel() / seconds)
    return {
        name: {
            "latency_ms": statistics.median(times["latency"]) if times["latency"] else None,
            "tokens_per_s": statistics.median(times["speed"]) if times["speed"] else None,
            **({"latency_reason": NO_CACHE} if times["speed"] and not times["latency"] else {}),
        }
        for name, times in found.items()
    }


def _too_large_to_hold(model: Any) -> bool:
    from tritpress.evaluate.memory import available_bytes, held_bytes
    from tritpress.nn.paging import is_paged

    available = available_bytes()
    return is_paged(model) and available is not None and held_bytes(model) > available / 2


def emit_evaluation(work: Work, when: str, measured: dict[str, Any]) -> None:
    """Keep an evaluation and report it as an event, without its per-window sums."""
    work.evaluations[when] = measured
    figures = {key: value for key, value in measured.items() if not key.endswith("_per_window")}
    written = work.source.bytes_on_disk if when == "before" else work.output_bytes.get(when)
    work.context.emit("evaluation", when=when, bytes=written, **figures)


def target_modules(work: Work, model: Any, targets: list[Target] | None = None) -> dict[str, Any]:
    """Target name -> its module in `model`, for every target (by default the linear layers) that has one."""
    from tritpress.formats.huggingface import modules_of

    found = modules_of(model, [target.name for target in (work.targets if targets is None else targets)])
    return {name: module for name, (_, module) in found.items()}


def untrainable(work: Work) -> str | None:
    """Why the pressed tensors cannot be trained; None when they can. Opens the model."""
    modules = target_modules(work, work.original)
    without = [target.name for target in work.targets if target.name not in modules]
    if not without:
        return None
    return f"{len(without)} tensors are no linear module of their own (the first: {without[0]})"


def has_reference_weights(source: SourceModel) -> bool:
    """Whether these are the weights of the built-in reference model, wherever they lie."""
    if is_reference_model(source.path):
        return True
    own = reference_model_path() / "model.safetensors"
    if len(source.weight_files) != 1 or source.weight_files[0].stat().st_size != own.stat().st_size:
        return False
    return sha256_of(source.weight_files[0]) == sha256_of(own)


def _needs_text(config: CompressionConfig) -> list[str]:
    """The options given that ask for calibration or fine-tuning, neither of which there is without text."""
    calibrated = config.method in ("weighted", "gptq")
    asked = {f"--method {config.method}": calibrated, "--finetune": bool(config.finetune)}
    if config.finetune is not False:
        budgets = ("tokens", "epochs", "minutes")
        asked |= {f"--{budget}": getattr(config, budget) is not None for budget in budgets}
    return [option for option, given in asked.items() if given]


def _find_text(work: Work) -> None:
    config = work.config
    if config.text:
        work.splits = _given_splits(work)
    elif has_reference_weights(work.source):
        work.splits = builtin_splits()
    else:
        work.no_text_reason = "no text was given (--text)"
        for option in _needs_text(config):
            raise UsageError(f"{option} needs text: give files or folders of it with --text")
    if work.splits is not None:
        work.text_facts = {
            "source": work.splits.source,
            **{f"{split}_sha256": work.splits.sha256(split) for split in SPLITS},
            "near_duplicates_left_out": work.splits.left_out,
            "held_out_tokens": None,
            "window": work.window,
        }


def _given_splits(work: Work) -> Splits:
    config = work.config
    if SELF_TEXT not in config.text:
        return load_splits(config.text, config.text_field)
    if len(config.text) > 1:
        raise UsageError("--text self stands alone: give the model's own text or files, not both")
    if work.torch_missing:
        raise UsageError(f"--text self: {work.torch_missing}")
    from tritpress.steps.self_text import self_written_splits

    _start_torch(work)
    return self_written_splits(work)


def _start_torch(work: Work) -> None:
    """Load torch; a resumed run computes with as many threads as at its start, others give other bits."""
    load_torch()
    threads = work.kept.get("threads") or work.config.threads
    if threads:
        import torch

        torch.set_num_threads(threads)


def _choose_method(work: Work) -> None:
    config, missing = work.config, work.torch_missing
    if missing:
        for option in _needs_text(config):
            raise UsageError(f"{option}: {missing}")
    can_calibrate = work.splits is not None and not missing
    work.method = config.method if config.method != "auto" else ("gptq" if can_calibrate else "fast")
    if work.needs_torch:
        _start_torch(work)
        import torch

        torch.manual_seed(config.seed)
        if work.cannot_measure is None:
            _keep_held_out_windows(work)
        _cut_windows(work)


def _cut_windows(work: Work) -> None:
    """Cut the text that later steps read, so that one too short for a window is refused before any work."""
    if work.splits is None:
        return
    if work.calibrates:
        work.windows("calibration")
    if work.may_train:
        work.windows("validation")


def _keep_held_out_windows(work: Work) -> None:
    """Leave the evaluated tokens in the work folder, so that anyone can evaluate on the very same ones."""
    import numpy as np

    windows = work.windows("held_out")
    assert work.text_facts is not None
    work.text_facts["held_out_tokens"] = int(windows.shape[0] * (windows.shape[1] - 1))
    work.text_facts["held_out_windows_sha256"] = windows_sha256(windows)
    np.save(work.folder / "held_out_windows.npy", windows)


def _text_hashes(work: Work) -> dict[str, str] | None:
    facts = work.text_facts
    return None if facts is None else {split: facts[f"{split}_sha256"] for split in SPLITS}


def _check_same_model(work: Work, now: dict[str, str]) -> None:
    """Refuse to go on with another model than the run began with: what was kept is of that one. A run begun
    before its files were noted goes on."""
    before = work.chosen.get("model_files") or now
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(
            f"the model {work.source.path} has changed since run {work.directory.id} began "
            f"({changed[0]}{more}): put it back as it was, or start a new run"
        )


def _check_same_text(work: Work) -> None:
    """Refuse to go on with other text than the run began with: what was measured and kept (the original's
    perplexity, the calibration, its cached logits) is of that text."""
    before, now = work.chosen.get("text"), _text_hashes(work)
    changed = [split for split in SPLITS if before and (now is None or before[split] != now[split])]
    if changed:
        parts = ", ".join(split.replace("_", "-") for split in changed)
        older = ""
        if "model_files" not in work.kept:  # begun by an earlier version
            older = ". Files whose endings have capitals (README.MD) are read now, which they were not then"
        raise InputError(
            f"the text has changed since run {work.directory.id} began ({parts}): put it back as it was, or "
            f"start a new run{older}"
        )


def _choose_by_machine(work: Work, model: dict[str, str]) -> None:
    """Measure this machine and keep what is chosen by it, and what the run is of (`model`: its fingerprints);
    a resumed run takes what was kept.

    The kernels' path is the machine's alone (all give the same bits): where a run goes on by another one than
    it began with, `chosen` says both.
    """
    now = _measure_machine(work)
    work.chosen = work.directory.choose(**now, text=_text_hashes(work), model_files=model)
    began, path = work.chosen.get("kernel"), now["kernel"]
    if began != path:
        work.chosen = {**work.chosen, "kernel": path, "kernel_at_start": began}
        work.context.emit(
            "log",
            message=f"the run began with the kernels' path {began}; on this machine it goes on with {path}",
        )
    if work.needs_torch:
        _use_threads_alike(work)


def _use_threads_alike(work: Work) -> None:
    """As many threads for the kernels as for torch, unless `TRITPRESS_NUM_THREADS` says how many they get.

    A run that goes on with fewer processors than it began with keeps torch's number: its bits depend on that.
    """
    if not work.config.threads and _kernels_told():
        return
    from tritpress import _core
    from tritpress.ops.linear import set_threads, use_threads

    threads = int(work.chosen["threads"])
    use_threads(threads)
    if not work.config.threads and threads > (there := _core.default_threads()):
        set_threads(there)
        work.context.emit(
            "log",
            message=f"the run began with {threads} threads, which torch keeps; the kernels take the {there} "
            "of this machine",
        )


def _kernels_told() -> bool:
    return bool(os.environ.get("TRITPRESS_NUM_THREADS", "").strip())


def _measure_machine(work: Work) -> dict[str, Any]:
    from tritpress import _core

    chosen: dict[str, Any] = {"kernel": _core.isa()}
    if work.needs_torch:
        import torch

        from tritpress.finetune.number_formats import measure_number_formats

        chosen["device"] = work.device
        # What a container may use is often less than the processors that torch counts.
        fewer = torch.get_num_threads() if _kernels_told() else _core.default_threads()
        chosen["threads"] = work.config.threads or min(torch.get_num_threads(), fewer)
        chosen["number_formats"] = measure_number_formats(work.device)
    return chosen
