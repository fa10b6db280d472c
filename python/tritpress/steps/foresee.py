"""A plan and nothing else: what a run would do to each tensor, before any of it is done."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritpress.config import CompressionConfig
from tritpress.events.context import NullContext, RunContext
from tritpress.plan import Plan
from tritpress.steps.ceiling import ceiling_cost
from tritpress.steps.prepare import calibration, measure, open_model
from tritpress.steps.press import planned
from tritpress.steps.work import Work


@dataclass(frozen=True)
class Foreseen:
    """A plan with what it is for. `method` is the one that a run would press by; `text` where the text of the
    calibration is from, None without one.
    """

    plan: Plan
    method: str
    facts: dict[str, Any]
    text: str | None
    largest_ratio: float
    zeros_ceiling: dict[str, Any] | None
    perplexity: float | None
    """Of the original on the held-out text, as a run measures it; None where nothing is calibrated or nothing
    is to be evaluated."""

    @property
    def predicted_perplexity(self) -> float | None:
        """What the model pressed by this plan is predicted to have there, before any fine-tuning."""
        change = self.plan.predicted_change
        return None if self.perplexity is None or change is None else self.perplexity * (1.0 + change)

    def to_json(self) -> dict[str, Any]:
        """What `tritpress plan --json` prints."""
        plan = self.plan
        return {
            "model": self.facts,
            "method": self.method,
            "text": self.text,
            "basis": plan.basis,
            "target_ratio": plan.target_ratio,
            "largest_ratio": self.largest_ratio,
            "predicted_ratio": plan.predicted_ratio,
            "predicted_bytes": plan.predicted_bytes,
            "predicted_loss": plan.predicted_loss,
            "predicted_perplexity_change": plan.predicted_change,
            "perplexity": self.perplexity,
            "predicted_perplexity": self.predicted_perplexity,
            "bits_per_weight": plan.bits,
            "planes_mean": plan.planes_mean,
            "zeros_ceiling": self.zeros_ceiling,
            "embeddings": plan.embeddings,
            "tensors": [
                {
                    "name": p.name,
                    "layer": p.layer,
                    "kind": p.kind,
                    "shape": [*p.experts, p.rows, p.cols],
                    "planes": p.planes,
                    "group_size": p.group_size or p.cols,
                    "bits": p.bits,
                    "bytes": p.nbytes,
                    "threshold": p.threshold,
                    "sparsity": p.sparsity,
                    "max_sparsity": p.max_sparsity,
                    "predicted_loss": p.predicted_loss,
                }
                for p in plan.tensors.values()
            ],
        }


class _Folder:
    """In the place of a run's directory: a folder that is gone afterwards."""

    id = "plan"

    def __init__(self, folder: Path, model: Path) -> None:
        self.path = self.work = folder
        self._model = model

    def read_run(self) -> dict[str, Any]:
        return {"model": str(self._model), "out": str(self.path / "out"), "chosen": {}}

    def choose(self, **measured: Any) -> dict[str, Any]:
        return measured


def foresee(model: str | Path, config: CompressionConfig, context: RunContext | None = None) -> Foreseen:
    """The plan that a run of `config` on the model directory would press by.

    With text and torch the model is evaluated and calibrated first (as in steps 2 and 3 of a run, without the
    evaluation where `config` has it switched off), otherwise the plan rests on the weights alone. A plan in
    `config.plan` is checked against the model and its losses are predicted anew.
    Nothing is pressed and nothing is left behind. Raises what such a run would raise before its work:
    `InputError` for a model or text that cannot be used, `UsageError` for a ratio beyond reach and a plan
    that does not fit.
    """
    evaluated, config = config.evaluate, config.model_copy(update={"evaluate": False, "finetune": False})
    with tempfile.TemporaryDirectory(prefix="tritpress-plan-") as scratch:
        folder = _Folder(Path(scratch), Path(os.path.expanduser(model)).absolute())
        work = Work(config=config, directory=folder, context=context or NullContext())
        from tritpress.report import model_facts

        largest = open_model(work)
        perplexity = None
        if evaluated and work.calibrates:
            perplexity = measure(work, work.original, step=2)["perplexity"]
        calibration(work)
        plan, zeros = planned(work)
        return Foreseen(
            plan=plan,
            zeros_ceiling=ceiling_cost(zeros, plan),
            method=work.method,
            facts=model_facts(work),
            text=work.splits.source if work.splits is not None and work.calibrates else None,
            largest_ratio=largest,
            perplexity=perplexity,
        )
