"""Random plans for `quality.py predictions`: what the planner predicts of them against what they cost."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tritpress.config import CompressionConfig
from tritpress.evaluate.perplexity import evaluate_model
from tritpress.formats.packed import packed_size
from tritpress.loading import load
from tritpress.plan import Plan, foretell, make_plan
from tritpress.ternarize.calibration import load_calibration, save_calibration

GROUP_SIZES = (32, 64, 128, 256)
RATIO = 8.0
"""The ratio of the half of the plans that all have one size, to within 1 %."""


def random_plan(base: Plan, size_of: Any, generator: random.Random, ratio: float | None) -> Plan:
    """Planes and group sizes drawn anew for every tensor of `base`; of one `ratio` (to 1 %) where given.

    Planes follow a random preference (of the layer, of the kind, of the tensor itself), so that plans of one
    size differ in where their planes lie. `size_of(plan)` is its `ratio_file`.
    """
    while True:
        plan = base.model_copy(deep=True)
        tensors = list(plan.tensors.values())
        layers = {p.layer: generator.gauss(0, 1) for p in tensors}
        kinds = {p.kind: generator.gauss(0, 1) for p in tensors}
        wish = [layers[p.layer] + kinds[p.kind] + generator.gauss(0, 1) for p in tensors]
        gap = generator.uniform(0.5, 3.0)
        weights = [generator.random() for _ in GROUP_SIZES]
        for planned in tensors:
            planned.group_size = generator.choices(GROUP_SIZES, weights)[0]

        def choose(shift: float) -> float:
            for planned, own in zip(tensors, wish):  # noqa: B023
                planned.planes = 1 + (own + shift > 0) + (own + shift > gap)  # noqa: B023
            return float(size_of(plan))  # noqa: B023

        if ratio is None:
            choose(generator.gauss(0, 1.5))
            return plan
        low, high = -12.0, 12.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if choose(middle) > ratio else (low, middle)
        if abs(choose(low) / ratio - 1) < 0.01:
            return plan


def measure(
    bench: Any, config: Any, base: Plan, count: int, folder: Path | None, at_most: int | None = None
) -> list[dict[str, Any]]:
    """[{plan, choices, equal, ratio, kl, perplexity}]: `count` plans pressed and evaluated on the validation
    text.

    Plans that `folder` has rows for are not pressed again; no more than `at_most` are pressed.
    """
    generator = random.Random(0)
    rows, pressed = [], 0

    def ratio_of(plan: Plan) -> float:
        return bench.source.bytes_fp32 / packed_size(bench.source, plan)

    for number in range(count):
        equal = number % 2 == 1
        plan = random_plan(base, ratio_of, generator, RATIO if equal else None)
        kept = None if folder is None else folder / f"plan{number:03d}.json"
        choices = {name: [p.planes, p.group_size] for name, p in plan.tensors.items()}
        if kept is not None and kept.is_file():
            row = json.loads(kept.read_text(encoding="utf-8"))
            if row["choices"] != choices or row["embeddings"] != plan.embeddings:
                raise SystemExit(f"{kept} is of another plan: remove it")
        elif pressed == at_most:
            continue
        else:
            pressed += 1
            with tempfile.TemporaryDirectory() as scratch:
                packed = bench.press(config, plan, Path(scratch))
                found = evaluate_model(load(packed), bench.validation, reference=bench.original)
            row = {
                "choices": choices,
                "embeddings": plan.embeddings,
                "equal": equal,
                "ratio": ratio_of(plan),
                "kl": found.kl,
                "perplexity": found.perplexity,
            }
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(row) + "\n", encoding="utf-8")
            print(f"plan {number}: ratio {row['ratio']:.2f}  measured KL {row['kl']:.4f}", flush=True)
        rows.append({**row, "plan": plan})
    return rows


def run(bench: Any, count: int, folder: Path | None, at_most: int | None = None) -> list[dict[str, Any]]:
    """Measure, predict, and print the rank correlations."""
    config = CompressionConfig(target_ratio=RATIO)
    kept = None if folder is None else folder / "calibration.safetensors"
    calibration = load_calibration(kept) if kept is not None else None
    if calibration is None:
        calibration = bench.calibration(config)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_calibration(calibration, kept)
    base = make_plan(bench.source, bench.targets, CompressionConfig(planes=1), calibration)
    base.embeddings = "int8"
    rows = measure(bench, config, base, count, folder, at_most)
    for row in rows:
        found = foretell(bench.source, bench.targets, config, calibration, row.pop("plan"))
        row["predicted"] = found.predicted_loss
    for label, own in (("all", rows), ("of one size", [row for row in rows if row["equal"]])):
        if len(own) < 3:
            continue
        predicted = [row["predicted"] for row in own]
        words = [
            f"{rank_correlation(predicted, [row[key] for row in own]):.3f} with the measured {name}"
            for key, name in (("kl", "KL divergence"), ("perplexity", "perplexity"))
        ]
        spread = f"ratio {min(r['ratio'] for r in own):.2f} to {max(r['ratio'] for r in own):.2f}"
        print(f"rank correlation, {label} ({len(own)} plans, {spread}): {', '.join(words)}")
    return rows


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman's, ties broken by order."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])
