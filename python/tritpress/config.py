"""What a run is asked to do: one pydantic model that TOML files, the command line and Python share."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tritpress.errors import UsageError
from tritpress.events.rules import DEFAULT_RULES, parse_rules

GROUP_SIZES = (0, 32, 64, 128, 256)
"""Inputs that share one scale; 0 stands for the whole row."""

MemoryFormat = Literal["2bit", "1.6bit"]
"""How the kernels hold ternary codes in memory: four in a byte, or five (less to read, more to compute)."""

BASE_GROUP_SIZE = 64
"""The group size where neither the user nor the planner chose another."""

SPARSITY_CEILING = 0.44
"""Share of zero codes that a fit may reach unless `sparsity="free"`: the gate's upper limit is 0.45."""

SIZE_CLASSES: dict[str, tuple[int, float]] = {
    "tiny": (50_000_000, 6.0),
    "small": (500_000_000, 8.0),
    "medium": (2_000_000_000, 10.0),
    "large": (2**63, 12.0),
}
"""Name -> (parameters below which a model belongs to it, default compression target)."""


def size_class(parameters: int) -> str:
    """The name of the size class of a model with that many parameters."""
    return next(name for name, (limit, _) in SIZE_CLASSES.items() if parameters < limit)


KEPT_PLAN = "given-plan.json"
"""In a run's folder: the plan that it was given, as it was when the run was made."""


def plan_to_name(given: str, run_path: Path) -> str:
    """The file to name for doing that run again by the plan it was `given`: that file, or the run's copy of
    it where the file is gone or another by now.
    """
    kept = run_path / KEPT_PLAN
    try:
        copy = kept.read_bytes()
    except OSError:  # the run is of an older version
        return given
    try:
        return given if Path(given).read_bytes() == copy else str(kept.absolute())
    except OSError:
        return str(kept.absolute())


SEEDS = 2**63
"""Seeds are below: torch takes no larger ones."""

SELF_TEXT = "self"
"""Given as text: the model writes it."""

BUDGETS = ("epochs", "tokens", "minutes")

EXCLUSIVE = {
    ("target_ratio", "planes"): "give {0} or {1}, not both: the planes decide the ratio",
    ("plan", "target_ratio"): "give {0} or {1}, not both: the plan says what each tensor gets",
    ("plan", "planes"): "give {0} or {1}, not both: the plan says how many planes each tensor gets",
    ("plan", "group_size"): "give {0} or {1}, not both: the plan says each tensor's group size",
    ("plan", "sparsity"): "give {0} or {1}, not both: the plan says how each tensor's zeros are held",
    ("plan", "threshold"): "give {0} or {1}, not both: the plan says how each tensor's zeros are held",
    ("sparsity", "threshold"): "give {0} or {1}, not both: each decides the zeros",
    BUDGETS: "give one budget for fine-tuning: {0}, {1} or {2}",
}
"""Fields of which at most one may be given -> what to say of two."""

GROKFAST_LAMBDA = 0.1

UNUSED = {
    "finetune": "{0} is a budget of fine-tuning, which is switched off: leave out one of the two",
    "optimizer": "{0} is of the optimizer mugrokfast: leave it out, or leave out {1}",
    "tasks": "{0} is of tasks: give {1} too, or leave it out",
}
"""Field beside which another one has no effect -> what to say of that one ({0})."""

BITNET_ZEROS = "{0} bitnet sets its own zeros: leave out the sparsity and the threshold"

PLAIN_WORDS = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text in quotes",
    "list_type": "must be a list",
}
"""Kind of pydantic's problem -> how it is said here."""

UNSAFE_OVER_API = frozenset({"alert_command", "tasks"})
"""Fields that only who has a shell on this machine may set: they start programs, or may name Python code."""

Naming = Callable[[str], str]
"""Field -> what the user calls it: the field, an option of the command line, a key of a file."""


def check_memory_format(format: str) -> None:
    """Raises `UsageError` for what is no `MemoryFormat`."""
    if format not in get_args(MemoryFormat):
        raise UsageError(f"format must be {' or '.join(get_args(MemoryFormat))}, not {format}")


class CompressionConfig(BaseModel):
    """Every choice of a compression run.

    `None` means that tritpress chooses: the ratio by size class; the method by what is at hand (text and
    torch); fine-tuning where there is text and torch and the model is below 50 M parameters, a GPU is used
    or a budget was given.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    target_ratio: float | None = Field(None, gt=1.0, le=16.0, description="least ratio_file to reach")
    planes: int | None = Field(None, ge=1, le=3, description="the same number of planes for every tensor")
    method: Literal["auto", "fast", "weighted", "gptq"] = "auto"
    fit: Literal["exact", "twn", "absmean", "bitnet"] = "exact"
    group_size: int | None = Field(
        None, description="inputs that share a scale; 0 is the whole row; None lets the planner choose"
    )
    sparsity: float | Literal["free"] | None = Field(None, description="share of zero codes in each tensor")
    threshold: float | None = Field(None, ge=0.0, le=4.0, description="relative to the group's mean |w|")
    text: list[str] = Field(default_factory=list, description="files and folders of text, or self")
    text_field: str = Field("text", min_length=1, description="field of .jsonl, column of .parquet files")
    plan: str | None = Field(None, description="path of a plan, JSON as `Plan.save` writes it, to press by")

    calibration_tokens: int = Field(16_384, ge=256)
    evaluation_tokens: int = Field(32_768, ge=256, description="held-out tokens at most")
    window: int = Field(256, ge=16, le=32_768, description="tokens in one window of text")
    tasks: list[str] = Field(
        default_factory=list, description="lm-eval tasks as the accuracy gate: names, task files, folders"
    )
    task_limit: int | None = Field(None, ge=1, description="documents of each task at most")

    finetune: bool | None = None
    epochs: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=256, description="fine-tuning budget in tokens")
    minutes: float | None = Field(None, gt=0)
    optimizer: Literal["adamw", "muon", "mugrokfast"] = "adamw"
    grokfast_lambda: float = Field(
        GROKFAST_LAMBDA,
        ge=0.0,
        le=10.0,
        description="of mugrokfast, which is the optimizer where this alone is given",
    )
    learning_rate: float | None = Field(None, gt=0, description="peak rate of the latents, in cells' widths")
    weight_decay: float = Field(0.0, ge=0.0, description="of the latents: rate times it a step")
    activation_bits: Literal[8] | None = Field(None, description="8 trains with the kernels' activations")

    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    evaluate: bool = True
    outputs: Literal["both", "packed", "dequantized"] = "both"
    overwrite: bool = False

    alerts: list[str] = Field(
        default_factory=lambda: list(DEFAULT_RULES), description="rules that raise an alert; [] for none"
    )
    alert_webhook: str | None = Field(None, description="http(s) address that every alert is posted to")
    alert_command: str | None = Field(None, description="command that gets every alert on its stdin")

    @model_validator(mode="before")
    @classmethod
    def _lambda_asks_for_its_filter(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("grokfast_lambda") is not None:
            return {"optimizer": "mugrokfast", **values}
        return values

    @field_validator("seed")
    @classmethod
    def _seed_is_one_of_torchs(cls, value: int) -> int:
        if value >= SEEDS:
            raise ValueError("must be below 2**63")
        return value

    @field_validator("alerts")
    @classmethod
    def _rules_are_known(cls, value: list[str]) -> list[str]:
        return [rule.text for rule in parse_rules(value)]

    @field_validator("tasks")
    @classmethod
    def _tasks_have_names(cls, value: list[str]) -> list[str]:
        if not all(name.strip() for name in value):
            raise ValueError("must be names of tasks, task files or folders of them")
        return value

    @field_validator("alert_webhook")
    @classmethod
    def _webhook_is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        address = urlsplit(value.strip())
        if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
            raise ValueError("must be an http:// or https:// address without a user name in it")
        return value.strip()

    @field_validator("alert_command")
    @classmethod
    def _command_has_words(cls, value: str | None) -> str | None:
        try:
            words = None if value is None else shlex.split(value)
        except ValueError as error:
            raise ValueError(f"must be a command line: {error}") from None
        if words == []:
            raise ValueError("must name a program")
        return value

    @field_validator("group_size")
    @classmethod
    def _known_group_size(cls, value: int | None) -> int | None:
        if value is not None and value not in GROUP_SIZES:
            raise ValueError("must be 32, 64, 128, 256, or 0 for the whole row")
        return value

    @field_validator("sparsity", mode="before")
    @classmethod
    def _sparsity_is_a_share(cls, value: Any) -> float | str | None:
        if value is None or value == "free":
            return value
        try:
            share = float(value)
        except (TypeError, ValueError):
            share = -1.0
        if not 0.0 <= share < 1.0:
            raise ValueError("must be a share from 0 to below 1, or 'free'")
        return share

    @model_validator(mode="after")
    def _one_of_each(self) -> CompressionConfig:
        for fields, sentence in EXCLUSIVE.items():
            if sum(getattr(self, field) is not None for field in fields) > 1:
                raise PydanticCustomError(
                    "exclusive",
                    "{words}",
                    {  # type: ignore[arg-type]
                        "words": sentence.format(*fields),
                        "fields": fields,
                    },
                )
        return self

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> CompressionConfig:
        for fields in unused(self.__dict__).items():
            words = UNUSED[fields[1]].format(*fields)
            raise PydanticCustomError("unused", "{words}", {"words": words, "fields": fields})  # type: ignore[arg-type]
        return self

    @model_validator(mode="after")
    def _bitnet_sets_its_zeros(self) -> CompressionConfig:
        if self.fit == "bitnet" and (self.threshold is not None or self.target_sparsity is not None):
            raise PydanticCustomError(
                "exclusive",
                "{words}",
                {"words": BITNET_ZEROS.format("fit"), "fields": ("fit",)},  # type: ignore[arg-type]
            )
        return self

    @property
    def base_group_size(self) -> int:
        """The group size that was asked for, else the usual one (whole rows where a tensor has one scale)."""
        if self.group_size is None and self.fit == "bitnet":
            return 0
        return BASE_GROUP_SIZE if self.group_size is None else self.group_size

    @property
    def max_sparsity(self) -> float | None:
        """Ceiling on the share of zero codes; None where the user set the zeros, or the fit does."""
        free = self.sparsity is not None or self.threshold is not None or self.fit == "bitnet"
        return None if free else SPARSITY_CEILING

    @property
    def target_sparsity(self) -> float | None:
        """The share of zeros that the user asked for, if any."""
        return self.sparsity if isinstance(self.sparsity, float | int) else None


def unused(values: Mapping[str, Any]) -> dict[str, str]:
    """Of a configuration's values the fields that have no effect -> the field beside which they have none."""
    found: dict[str, str] = {}
    if values.get("finetune") is False:
        found |= {budget: "finetune" for budget in BUDGETS if values.get(budget) is not None}
    weighed = values.get("grokfast_lambda") not in (None, GROKFAST_LAMBDA)
    if weighed and values.get("optimizer") in ("adamw", "muon"):
        found["grokfast_lambda"] = "optimizer"
    if values.get("task_limit") is not None and not values.get("tasks"):
        found["task_limit"] = "tasks"
    return found


def without_unused(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same without fields that have no effect: what was written down before these were refused."""
    idle = unused(values)
    return {key: value for key, value in values.items() if key not in idle}


def beyond_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a configuration's JSON what differs from the defaults: what makes the same configuration again."""
    default = CompressionConfig().model_dump(mode="json")
    return {key: value for key, value in without_unused(values).items() if value != default.get(key)}


def make_config(values: dict[str, Any], naming: Naming | None = None, source: str = "") -> CompressionConfig:
    """`CompressionConfig(**values)` with one readable `UsageError` in place of pydantic's report.

    `naming` says what the user calls a field (by default its own name); `source` is the file, if any, that
    an unknown key must come from.
    """
    try:
        return CompressionConfig(**values)
    except ValidationError as error:
        said = [_sentence(problem, naming or str, source) for problem in error.errors()]
        raise UsageError("; ".join(dict.fromkeys(said))) from None


def load_config(path: str | Path, naming: Naming | None = None, /, **overrides: Any) -> CompressionConfig:
    """Read a TOML file of `CompressionConfig` fields; `overrides` that are not None win.

    A file's plan says too much to be left out for one of them: an override that does not fit it is refused.

    `naming` says what the user calls the overrides; what the file holds goes by its key and the file.
    Raises `UsageError` when the file cannot be read, is not TOML, or holds an unknown or bad value.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the configuration {path} is no valid TOML: {error}") from None
    given = {key: value for key, value in overrides.items() if value is not None}
    for one_of in EXCLUSIVE:  # the file's planes make room for a ratio given beside it
        if given.keys() & set(one_of):
            values = {key: value for key, value in values.items() if key not in one_of or key == "plan"}
    for field, beside in unused({**values, **given}).items():
        if (field in given) != (beside in given):
            values.pop(field if beside in given else beside, None)

    def name(field: str) -> str:
        return (naming or str)(field) if field in given else f"{field} in {path}"

    return make_config({**values, **given}, name, str(path))


def toml_of(values: Mapping[str, Any]) -> str:
    """Numbers, texts, truths and lists of texts as lines of a TOML file that `load_config` reads (JSON writes
    them as TOML does)."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def _sentence(problem: Mapping[str, Any], naming: Naming, source: str) -> str:
    """What is wrong with one value, by the name the user gave it."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "exclusive":
        sentence = EXCLUSIVE.get(context["fields"], BITNET_ZEROS)
        return sentence.format(*map(naming, context["fields"]))
    if kind == "unused":
        return UNUSED[context["fields"][1]].format(*map(naming, context["fields"]))
    field = str(problem["loc"][0])
    if kind == "extra_forbidden":
        where = f" in {source}" if source else ""
        return f"unknown key {field}{where}; known are {', '.join(CompressionConfig.model_fields)}"
    if kind == "literal_error" and " or " not in context["expected"]:
        context = {"expected": f"{context['expected']} or not given"}
    words = PLAIN_WORDS.get(kind)
    message = words.format(**context) if words else problem["msg"].removeprefix("Value error, ")
    return f"{naming(field)} {message} (given: {_value(problem['input'])})"


def _value(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return f"{value:.0f}" if whole else repr(value)
