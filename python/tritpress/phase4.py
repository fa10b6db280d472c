"""The older interface: one phase of a longer pipeline that takes a model in and hands two models on.

    config = Phase4Config(model_path="model", output_path="out", target_compression_ratio=8.0)
    result = Phase4Controller(config).execute(progress_callback=print)

Underneath it is `tritpress.compress`: the same worker process, events, gates and report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tritpress.config import CompressionConfig, make_config
from tritpress.errors import StopRequested, TritpressError, UsageError
from tritpress.report import exit_code


class Logger(Protocol):
    """What is needed of wandb: the module itself, a run of it, or anything with `log`."""

    def log(self, metrics: dict[str, Any]) -> Any: ...


@dataclass
class Phase4Config:
    """What phase 4 is asked to do.

    `target_compression_ratio` None takes the model's size class (tiny < 50 M parameters 6x, small < 500 M 8x,
    medium < 2 B 10x, large 12x) or the largest ratio that the model can reach. `text` are files and folders;
    without any, what needs none is done and the rest is reported as skipped. `options` are further fields of
    `CompressionConfig`.
    """

    model_path: str | Path | None = None
    output_path: str | Path | None = None
    target_compression_ratio: float | None = None
    target_sparsity: float | None = None
    sparsity_threshold: float | None = None
    enable_fine_tuning: bool = True
    fine_tune_epochs: int | None = None
    grokfast_lambda: float | None = None
    text: list[str] = field(default_factory=list)
    device: str = "auto"
    seed: int = 0
    overwrite: bool = False
    runs_dir: str | Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def compression(self) -> CompressionConfig:
        """The same as a `CompressionConfig`. Raises `UsageError` for a bad value.

        Fine-tuning that is enabled is done where it helps and there is text for it, as without this
        interface; a number of epochs asks for it outright.
        """
        wanted = self.fine_tune_epochs is not None
        if wanted and not self.enable_fine_tuning:
            raise UsageError("fine_tune_epochs asks for what enable_fine_tuning=False forbids: leave one out")
        values: dict[str, Any] = {
            "target_ratio": self.target_compression_ratio,
            "sparsity": self.target_sparsity,
            "threshold": self.sparsity_threshold,
            "finetune": True if wanted else None if self.enable_fine_tuning else False,
            "epochs": self.fine_tune_epochs,
            "text": [str(path) for path in self.text],
            "device": self.device,
            "seed": self.seed,
            "overwrite": self.overwrite,
        }
        if self.grokfast_lambda is not None:  # asks for Muon with the filter
            values["grokfast_lambda"] = self.grokfast_lambda
        return make_config({**values, **self.options})


class Phase4Controller:
    """Runs phase 4 once."""

    def __init__(self, config: Phase4Config) -> None:
        self.config = config

    def execute(
        self,
        phase3_output_path: str | Path | None = None,
        wandb_logger: Logger | None = None,
        progress_callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Compress the model and return what the next phase needs.

        `phase3_output_path` is the model to take, in place of the configuration's `model_path`.
        `progress_callback` gets each event of the run as a dict, `wandb_logger.log` the training figures as
        they come and the metrics at the end.

        Returns a dict with the keys success (no gate and no check of the handoff failed), phase,
        output_paths, pre_compression, post_compression, fine_tuning, gradient_flow_test, timing and
        metrics. A run that cannot be done comes back as success False with the sentence under `error`; wrong
        values of the configuration raise `UsageError`.
        """
        from tritpress.api import compress

        model = phase3_output_path if phase3_output_path is not None else self.config.model_path
        if model is None:
            raise UsageError(
                "give the model: Phase4Config(model_path=...) or execute(phase3_output_path=...)"
            )
        if self.config.output_path is None:
            raise UsageError("give a folder for the results: Phase4Config(output_path=...)")
        out = Path(self.config.output_path)
        config = self.config.compression()

        def on_event(event: dict[str, Any]) -> None:
            if progress_callback is not None:
                progress_callback(event)
            if wandb_logger is not None and event["type"] == "finetune.step":
                wandb_logger.log(training_figures(event))

        started = time.time()
        try:
            report = compress(model, out, config, on_event=on_event, runs_dir=self.config.runs_dir)
        except UsageError:
            raise
        except (TritpressError, StopRequested) as error:
            return failure(str(error), time.time() - started)
        answer = result(report, out, time.time() - started)
        if wandb_logger is not None:
            wandb_logger.log(answer["metrics"])
        return answer


def training_figures(event: dict[str, Any]) -> dict[str, Any]:
    """The figures of one training step as wandb names them."""
    names = ("loss", "ce", "kl", "lr", "grad_norm", "tokens_per_s", "epoch")
    return {f"fine_tuning/{name}": event[name] for name in names if event.get(name) is not None}


def metrics(report: dict[str, Any], seconds: float) -> dict[str, float | int]:
    """At most 21 figures for a log; what was not measured is left out, never filled in."""
    before, after = report["before"], report["after"]
    fine_tuning = report.get("fine_tuning") or {}
    gates = {gate["name"]: gate for gate in report["gates"]}
    found = {
        "compression/ratio_file": report["ratio_file"],
        "compression/ratio_layers": report["ratio_layers"],
        "compression/ratio_disk": report["ratio_disk"],
        "compression/bits_per_weight": report["bits_per_weight"],
        "compression/planes_mean": report["planes_mean"],
        "compression/sparsity": report["sparsity"],
        "compression/bytes_before": before["bytes"],
        "compression/bytes_packed": after["packed"]["bytes"],
        "compression/bytes_dequantized": after["dequantized"]["bytes"],
        "quality/perplexity_before": before["perplexity"],
        "quality/perplexity_packed": after["packed"]["perplexity"],
        "quality/perplexity_change": report["perplexity_change"],
        "quality/top1_before": before["top1"],
        "quality/top1_packed": after["packed"]["top1"],
        "quality/accuracy_kept": report["accuracy_kept"],
        "quality/gradient_flow": gates["gradient_flow"]["actual"] if "gradient_flow" in gates else None,
        "quality/gates_passed": sum(gate["passed"] is True for gate in report["gates"]),
        "fine_tuning/loss_first": fine_tuning.get("loss_first"),
        "fine_tuning/loss_best": fine_tuning.get("loss_best"),
        "fine_tuning/tokens": fine_tuning.get("tokens"),
        "timing/seconds": seconds,
    }
    return {name: value for name, value in found.items() if value is not None}


def result(report: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    """The report in the words of the older interface."""
    gates = report["gates"]
    flow: dict[str, Any] = next((gate for gate in gates if gate["name"] == "gradient_flow"), {})
    paths = {kind: str(out / kind) for kind in ("packed", "dequantized") if (out / kind).is_dir()}
    sizes = ("ratio_file", "ratio_layers", "ratio_disk", "bits_per_weight", "planes_mean", "sparsity")
    quality = ("perplexity_change", "perplexity_interval", "accuracy_kept")
    return {
        "success": exit_code(report) == 0,
        "phase": 4,
        "output_paths": {**paths, "report": str(out / "report.json")},
        "pre_compression": {**report["model"], **report["before"]},
        "post_compression": {
            **{key: report[key] for key in (*sizes, *quality)},
            **report["after"],
            "gates": gates,
        },
        "fine_tuning": report.get("fine_tuning"),
        "gradient_flow_test": {
            "passed": flow.get("passed"),
            "share": flow.get("actual"),
            "advice": flow.get("advice"),
            "norms": report["gradient_norms"],
        },
        "timing": {
            "total_seconds": seconds,
            "steps": {step["name"]: step["seconds"] for step in report["steps"] if not step["skipped"]},
        },
        "metrics": metrics(report, seconds),
        "run": report["run"],
        "error": None,
    }


def failure(sentence: str, seconds: float) -> dict[str, Any]:
    """The same keys for a run that could not be done."""
    return {
        "success": False,
        "phase": 4,
        "output_paths": {},
        "pre_compression": None,
        "post_compression": None,
        "fine_tuning": None,
        "gradient_flow_test": None,
        "timing": {"total_seconds": seconds, "steps": {}},
        "metrics": {},
        "run": None,
        "error": sentence,
    }
