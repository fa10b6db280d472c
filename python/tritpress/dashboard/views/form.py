"""The sidebar as data: what was chosen, what it means for a run, and which buttons mean something now."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritpress.config import SIZE_CLASSES, CompressionConfig, make_config
from tritpress.dashboard.views import figures as fig
from tritpress.dashboard.views.status import State
from tritpress.errors import TritpressError

BUDGETS = ("epochs", "tokens", "minutes")


@dataclass(frozen=True)
class Form:
    """Everything that can be chosen before a run. `ratio` and `sparsity` None: tritpress chooses."""

    model: str = ""
    ratio: float | None = None
    sparsity: float | None = None
    finetune: bool = True
    budget: str = "tokens"
    amount: float = 100_000
    grokfast_lambda: float = 0.1
    method: str = "auto"
    planes: int | None = None
    seed: int = 0
    calibration_tokens: int = 16_384
    evaluation_tokens: int = 32_768


def config_of(form: Form) -> CompressionConfig:
    """The configuration of the run. Raises `UsageError` with one sentence when the choices do not fit."""
    values: dict[str, Any] = {
        "target_ratio": form.ratio if form.planes is None else None,
        "planes": form.planes,
        "sparsity": form.sparsity,
        "method": form.method,
        "finetune": form.finetune,
        "grokfast_lambda": form.grokfast_lambda,
        "seed": form.seed,
        "calibration_tokens": form.calibration_tokens,
        "evaluation_tokens": form.evaluation_tokens,
    }
    if form.finetune:
        values[form.budget] = form.amount if form.budget == "minutes" else int(form.amount)
    return make_config(values)


def form_of(state: State, default: Form) -> Form:
    """The choices of a run that is open, so that the sidebar shows them and Start repeats them."""
    config = state.get("config") or {}
    if not config:
        return default
    budget = next((key for key in BUDGETS if config.get(key) is not None), default.budget)
    sparsity = config.get("sparsity")
    return Form(
        model=(state.get("model") or {}).get("path") or default.model,
        ratio=config.get("target_ratio"),
        sparsity=sparsity if fig.known(sparsity) else None,
        finetune=config.get("finetune") is not False,
        budget=budget,
        amount=config.get(budget) or default.amount,
        grokfast_lambda=config.get("grokfast_lambda", default.grokfast_lambda),
        method=config.get("method", default.method),
        planes=config.get("planes"),
        seed=config.get("seed", default.seed),
        calibration_tokens=config.get("calibration_tokens", default.calibration_tokens),
        evaluation_tokens=config.get("evaluation_tokens", default.evaluation_tokens),
    )


@dataclass(frozen=True)
class ModelCheck:
    """What lies at a path: `ok` when it can be pressed, else `lines` says in a sentence what is wrong."""

    ok: bool
    path: str
    lines: tuple[str, ...]
    default_ratio: float | None = None


def check_model(path: str) -> ModelCheck:
    """Look at the headers of the model at `path`; reads no weights."""
    from tritpress.formats.source import open_source
    from tritpress.formats.targets import find_targets

    text = path.strip()
    if not text:
        return ModelCheck(
            False, "", ("Give the folder of a Hugging Face model (config.json and safetensors).",)
        )
    full = os.path.abspath(os.path.expanduser(text))
    try:
        source = open_source(full)
        targets = find_targets(source)
    except (TritpressError, OSError, ValueError, KeyError) as error:
        return ModelCheck(False, full, (str(error) or type(error).__name__,))
    layers = len({target.layer for target in targets})
    return ModelCheck(
        True,
        full,
        (
            f"{source.architecture} · {fig.large_count(source.parameters)} parameters"
            f" · {source.source_dtype}",
            f"{fig.plural(layers, 'layer')} · {fig.plural(len(targets), 'tensor')} to press · "
            f"{fig.size(source.bytes_on_disk)} on disk",
            f"Size class {source.size_class}: {fig.ratio(source.class_ratio)} unless chosen otherwise",
        ),
        source.class_ratio,
    )


@dataclass(frozen=True)
class Controls:
    """Which buttons mean something; `toggle` is what the second button does now."""

    start: bool
    pause: bool
    resume: bool
    stop: bool
    reset: bool
    form: bool
    toggle: str  # Pause or Resume


def controls(state: State | None, lost: bool, model_ok: bool, waiting: bool = False) -> Controls:
    """`waiting`: a command was sent and not yet acknowledged."""
    status = None if state is None else "lost" if lost else state["status"]
    at_work = status in ("created", "running", "paused")
    can_resume = status in ("paused", "stopped", "failed", "lost")
    return Controls(
        start=not at_work and model_ok and not waiting,
        pause=status == "running" and not waiting,
        resume=can_resume and not waiting,
        stop=status in ("running", "paused") and not waiting,
        reset=status is not None,
        form=not at_work,
        toggle="Resume" if can_resume else "Pause",
    )


FLAGS = {
    "target_ratio": "--ratio",
    "planes": "--planes",
    "method": "--method",
    "sparsity": "--sparsity",
    "epochs": "--epochs",
    "tokens": "--tokens",
    "minutes": "--minutes",
    "grokfast_lambda": "--grokfast-lambda",
    "seed": "--seed",
}


def toml_of(form: Form) -> str:
    """The choices as a file for `tritpress compress --config`; only what differs from the default."""
    chosen = config_of(form).model_dump(mode="json")
    default = CompressionConfig().model_dump(mode="json")
    lines = [f"{key} = {json.dumps(value)}" for key, value in chosen.items() if value != default[key]]
    return "\n".join(lines)


def command_of(form: Form) -> str:
    """The equal command line."""
    import shlex

    chosen = config_of(form).model_dump(mode="json")
    default = CompressionConfig().model_dump(mode="json")
    parts = ["tritpress", "compress", shlex.quote(form.model or "MODEL"), "-o", "OUT"]
    for key, flag in FLAGS.items():
        if chosen[key] != default[key]:
            value = chosen[key]
            parts += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    if chosen["finetune"] is not None:
        parts.append("--finetune" if chosen["finetune"] else "--no-finetune")
    return " ".join(parts)


SIZE_CLASS_WORDS = ", ".join(f"{name} {ratio:g}×" for name, (_, ratio) in SIZE_CLASSES.items())


def default_model() -> str:
    """The packaged reference model, or nothing when the package carries none."""
    from tritpress.reference import reference_model_path

    path = Path(reference_model_path())
    return str(path) if path.is_dir() else ""
