"""The report of a run: every figure that was measured, null for what was not, numbers as numbers."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from pathlib import Path
from typing import Any

Work = Any
"""`tritpress.steps.Work`, which stands above this room; only its attributes are read."""

PACKAGES = ("tritpress", "numpy", "safetensors", "torch", "transformers", "tokenizers", "lm_eval")

EVALUATION_KEYS = (
    "perplexity",
    "perplexity_interval",
    "top1",
    "top1_interval",
    "tokens",
    "bytes",
    "bytes_fp32",
    "memory_bytes",
    "latency_ms",
    "latency_reason",
    "tokens_per_s",
)


def build_report(work: Work) -> dict[str, Any]:
    """Put together `report.json` from what the steps measured. Null stands for what was not measured."""
    source = work.source
    figures = work.figures
    return {
        "run": work.directory.id,
        "model": model_facts(work),
        "before": _evaluation(work.evaluations.get("before"), source.bytes_on_disk, source.bytes_fp32),
        "after": {
            when: _evaluation(
                work.evaluations.get(when),
                work.output_bytes.get(when),
                source.bytes_fp32,
                ("kl", "agreement"),
            )
            for when in ("packed", "dequantized")
        },
        **{
            key: figures.get(key)
            for key in (
                "ratio_file",
                "ratio_layers",
                "ratio_disk",
                "bits_per_weight",
                "planes_mean",
                "sparsity",
                "zeros_all_planes",
                "zeros_ceiling",
                "perplexity_change",
                "perplexity_interval",
                "accuracy_kept",
                "accuracy_interval",
                "prediction",
            )
        },
        "tasks": work.task_results,
        "gates": work.gates,
        "layers": [{key: layer[key] for key in LAYER_KEYS} for layer in work.layers.values()],
        "gradient_norms": work.gradient_norms,
        "handoff": work.handoff,
        "outputs": work.output_files,
        "steps": work.records,
        "fine_tuning": work.fine_tuning,
        "text": work.text_facts,
        "plan": work.plan.model_dump(mode="json") if work.plan is not None else None,
        "config": work.config.model_dump(mode="json"),
        "seed": work.config.seed,
        "versions": versions(),
        "machine": machine(work),
    }


def exit_code(report: dict[str, Any]) -> int:
    """How a run that came to its end ends: 0, or 3 where a gate or a check of the handoff failed.

    What was not judged (null) is neither passed nor failed.
    """
    judged = [*(report.get("gates") or ()), *(report.get("handoff") or ())]
    return 3 if any(one.get("passed") is False for one in judged) else 0


LAYER_KEYS = ("name", "kind", "rows", "cols", "planes", "group_size", "bits", "sparsity", "mse", "cosine")


def model_facts(work: Work) -> dict[str, Any]:
    """The report's `model`: what was found at the given path."""
    source = work.source
    return {
        "path": str(source.path),
        "architecture": source.architecture,
        "parameters": source.parameters,
        "size_class": source.size_class,
        "source_dtype": source.source_dtype,
    }


def layer_figures(work: Work) -> dict[str, Any]:
    """Bits a weight, planes and zeros over all ternary tensors, from the figures of each layer."""
    layers = list(work.layers.values())
    weights = sum(layer["weights"] for layer in layers)
    codes = sum(layer["weights"] * layer["planes"] for layer in layers)
    stored = sum(layer["bytes"] for layer in layers)
    return {
        "ratio_layers": 4 * weights / stored,
        "bits_per_weight": 8 * stored / weights,
        "planes_mean": codes / weights,
        "sparsity": sum(layer["sparsity"] * layer["weights"] * layer["planes"] for layer in layers) / codes,
        "zeros_all_planes": sum(layer["zeros_all_planes"] * layer["weights"] for layer in layers) / weights,
    }


def versions() -> dict[str, str]:
    """Versions of tritpress, Python and the libraries that were at hand."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(work: Work) -> dict[str, Any]:
    """The processor, its cores and what was chosen for it at the start of the run."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        **work.chosen,
    }


def plain(value: Any) -> Any:
    """`value` with numbers that JSON cannot hold (NaN, infinity) made null, all through lists and dicts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value) if isinstance(value, Path) else value


def _evaluation(
    measured: dict[str, Any] | None, written: int | None, bytes_fp32: int, extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    found = dict(measured or {})
    found.update(bytes=written, bytes_fp32=bytes_fp32)
    return {key: found.get(key) for key in EVALUATION_KEYS + extra}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
