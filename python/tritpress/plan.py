"""Which tensor gets how many planes: the plan that meets a target ratio with the least predicted loss."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tritpress.errors import UsageError


class TensorPlan(BaseModel):
    """What is done to one tensor. `group_size` 0 is the whole row."""

    model_config = ConfigDict(extra="forbid")

    name: str
    layer: int | None = None
    kind: str = "other"
    rows: int
    cols: int
    experts: list[int] = Field(default_factory=list)
    transposed: bool = False
    planes: int = Field(ge=1, le=3)
    group_size: int = 64
    threshold: float | None = None
    sparsity: float | None = None
    max_sparsity: float | None = None
    predicted_loss: float | None = None

    @property
    def weights(self) -> int:
        """Number of weights, over all experts."""
        count = self.rows * self.cols
        for experts in self.experts:
            count *= experts
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales in the packed file."""
        width = self.group_size or self.cols
        row = -(-self.cols // 4) + 2 * -(-self.cols // width)
        return self.planes * row * (self.weights // self.cols)

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.nbytes / self.weights


class Plan(BaseModel):
    """The whole model's plan; saved as JSON, edited by hand where someone wants to, and given back."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    tensors: dict[str, TensorPlan]
    embeddings: Literal["fp16", "int8"] = "fp16"
    target_ratio: float | None = None
    predicted_ratio: float | None = None
    predicted_bytes: int | None = None
    predicted_loss: float | None = None
    basis: Literal["calibrated", "weights"] = "weights"

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan. Raises `UsageError` when the file cannot be read or is no plan."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the plan {path}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{path} is not a plan: {where}: {first['msg']}") from None
