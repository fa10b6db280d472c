"""What a run is asked to do: one pydantic model that TOML files, the command line and Python share."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tritpress.errors import UsageError

GROUP_SIZES = (0, 32, 64, 128, 256)
"""Inputs that share one scale; 0 stands for the whole row."""

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


EXCLUSIVE = (("target_ratio", "planes"), ("sparsity", "threshold"), ("epochs", "tokens", "minutes"))
"""Fields of which at most one may be given."""


class CompressionConfig(BaseModel):
    """Every choice of a compression run.

    `None` means that tritpress chooses: the ratio by size class, the method by what is at hand (text and
    torch), fine-tuning by whether the gates need it and a text is there.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    target_ratio: float | None = Field(None, gt=1.0, le=16.0, description="least ratio_file to reach")
    planes: int | None = Field(None, ge=1, le=3, description="the same number of planes for every tensor")
    method: Literal["auto", "fast", "gptq"] = "auto"
    fit: Literal["exact", "twn", "absmean"] = "exact"
    group_size: int = Field(64, description="inputs that share a scale; 0 is the whole row")
    sparsity: float | Literal["free"] | None = Field(None, description="share of zero codes in each tensor")
    threshold: float | None = Field(None, ge=0.0, le=4.0, description="relative to the group's mean |w|")
    text: list[str] = Field(default_factory=list, description="files and folders of text")

    calibration_tokens: int = Field(16_384, ge=256)
    evaluation_tokens: int = Field(32_768, ge=256, description="held-out tokens at most")
    window: int = Field(256, ge=16, le=32_768, description="tokens in one window of text")

    finetune: bool | None = None
    epochs: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=256, description="fine-tuning budget in tokens")
    minutes: float | None = Field(None, gt=0)
    optimizer: Literal["mugrokfast", "muon", "adamw"] = "mugrokfast"
    grokfast_lambda: float = Field(0.1, ge=0.0, le=10.0)
    learning_rate: float | None = Field(None, gt=0)
    activation_bits: Literal[8] | None = Field(None, description="8 trains with the kernels' activations")

    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    evaluate: bool = True
    outputs: Literal["both", "packed", "dequantized"] = "both"
    overwrite: bool = False

    @field_validator("group_size")
    @classmethod
    def _known_group_size(cls, value: int) -> int:
        if value not in GROUP_SIZES:
            raise ValueError(f"group_size must be one of {GROUP_SIZES} (0 is the whole row), not {value}")
        return value

    @field_validator("sparsity")
    @classmethod
    def _sparsity_is_a_share(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float | int) and not 0.0 <= value < 1.0:
            raise ValueError(f"sparsity must be 'free' or a share from 0 to below 1, not {value}")
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> CompressionConfig:
        if sum(budget is not None for budget in (self.epochs, self.tokens, self.minutes)) > 1:
            raise ValueError("give one budget for fine-tuning: epochs, tokens or minutes")
        if self.target_ratio is not None and self.planes is not None:
            raise ValueError("give target_ratio or planes, not both: the planes decide the ratio")
        if self.sparsity is not None and self.threshold is not None:
            raise ValueError("give sparsity or threshold, not both: each decides the zeros")
        return self

    @property
    def max_sparsity(self) -> float | None:
        """Ceiling on the share of zero codes; None where the user set the zeros or lifted the ceiling."""
        return SPARSITY_CEILING if self.sparsity is None and self.threshold is None else None

    @property
    def target_sparsity(self) -> float | None:
        """The share of zeros that the user asked for, if any."""
        return self.sparsity if isinstance(self.sparsity, float | int) else None


def make_config(values: dict[str, Any]) -> CompressionConfig:
    """`CompressionConfig(**values)` with one readable `UsageError` in place of pydantic's report."""
    try:
        return CompressionConfig(**values)
    except ValidationError as error:
        raise UsageError("; ".join(_sentence(problem) for problem in error.errors())) from None


def load_config(path: str | Path, **overrides: Any) -> CompressionConfig:
    """Read a TOML file of `CompressionConfig` fields; `overrides` that are not None win.

    Raises `UsageError` when the file cannot be read, is not TOML, or holds an unknown or bad value.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from None
    given = {key: value for key, value in overrides.items() if value is not None}
    for one_of in EXCLUSIVE:  # the file's planes make room for a ratio given beside it
        if given.keys() & set(one_of):
            values = {key: value for key, value in values.items() if key not in one_of}
    return make_config({**values, **given})


def _sentence(problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"] if isinstance(part, str) and part.islower())
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (given: {problem['input']!r})" if where else message
