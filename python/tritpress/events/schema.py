"""The events of a run: names, fields, and the one way they become a line of JSON."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, NotRequired, TypedDict

SCHEMA_VERSION = 1

STEP_NAMES = ("load", "baseline", "calibration", "ternarization", "fine-tuning", "outputs", "validation")
"""The seven steps; step n is STEP_NAMES[n - 1]."""

ENDED = ("finished", "failed", "stopped")
"""States of a run that is over."""

RUN_STATES = ("created", "queued", "running", "paused", *ENDED)
STEP_STATES = ("waiting", "running", "done", "skipped", "failed")


class Event(TypedDict):
    """Keys of every event; each type adds its own."""

    v: int
    run: str
    seq: int  # 1, 2, 3 ... without a gap, over resumes too
    t: float  # seconds since 1970, UTC
    type: str


COMMON_KEYS = frozenset(Event.__annotations__)
"""Names that no field of a type may have."""


class RunStarted(Event):
    model: str
    out: str
    config: dict[str, Any]
    name: str
    resumed: bool
    pid: int
    host: str
    remote_out: NotRequired[str]  # in place of `out` where the run was pushed by another machine


class RunQueued(Event):
    after: list[str]  # ids of the runs it waits for


class RunFinished(Event):
    status: Literal["finished", "stopped"]
    exit_code: int | None  # 0, or 3 where a gate or a check of the handoff failed; None for a stopped run
    report: str | None  # path of report.json
    write_seconds: float  # spent on events and snapshots in this process
    seconds: float  # this process was at work


class RunFailed(Event):
    error: str  # one sentence
    exit_code: int
    write_seconds: float
    seconds: float


class StepStarted(Event):
    step: int
    name: str


class StepProgress(Event):
    step: int
    name: str
    done: float
    total: float | None
    detail: NotRequired[str]


class StepFinished(Event):
    step: int
    name: str
    seconds: float
    skipped: str | None  # the reason


class ModelFacts(TypedDict):
    path: str
    architecture: str | None
    parameters: int | None
    size_class: str | None
    source_dtype: str | None


class ModelTarget(TypedDict):
    name: str
    layer: int | None
    kind: str
    rows: int  # of one expert, where there are several
    cols: int
    weights: NotRequired[int]  # over all experts; rows times cols where it is left out


class ModelFound(Event):
    model: dict[str, Any]  # as `ModelFacts`
    targets: list[dict[str, Any]]  # each as `ModelTarget`


class PlannedTensor(ModelTarget):
    planes: int
    bits: float
    method: str
    threshold: float | None
    sparsity: float | None
    max_sparsity: float | None
    predicted_loss: float | None
    plane_losses: list[float] | None  # at 1, 2, 3 planes


class PlanMade(Event):
    tensors: list[dict[str, Any]]  # each as `PlannedTensor`
    predicted_ratio: float
    predicted_loss: NotRequired[float | None]  # of the whole model
    predicted_perplexity_change: NotRequired[float | None]  # null where the basis is the weights alone
    basis: NotRequired[Literal["calibrated", "weights"]]  # losses in nats a token, or relative weight errors
    embeddings: Literal["fp16", "int8"]


class Histogram(TypedDict):
    """Counts of w / mean|w| of the group, 128 bins from lo to hi, what lies outside in the end bins."""

    lo: float
    hi: float
    before: list[int]
    after: list[int]


class Figures(Event):
    """Of the whole model; those that are not known yet are left out."""

    bytes: NotRequired[float]
    bytes_fp32: NotRequired[float]
    ratio_file: NotRequired[float]
    ratio_layers: NotRequired[float]
    ratio_disk: NotRequired[float]
    bits_per_weight: NotRequired[float]
    planes_mean: NotRequired[float]
    sparsity: NotRequired[float]
    zeros_all_planes: NotRequired[float]
    perplexity_change: NotRequired[float | None]
    perplexity_interval: NotRequired[list[float] | None]
    accuracy_kept: NotRequired[float | None]
    accuracy_interval: NotRequired[list[float] | None]


class LayerStarted(Event):
    """The tensor whose turn has come; `layer.finished` follows."""

    name: str
    layer: int | None
    kind: str


class LayerFinished(Event):
    name: str
    layer: int | None
    kind: str
    rows: int  # of one expert, where there are several
    cols: int
    weights: NotRequired[int]  # over all experts; rows times cols where it is left out
    planes: int
    group_size: int
    bits: float
    ratio: float
    sparsity: float
    zeros_all_planes: float
    mse: float
    cosine: float
    relative_error: NotRequired[float | None]  # squared error over squared norm
    sign_flips: NotRequired[float]  # share of nonzero weights that came out with the other sign
    threshold_used: NotRequired[float | None]  # median over groups of the largest |w| / mean|w| that became 0
    histogram: NotRequired[Histogram]


class EvaluationDone(Event):
    when: Literal["before", "packed", "dequantized"]
    perplexity: float | None
    perplexity_interval: NotRequired[list[float] | None]  # low and high, 95 % over windows
    top1: float | None
    top1_interval: NotRequired[list[float] | None]
    tokens: int
    latency_ms: float | None
    latency_reason: NotRequired[str]  # why it is None
    tokens_per_s: float | None
    bytes: int
    memory_bytes: NotRequired[int | None]  # of the loaded model: parameters, buffers, kernels' copies
    kl: NotRequired[float | None]
    agreement: NotRequired[float | None]


class FinetuneStep(Event):
    step: int  # of the optimizer
    epoch: float  # how often the text was seen so far
    loss: float
    ce: float
    kl: float
    lr: float
    grad_norm: float
    tokens_per_s: float


class Gradient(Event):
    layer: str  # the tensor's name
    norm: float


class Gate(Event):
    name: Literal["ratio", "accuracy", "perplexity", "sparsity", "gradient_flow"]
    target: float | list[float] | dict[str, Any] | None  # the limit; low and high of a band
    actual: float | None
    passed: bool | None  # None: not measured
    advice: str | None


class HandoffItem(TypedDict):
    name: str
    passed: bool | None  # None: not checked
    detail: NotRequired[str | None]


class Handoff(Event):
    items: list[dict[str, Any]]  # each as `HandoffItem`


class TasksDone(Event):
    accuracy_kept: float | None  # mean over the tasks
    interval: list[float] | None
    results: list[dict[str, Any]]  # task, metric, original, packed, kept, documents


class Output(Event):
    path: str
    bytes: int
    sha256: str


class Metric(Event):
    name: str
    value: float


class Alert(Event):
    rule: str  # as the configuration has it
    name: str  # what it is about: a gate, a figure, a metric
    level: Literal["warning", "critical"]
    message: str
    value: float | None
    limit: Any
    step: int | None  # of the seven


class Log(Event):
    message: str


class CommandAck(Event):
    id: str  # of the command
    command: str
    ok: bool
    detail: str


class RunPaused(Event):
    pass


class RunResumed(Event):
    seconds: float  # the pause lasted


EVENT_TYPES: dict[str, type] = {
    "run.started": RunStarted,
    "run.queued": RunQueued,
    "run.paused": RunPaused,
    "run.resumed": RunResumed,
    "run.finished": RunFinished,
    "run.failed": RunFailed,
    "step.started": StepStarted,
    "step.progress": StepProgress,
    "step.finished": StepFinished,
    "model": ModelFound,
    "plan": PlanMade,
    "figures": Figures,
    "handoff": Handoff,
    "layer.started": LayerStarted,
    "layer.finished": LayerFinished,
    "evaluation": EvaluationDone,
    "finetune.step": FinetuneStep,
    "gradient": Gradient,
    "tasks": TasksDone,
    "gate": Gate,
    "output": Output,
    "metric": Metric,
    "alert": Alert,
    "command.ack": CommandAck,
    "log": Log,
}
"""Type -> its fields. Readers pass over types and keys that they do not know."""


def check_fields(type: str, fields: dict[str, Any]) -> None:
    """Raises ValueError when a field has the name of a common key."""
    if not COMMON_KEYS.isdisjoint(fields):
        taken = sorted(COMMON_KEYS & fields.keys())
        raise ValueError(f"event {type!r}: the field {taken[0]!r} is one of the common keys")


def make_event(run: str, seq: int, t: float, type: str, fields: dict[str, Any]) -> dict[str, Any]:
    """One event as a dict. Raises ValueError when a field has the name of a common key."""
    check_fields(type, fields)
    return {"v": SCHEMA_VERSION, "run": run, "seq": seq, "t": round(t, 6), "type": type, **fields}


def most_bytes(type: str) -> int:
    """How many bytes an event of that type may have to be pushed: `model` and `plan` name every tensor, of
    which a model of many experts has tens of thousands.
    """
    return 7 << 20 if type in ("model", "plan") else 1 << 20


def encode(value: Any) -> str:
    """`value` as JSON on one line.

    numpy and torch scalars and arrays become numbers and lists, paths become strings, and numbers that JSON
    does not have (NaN, infinity) become null: a reader in any language can parse every line.
    """
    try:
        return _ENCODER.encode(value)
    except ValueError:
        finite = _finite(json.loads(json.dumps(value, default=_plain)))
        return _ENCODER.encode(finite)


def _plain(value: Any) -> Any:
    for convert in ("tolist", "item", "model_dump"):  # numpy arrays and scalars, tensors, pydantic models
        if hasattr(value, convert):
            return getattr(value, convert)()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    raise TypeError(f"an event cannot hold a {type(value).__name__}")


_ENCODER = json.JSONEncoder(default=_plain, allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
