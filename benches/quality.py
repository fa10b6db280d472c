"""What each way of pressing the reference model costs, on held-out text through the packed kernels.

    python benches/quality.py table [--cases 2planes,1plane,7,8,10,12] [--trained] [--json FILE] [--threads N]
    python benches/quality.py predictions [--plans 24] [--folder DIR] [--at-most N]
    python benches/quality.py zeros [--draws N]
    python benches/quality.py finetuning | bitnet | optimizers | step    (benches/finetuning.py)

`table` presses, writes, loads and evaluates the model for each case and judges the five gates: no
fine-tuning, the built-in text, 16,384 tokens of calibration. With `--trained` the rows of `finetuning` and
`bitnet` follow (an hour on one core; resumable). `predictions` compares the planner's predicted
loss with the measured KL divergence over random plans. `zeros`: what one plane loses to the ceiling on zeros,
over N draws of calibration windows, since a single one moves the perplexity as much as the ceiling does.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import finetuning
import numpy as np
import torch
from tritpress.config import CompressionConfig
from tritpress.evaluate.gates import Measured, five_gates
from tritpress.evaluate.gradient_flow import GradientFlow, gradient_flow, gradient_norms
from tritpress.evaluate.perplexity import Evaluation, evaluate_model
from tritpress.events.context import NullContext
from tritpress.formats.huggingface import load_original, load_tokenizer, modules_of
from tritpress.formats.packed import packed_size, write_packed
from tritpress.formats.source import open_source
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import embedding_targets, find_targets
from tritpress.loading import load
from tritpress.plan import Plan, make_plan
from tritpress.press.fast import fast_tensors
from tritpress.press.gptq import gptq_tensors
from tritpress.reference import reference_model_path
from tritpress.ternarize.embeddings import calibrate_with_embeddings
from tritpress.text import builtin_splits, load_splits, token_windows

GRADIENT_WINDOWS = 16
"""Held-out windows of the backward pass, as in a run."""

CASES: dict[str, dict[str, Any]] = {
    "1plane": {"planes": 1},
    "1plane-free-zeros": {"planes": 1, "sparsity": "free"},
    "1plane-fast": {"planes": 1, "method": "fast"},
    "2planes": {"planes": 2},
    "2planes-fast": {"planes": 2, "method": "fast"},
    "6": {"target_ratio": 6.0},
    "7": {"target_ratio": 7.0},
    "8": {"target_ratio": 8.0},
    "10": {"target_ratio": 10.0},
    "12": {"target_ratio": 12.0},
}


class Bench:
    """A model (the reference model if None), its text (the built-in one) and its calibration, made once."""

    def __init__(self, window: int = 256, model: Path | None = None, text: list[str] | None = None) -> None:
        self.source = open_source(model or reference_model_path())
        self.targets = find_targets(self.source)
        self.original = load_original(self.source)
        tokenizer = load_tokenizer(self.source.path)
        splits = load_splits(text) if text else builtin_splits()
        defaults = CompressionConfig()
        self.windows_of_calibration = partial(token_windows, tokenizer, splits.calibration, window)
        self.calibration_windows = self.windows_of_calibration(defaults.calibration_tokens // window)
        self.held_out = token_windows(
            tokenizer, splits.held_out, window, defaults.evaluation_tokens // window
        )
        self.validation = token_windows(tokenizer, splits.validation, window, 32)
        self.modules, self.tables = (
            {name: found[1] for name, found in modules_of(self.original, [t.name for t in some]).items()}
            for some in (self.targets, embedding_targets(self.source))
        )
        self._calibrations: dict[str, Any] = {}
        self._norms: dict[str, float | None] = {}

    def calibration(self, config: CompressionConfig) -> Any:
        key = str((config.method, config.base_group_size, config.fit, config.sparsity, config.threshold))
        if key not in self._calibrations:
            self._calibrations[key] = calibrate_with_embeddings(
                self.original, self.modules, self.tables, self.calibration_windows, NullContext(), config
            )
        return self._calibrations[key]

    def press(self, config: CompressionConfig, plan: Plan, folder: Path) -> Path:
        """The packed model of a plan."""
        store = TensorStore(folder / "tensors")
        tables = [target for target in embedding_targets(self.source) if target.name in plan.tensors]
        pressed = [*tables, *self.targets]
        if config.method in ("fast", "weighted"):
            weighing = self.calibration(config) if config.method == "weighted" else None
            made = fast_tensors(pressed, plan, config, store, NullContext(), weighing)
        else:
            made = gptq_tensors(
                copy.deepcopy(self.original),
                self.source,
                pressed,
                plan,
                self.calibration_windows,
                config,
                store,
                NullContext(),
                self.calibration(config) if tables else None,
            )
        for _ in made:
            pass
        self.sparsity = [store.info(target.name)["sparsity"] for target in pressed]
        codes = [plan.tensors[target.name].planes * target.rows * target.cols for target in pressed]
        self.sparsity_of_all = float(np.average(self.sparsity, weights=codes))
        return write_packed(self.source, plan, store, folder / "packed", seed=0, versions={})

    def gradients(self, packed: Path) -> GradientFlow:
        """How gradients flow through the packed model's dequantized weights, beside the original."""
        dense, pressed = copy.deepcopy(self.original), load(packed, activation_bits=None)
        found = modules_of(dense, [target.name for target in self.targets])
        with torch.no_grad():
            dense.get_input_embeddings().weight.copy_(pressed.get_input_embeddings().weight)
            for path, module in found.values():
                module.weight.copy_(pressed.get_submodule(path).dequantize())
        windows = self.held_out[:GRADIENT_WINDOWS]
        if not self._norms:
            weights = {name: module.weight for name, module in self.modules.items()}
            self._norms = gradient_norms(self.original, windows, weights)
        weights = {name: module.weight for name, (_, module) in found.items()}
        return gradient_flow(gradient_norms(dense, windows, weights), self._norms)

    def row(self, name: str, baseline: Evaluation, activation_bits: int | None = 8) -> dict[str, Any]:
        config = CompressionConfig(**CASES[name])
        started = time.perf_counter()
        plan = make_plan(
            self.source,
            self.targets,
            config,
            None if config.method == "fast" else self.calibration(config),
        )
        with tempfile.TemporaryDirectory() as folder:
            packed = self.press(config, plan, Path(folder))
            seconds = time.perf_counter() - started
            found = evaluate_model(
                load(packed, activation_bits=activation_bits), self.held_out, reference=self.original
            )
            gradients = self.gradients(packed)
        ratio = self.source.bytes_fp32 / packed_size(self.source, plan)
        change = found.perplexity / baseline.perplexity - 1
        measured = Measured(
            ratio_file=ratio,
            accuracy_kept=found.top1 / baseline.top1,
            perplexity_change=change,
            sparsity=self.sparsity_of_all,
            gradients=gradients,
        )
        return {
            "case": name,
            "ratio_file": ratio,
            "planes_mean": float(np.mean([p.planes for p in plan.tensors.values()])),
            "perplexity": found.perplexity,
            "change": change,
            "top1": found.top1,
            "gates": {gate["name"]: gate["passed"] for gate in five_gates(measured)},
            "kl": found.kl,
            "agreement": found.agreement,
            "sparsity_least": min(self.sparsity),
            "sparsity_most": max(self.sparsity),
            "predicted_loss": plan.predicted_loss,
            "seconds": seconds,
        }


def table(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    bench = Bench()
    baseline = evaluate_model(bench.original, bench.held_out)
    print(
        f"original: perplexity {baseline.perplexity:.3f}, top-1 {baseline.top1:.4f}, {baseline.tokens} tokens"
    )
    print(
        f"{'case':18} {'ratio':>6} {'ppl':>7} {'change':>8} {'top-1':>6} {'kl':>7} {'agree':>6}  "
        f"{'zeros':11}  gates"
    )
    rows = []
    for name in arguments.cases.split(","):
        if name not in CASES:
            sys.exit(f"no case {name!r}; there are {', '.join(CASES)}")
        row = bench.row(name, baseline)
        rows.append(row)
        failed = [gate for gate, passed in row["gates"].items() if not passed]
        print(
            f"{name:18} {row['ratio_file']:6.2f} {row['perplexity']:7.3f} {row['change']:+8.2%} "
            f"{row['top1']:6.4f} {row['kl']:7.4f} {row['agreement']:6.4f}  "
            f"{row['sparsity_least']:.3f}-{row['sparsity_most']:.3f}  "
            f"{'failed: ' + ', '.join(failed) if failed else 'all pass'}; {row['seconds']:.0f} s",
            flush=True,
        )
    if arguments.trained:
        for more in (finetuning.finetuning, finetuning.bitnet):
            print()
            rows += more(arguments)
    return rows


def zeros(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One plane with the zeros held and free, from the same windows, for several draws of them."""
    bench = Bench()
    baseline = evaluate_model(bench.original, bench.held_out)
    pool = bench.windows_of_calibration(len(bench.calibration_windows) * arguments.draws)
    rows, costs = [], []
    print(f"{'draw':>4} {'held':>8} {'free':>8}   {'costs':>7}  zeros where free")
    for draw in range(arguments.draws):
        bench.calibration_windows, bench._calibrations = pool[draw :: arguments.draws], {}
        held, free = (bench.row(case, baseline) for case in ("1plane", "1plane-free-zeros"))
        costs.append(held["perplexity"] / free["perplexity"] - 1)
        rows += [row | {"draw": draw} for row in (held, free)]
        print(
            f"{draw:>4} {held['change']:+8.2%} {free['change']:+8.2%}   {costs[-1]:+7.2%}  "
            f"{free['sparsity_least']:.3f}-{free['sparsity_most']:.3f}",
            flush=True,
        )
    error = np.std(costs, ddof=1) / len(costs) ** 0.5 if len(costs) > 1 else float("nan")
    print(f"held costs {np.mean(costs):+.2%} of the perplexity, standard error {error:.2%}")
    return rows


def predictions(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Random plans: the loss that the planner predicts against what pressing by that plan does to validation
    text."""
    import predictions as random_plans

    return random_plans.run(Bench(), arguments.plans, arguments.folder, arguments.at_most)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("table")
    one.add_argument("--cases", default="2planes,1plane,7,8,10,12")
    one.add_argument("--trained", action="store_true", help="the rows with fine-tuning too")
    one.set_defaults(folder=finetuning.FOLDER, trainings=finetuning.TRAININGS)
    three = commands.add_parser("zeros")
    three.add_argument("--draws", type=int, default=6, help="choices of calibration windows")
    two = commands.add_parser("predictions")
    two.add_argument("--plans", type=int, default=24)
    two.add_argument("--folder", type=Path, help="keep each plan's row here and take it from there again")
    two.add_argument("--at-most", type=int, metavar="N", help="press N plans in this call, then end")
    training = finetuning.add_commands(commands)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run = {"table": table, "zeros": zeros, "predictions": predictions, **training}[arguments.command]
    rows = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
