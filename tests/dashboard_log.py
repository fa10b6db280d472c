"""Writes the event log of a run that never was, through the real writer, for tests of the page alone.

`python tests/dashboard_log.py RUNS_DIR --layers 126 --rate 50` replays one at that many events a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tritpress import _core
from tritpress.config import CompressionConfig
from tritpress.events import STEP_NAMES, EventWriter
from tritpress.plan import Plan, TensorPlan
from tritpress.runs.details import TensorDetails, save_details
from tritpress.runs.directory import RunDirectory
from tritpress.runs.liveness import process_start, this_host
from tritpress.ternarize.details import measure

KINDS = {
    "q": (256, 256),
    "k": (128, 256),
    "v": (128, 256),
    "o": (256, 256),
    "gate": (688, 256),
    "up": (688, 256),
    "down": (256, 688),
}
PARTS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def make_run(
    runs_dir: Path, run_id: str, *, name: str = "a model", status: str = "running", **config: Any
) -> RunDirectory:
    """A run's folder whose worker is this process; what a first try of the test left there is gone."""
    run = RunDirectory(runs_dir / run_id)
    shutil.rmtree(run.path, ignore_errors=True)
    run.path.mkdir(parents=True)
    run.write_run(
        {
            "v": 1,
            "id": run_id,
            "name": name,
            "created": time.time(),
            "launched": time.time(),
            "model": "/models/m",
            "out": str(run.path / "out"),
            "text": [],
            "config": CompressionConfig(**config).model_dump(),
            "chosen": {},
            "status": status,
            "pid": os.getpid(),
            "host": this_host(),
            "process_start": process_start(os.getpid()),
            "heartbeat": time.time(),
            "resumes": 0,
            "commands_offset": 0,
            "error": None,
            "exit_code": None,
        }
    )
    return run


def targets(layers: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"model.layers.{layer}.{PARTS[kind]}.weight",
            "layer": layer,
            "kind": kind,
            "rows": r,
            "cols": c,
        }
        for layer in range(layers)
        for kind, (r, c) in KINDS.items()
    ]


def figures(target: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    planes = random_.choice([1, 2, 2, 2, 3])
    bits = planes * 2.25
    sparsity = 0.44 - 0.12 * random_.random() ** 3
    return {
        **target,
        "planes": planes,
        "group_size": 64,
        "bits": bits,
        "ratio": 32 / bits,
        "sparsity": sparsity,
        "zeros_all_planes": sparsity**planes,
        "mse": 1e-4 * random_.random(),
        "cosine": 1 - 0.05 * random_.random(),
        "histogram": {"lo": -4, "hi": 4, "before": [3] * 128, "after": [0] * 63 + [200, 184] + [0] * 63},
    }


@functools.cache
def _pressed(cols: int, planes: int, variant: int) -> TensorDetails:
    """Details of a small random matrix that was really pressed."""
    w = np.random.default_rng(variant).standard_t(4 + variant, (96, cols)).astype(np.float32)
    codes, scales = _core.ternarize(w, planes=planes, max_sparsity=0.44)
    return measure(w, codes, scales, 64)


def details_of(made: dict[str, Any], random_: random.Random) -> TensorDetails:
    """Details that fit the tensor's figures; the figures they share are set to the details'."""
    base = _pressed(made["cols"], made["planes"], random_.randrange(3))
    error = base.relative_error * random_.uniform(0.8, 1.5)
    details = dataclasses.replace(
        base,
        rows=made["rows"],
        relative_error=error,
        cosine=math.sqrt(1 - error),
        sign_flips=0.01 * random_.random(),
    )
    for key in ("relative_error", "cosine", "sign_flips", "threshold_used"):
        made[key] = getattr(details, key)
    return details


def plan_of(run: RunDirectory, made: list[dict[str, Any]]) -> Plan:
    """A plan as the pipeline keeps it in the run's work folder."""
    tensors = {
        m["name"]: TensorPlan(
            **{k: m[k] for k in ("name", "layer", "kind", "rows", "cols", "planes", "group_size")},
            max_sparsity=0.44,
            predicted_loss=0.06 / len(made) * (1 + 0.5 * math.sin(i)),
        )
        for i, m in enumerate(made)
    }
    plan = Plan(
        tensors=tensors,
        embeddings="int8",
        target_ratio=6.0,
        predicted_ratio=6.41,
        predicted_loss=sum(t.predicted_loss or 0.0 for t in tensors.values()),
        basis="calibrated",
    )
    plan.save(run.work / "plan.json")
    return plan


def events(
    run: RunDirectory,
    layers: int = 6,
    steps: int = 120,
    name: str = "a model",
    failing_gate: str | None = None,
    details: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of one run from beginning to end; `details` writes details, work folder and losses too."""
    r = random.Random(7)
    all_targets = targets(layers)
    config = run.read_run()["config"]
    out = Path(run.read_run()["out"])
    weights = sum(t["rows"] * t["cols"] for t in all_targets)
    yield (
        "run.started",
        {
            "model": "/models/m",
            "out": str(out),
            "config": config,
            "name": name,
            "resumed": False,
            "pid": 1,
            "host": "h",
        },
    )
    made = [figures(target, r) for target in all_targets]
    recorded = {m["name"]: details_of(m, random.Random(m["name"])) for m in made} if details else {}
    losses = {}
    if details:
        losses = {name: planned.predicted_loss for name, planned in plan_of(run, made).tensors.items()}
    before = {
        "perplexity": 9.3812,
        "top1": 0.5317,
        "tokens": 32768,
        "latency_ms": 4.21,
        "tokens_per_s": 5210.0,
        "bytes": 10_612_224,
        "memory_bytes": 21_378_304,
    }
    packed_bytes = 3_412_000 * layers // 6
    for n, step in enumerate(STEP_NAMES, 1):
        yield "step.started", {"step": n, "name": step}
        if n == 1:
            yield (
                "model",
                {
                    "model": {
                        "path": "/models/m",
                        "architecture": "LlamaForCausalLM",
                        "parameters": 5_306_112,
                        "size_class": "tiny",
                        "source_dtype": "float16",
                    },
                    "targets": all_targets,
                },
            )
            yield "figures", {"bytes_fp32": weights * 4, "bytes": weights * 2}
            yield "log", {"message": "Text: the standard library's own sources"}
        elif n == 2:
            for done in range(0, 33, 4):
                yield (
                    "step.progress",
                    {"step": 2, "done": done, "total": 32, "detail": "held-out windows"},
                )
            yield "evaluation", {"when": "before", **before}
        elif n == 4:
            tensors = [
                {k: f[k] for k in ("name", "layer", "kind", "rows", "cols", "planes", "bits")} for f in made
            ]
            yield (
                "plan",
                {
                    "tensors": [
                        {**t, "method": "gptq", "predicted_loss": losses.get(t["name"])} for t in tensors
                    ],
                    "predicted_ratio": 6.41,
                    "predicted_loss": sum(losses.values()) if losses else None,
                    "basis": "calibrated",
                    "embeddings": "int8",
                },
            )
            for done, layer in enumerate(made, start=1):
                yield "layer.started", {key: layer[key] for key in ("name", "layer", "kind")}
                if details:
                    save_details(run.path, layer["name"], recorded[layer["name"]])
                yield "layer.finished", layer
                yield (
                    "step.progress",
                    {"step": 4, "done": done, "total": len(made), "detail": layer["name"]},
                )
        elif n == 5:
            for step_number in range(1, steps + 1):
                ce = 2.3 + 1.2 * math.exp(-step_number / 30) + 0.03 * r.random()
                kl = 0.05 + 0.8 * math.exp(-step_number / 25) + 0.01 * r.random()
                yield (
                    "finetune.step",
                    {
                        "step": step_number,
                        "epoch": 1,
                        "loss": kl + 0.1 * ce,
                        "ce": ce,
                        "kl": kl,
                        "lr": 2e-3,
                        "grad_norm": 0.4 + r.random() / 10,
                        "tokens_per_s": 1010.0 + r.random(),
                        "tokens": step_number * 512,
                        "steps": steps,
                        **({"validation_loss": kl + 0.11 * ce} if step_number % 20 == 0 else {}),
                    },
                )
                yield "step.progress", {"step": 5, "done": step_number * 512, "total": steps * 512}
        elif n == 6:
            for folder, files in {
                "packed": {
                    "config.json": 812,
                    "model.safetensors": packed_bytes,
                    "tokenizer.json": 190_000,
                    "tritpress.json": 4_000,
                },
                "dequantized": {
                    "config.json": 700,
                    "model.safetensors": 10_612_224,
                    "tokenizer.json": 190_000,
                },
            }.items():
                for file, size in files.items():
                    path = out / folder / file
                    yield (
                        "output",
                        {
                            "path": str(path),
                            "bytes": size,
                            "sha256": hashlib.sha256(str(path).encode()).hexdigest(),
                        },
                    )
            yield (
                "figures",
                {
                    "packed_bytes": packed_bytes,
                    "ratio_file": 6.4123,
                    "ratio_layers": 7.02,
                    "ratio_disk": 3.21,
                    "bits_per_weight": 4.56,
                    "planes_mean": 1.98,
                    "sparsity": 0.4187,
                    "zeros_all_planes": 0.19,
                },
            )
        elif n == 7:
            yield (
                "evaluation",
                {
                    "when": "packed",
                    **before,
                    "perplexity": 9.7021,
                    "top1": 0.5251,
                    "kl": 0.0412,
                    "agreement": 0.913,
                    "bytes": packed_bytes,
                    "latency_ms": 2.9,
                    "memory_bytes": 9_120_512,
                },
            )
            yield (
                "evaluation",
                {
                    "when": "dequantized",
                    **before,
                    "perplexity": 9.6912,
                    "top1": 0.5254,
                    "kl": 0.0401,
                    "agreement": 0.915,
                },
            )
            for target in all_targets:
                norm = 10 ** r.uniform(-2.5, 0.5)
                original = norm * 10 ** r.uniform(-0.5, 0.5)
                yield "gradient", {"layer": target["name"], "norm": norm, "original": original}
            yield (
                "figures",
                {
                    "perplexity_change": 9.7021 / 9.3812 - 1,
                    "accuracy_kept": 0.5251 / 0.5317,
                    "perplexity_interval": [0.029, 0.040],
                },
            )
            gates = [
                ("ratio", 6.0, 6.4123),
                ("accuracy", 0.95, 0.9876),
                ("perplexity", 0.10, 0.0342),
                ("sparsity", [0.25, 0.45], 0.4187),
                ("gradient_flow", 1.0, 1.0),
            ]
            for gate, target, actual in gates:
                failed = gate == failing_gate
                yield (
                    "gate",
                    {
                        "name": gate,
                        "target": target,
                        "actual": actual,
                        "passed": not failed,
                        "advice": "Two planes for layer 1's o_proj would cost 0.1 of the ratio."
                        if failed
                        else None,
                    },
                )
            yield (
                "handoff",
                {
                    "items": [
                        {
                            "name": "packed directory reads back",
                            "passed": True,
                            "detail": "4 files, checksums agree",
                        },
                        {
                            "name": "dequantized opens in transformers",
                            "passed": True,
                            "detail": "norm of difference 2.1e-6",
                        },
                    ]
                },
            )
        skipped = "no calibration needed for --method fast" if n == 3 else None
        yield (
            "step.finished",
            {"step": n, "name": step, "seconds": 0.0 if skipped else 1.5 * n, "skipped": skipped},
        )
    yield (
        "run.finished",
        {
            "status": "finished",
            "exit_code": 3 if failing_gate else 0,
            "report": str(run.path / "report.json"),
            "write_seconds": 0.01,
            "seconds": 12.0,
        },
    )


def write_run(
    runs_dir: Path,
    run_id: str,
    *,
    layers: int = 6,
    until: str | None = None,
    rate: float | None = None,
    go_on: Path | None = None,
    **options: Any,
) -> RunDirectory:
    """Write a run's log up to the first event of type `until`, at `rate` events a second; once the first
    tensor is pressed, wait for the file `go_on` (a page may take long to open)."""
    name = options.pop("name", "a model")
    run = make_run(runs_dir, run_id, name=name, **options.pop("config", {}))
    writer = EventWriter(run.path)
    for kind, fields in events(run, layers, name=name, **options):
        if kind == until:
            writer.close()
            return run
        writer.emit(kind, **fields)
        if rate:
            time.sleep(1 / rate)
        if kind == "layer.finished" and go_on is not None:
            writer.flush()
            while not go_on.exists():
                time.sleep(0.05)
            go_on = None
    writer.close()
    run.update_run(status="finished", exit_code=0)
    return run


def begin_run(runs_dir: Path, run_id: str, *, name: str, pressed: int, layers: int = 6) -> EventWriter:
    """A run at work, so many of its tensors pressed; its log is open."""
    run = make_run(runs_dir, run_id, name=name)
    writer, done = EventWriter(run.path), 0
    for kind, fields in events(run, layers, name=name, details=True):
        writer.emit(kind, **fields)
        done += kind == "layer.finished"
        if done == pressed:
            break
    writer.flush()
    return writer


def write_failed(runs_dir: Path, run_id: str, *, name: str, error: str, pressed: int = 20) -> None:
    """A run that failed in the midst of pressing."""
    with closing(begin_run(runs_dir, run_id, name=name, pressed=pressed)) as writer:
        writer.emit("run.failed", error=error, exit_code=1, write_seconds=0.0, seconds=1.0)
    RunDirectory(runs_dir / run_id).update_run(status="failed", error=error, exit_code=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("--layers", type=int, default=126)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--id", default="replay")
    parser.add_argument("--details", action="store_true")
    arguments = parser.parse_args()
    options = {"layers": arguments.layers, "rate": arguments.rate, "details": arguments.details}
    write_run(arguments.runs_dir, arguments.id, **options)
