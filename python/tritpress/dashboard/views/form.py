"""The sidebar as data: what was chosen, what it means for a run, and which buttons mean something now."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tritpress.config import (
    BUDGETS,
    SIZE_CLASSES,
    UNSAFE_OVER_API,
    CompressionConfig,
    beyond_defaults,
    make_config,
    plan_to_name,
    without_unused,
)
from tritpress.config import toml_of as toml_lines
from tritpress.dashboard.views.status import ELSEWHERE, State
from tritpress.errors import UsageError
from tritpress.evaluate.rerun import OPTION_OF
from tritpress.events.rules import DEFAULT_RULES


@dataclass(frozen=True)
class Form:
    """Everything that can be chosen before a run. `ratio`, `sparsity`, `threshold` None: tritpress chooses.

    `extra` holds settings that the sidebar has no field for; they come from a run that was opened.
    """

    model: str = ""
    ratio: float | None = None
    planes: int | None = None
    sparsity: float | str | None = None  # "free" lifts the ceiling
    threshold: float | None = None
    method: str = "auto"
    finetune: bool = True
    budget: str = "tokens"
    amount: float = 100_000
    optimizer: str = "adamw"
    grokfast_lambda: float = 0.1
    weight_decay: float = 0.0
    outputs: str = "both"
    text: tuple[str, ...] = ()
    device: str = "auto"
    seed: int = 0
    calibration_tokens: int = 16_384
    evaluation_tokens: int = 32_768
    alerts: tuple[str, ...] = DEFAULT_RULES
    alert_webhook: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


PLAIN = (
    "planes",
    "sparsity",
    "threshold",
    "method",
    "finetune",
    "optimizer",
    "grokfast_lambda",
    "weight_decay",
    "outputs",
    "device",
    "seed",
    "calibration_tokens",
    "evaluation_tokens",
    "alert_webhook",
)
"""Fields of the form that are fields of the configuration by the same name."""


def config_of(form: Form) -> CompressionConfig:
    """The configuration of the run. Raises `UsageError` with one sentence when the choices do not fit."""
    values: dict[str, Any] = {**form.extra, **{key: getattr(form, key) for key in PLAIN}}
    if form.optimizer != "mugrokfast":  # the field keeps its number while another optimizer is chosen
        del values["grokfast_lambda"]
    values["target_ratio"] = form.ratio if form.planes is None else None
    values["text"], values["alerts"] = list(form.text), list(form.alerts)
    if form.finetune:
        if form.budget != "minutes" and form.amount != int(form.amount):
            raise UsageError(f"{form.budget} are counted in whole numbers: {form.amount:,} is none")
        values[form.budget] = form.amount if form.budget == "minutes" else int(form.amount)
    return make_config(values)


def form_of(state: State, default: Form, run_path: Path | None = None) -> Form:
    """The choices of a run that is open, so that the sidebar shows them and Start repeats them. `run_path`:
    folder of a run of this machine, whose copy of its plan counts where the plan is not as it was.
    """
    config = state.get("config") or {}
    if not config:
        return default
    if run_path is not None and config.get("plan"):
        config = {**config, "plan": plan_to_name(str(config["plan"]), run_path)}
    return fill_form(replace(default, model=(state.get("model") or {}).get("path") or default.model), config)


def fill_form(form: Form, config: Mapping[str, Any]) -> Form:
    """`form` with the settings of that configuration, which may hold only some fields."""
    known = CompressionConfig().model_dump(mode="json")
    safe = {key: value for key, value in config.items() if key in known and key not in UNSAFE_OVER_API}
    given = {**known, **without_unused(safe)}
    budget = next((key for key in BUDGETS if given[key] is not None), None)
    shown = {"target_ratio", "text", "alerts", *PLAIN, *BUDGETS}
    extra = {
        key: value
        for key, value in given.items()
        if key not in shown and key != "overwrite" and value != known[key]
    }
    return replace(
        form,
        **{key: given[key] for key in PLAIN if key != "finetune"},
        ratio=given["target_ratio"],
        finetune=given["finetune"] is not False,
        budget=budget or form.budget,
        amount=given[budget] if budget else form.amount,
        text=tuple(given["text"]),
        alerts=tuple(given["alerts"]),
        extra=extra,
    )


@dataclass(frozen=True)
class Controls:
    """Which buttons mean something; `toggle` names which of Pause and Resume is shown. `another`: in place of
    Start stands the button that leaves the run at work for a new one.

    `why` says for each button that means nothing (start, toggle, stop, reset) why.
    """

    start: bool
    pause: bool
    resume: bool
    stop: bool
    reset: bool
    form: bool
    toggle: str  # Pause or Resume
    another: bool = False
    why: Mapping[str, str] = field(default_factory=dict)


WAITING = "A moment: the last button is not done yet"


def controls(
    state: State | None,
    lost: bool,
    model_ok: bool,
    waiting: bool = False,
    may_act: bool = True,
    why_not: str = "",
    remote: bool = False,
    gone: bool = False,
) -> Controls:
    """`waiting`: a command was sent and not yet acknowledged. `may_act` False: the page only shows. `remote`:
    the run is worked on elsewhere and only told of here. `gone`: its folder is no longer there.
    """
    status = None if state is None else "gone" if gone else "lost" if lost else state["status"]
    at_work = status in ("created", "queued", "running", "paused")
    can_resume = status in ("paused", "stopped", "failed", "lost")
    can_stop = status in ("queued", "running", "paused")
    free = may_act and not waiting and not remote
    why = {}
    if not model_ok:
        why["start"] = "Give a model folder first"
    why["toggle"] = {
        None: "No run is open",
        "gone": "The run's folder is no longer there",
        "finished": "The run is finished",
        "created": "Nothing was told of the run so far" if remote else "The worker is still starting",
        "queued": "The run has not begun: it waits for others",
    }.get(status, "")
    why["stop"] = "" if can_stop else "No run is open" if status is None else "The run is not at work"
    if remote:
        steered = {"toggle": can_resume or status == "running", "stop": can_stop}
        why.update({name: ELSEWHERE for name, meant in steered.items() if meant})
    why["reset"] = "No run is open" if status is None else ""
    for name in ("start", "toggle", "stop"):
        why[name] = why_not if not may_act else WAITING if waiting else why.get(name, "")
    return Controls(
        start=not at_work and model_ok and may_act and not waiting,
        pause=status == "running" and free,
        resume=can_resume and free,
        stop=can_stop and free,
        reset=status is not None,
        form=not at_work and may_act,
        toggle="Resume" if can_resume else "Pause",
        another=at_work and may_act,
        why=why,
    )


FLAGS = {**OPTION_OF, "alert_webhook": "--alert-webhook"}
TEXT_FLAGS = {"text": "--text", "alerts": "--alert"}
WHOLE_FLAGS: dict[str, dict[Any, str]] = {
    "finetune": {True: "--finetune", False: "--no-finetune"},
    "outputs": {"packed": "--packed-only", "dequantized": "--dequantized-only"},
    "evaluate": {False: "--no-eval"},
}
SETTINGS_FILE = "settings.toml"


def chosen(form: Form) -> dict[str, Any]:
    """The settings that differ from the default."""
    return beyond_defaults(config_of(form).model_dump(mode="json"))


def toml_of(form: Form) -> str:
    """The choices as a file for `tritpress compress --config`; only what differs from the default."""
    return toml_lines(chosen(form)).rstrip("\n")


def command_of(form: Form) -> str:
    """The equal command line; with `--config` where a setting has no option of its own."""
    parts = ["tritpress", "compress", shlex.quote(form.model or "MODEL"), "-o", "OUT"]
    settings = chosen(form)
    if settings.keys() - FLAGS.keys() - TEXT_FLAGS.keys() - WHOLE_FLAGS.keys():
        return " ".join([*parts, "--config", SETTINGS_FILE])
    for key, flag in FLAGS.items():
        if key in settings:
            value = settings[key]
            parts += [flag, f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))]
    for key, flag in TEXT_FLAGS.items():
        for value in settings.get(key) or (["none"] if key in settings else []):
            parts += [flag, shlex.quote(value)]
    for key, words in WHOLE_FLAGS.items():
        if key in settings and settings[key] in words:
            parts.append(words[settings[key]])
    return " ".join(parts)


SIZE_CLASS_WORDS = ", ".join(f"{name} {ratio:g}×" for name, (_, ratio) in SIZE_CLASSES.items())


def default_model() -> str:
    """The packaged reference model, or nothing when the package carries none."""
    from tritpress.reference import reference_model_path

    path = Path(reference_model_path())
    return str(path) if path.is_dir() else ""
