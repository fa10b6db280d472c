"""What training the ternary codes brings: tables of `docs/quality.md`, as commands of `benches/quality.py`.

    python benches/quality.py finetuning [--cases r8-500k,one-500k,one-1m,one-4m]
    python benches/quality.py bitnet
    python benches/quality.py optimizers [--seeds 0,1,2] [--tokens 250000] [--tuning-tokens 100000]
    python benches/quality.py step [--wide]

Every row is a file in `--folder` (default `target/finetuning`), made once: a command that was cut off goes on
where it was, in the middle of a training too. All on the built-in text and model; the evaluation reads the
packed model back from disk and runs its int8 kernels over 32,640 held-out tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tritpress import pipeline, steps
from tritpress.allocator import keep_freed_memory
from tritpress.config import CompressionConfig
from tritpress.evaluate.perplexity import evaluate_model
from tritpress.events.context import NullContext
from tritpress.finetune.fast_modules import faster_modules
from tritpress.finetune.recipe import Recipe, recipe_for
from tritpress.finetune.trainer import FineTuneResult, _Run, fine_tune
from tritpress.formats.huggingface import modules_of
from tritpress.formats.packed import write_packed
from tritpress.formats.source import tensor_entries
from tritpress.formats.store import TensorStore
from tritpress.loading import load
from tritpress.nn.bit_linear import BitLinear
from tritpress.nn.surgery import replace_module, weight_out_in
from tritpress.reference import reference_model_path
from tritpress.steps.press import statistics as layer_statistics
from tritpress.steps.student import make_student, save_rest
from tritpress.text import TrainingWindows

STARTS: dict[str, dict[str, Any]] = {
    "one": {"planes": 1},
    "r8": {"target_ratio": 8.0},
    "bitnet": {"planes": 1, "method": "fast", "fit": "bitnet"},
    "wide": {"planes": 1, "method": "fast", "evaluate": False, "finetune": True},
}
CASES: dict[str, tuple[str, int]] = {
    "r8-65k": ("r8", 65_536),
    "r8-500k": ("r8", 500_000),
    "one-500k": ("one", 500_000),
    "one-1m": ("one", 1_000_000),
    "one-4m": ("one", 4_000_000),
}
TRAININGS, FOLDER = "r8-500k,one-500k,one-1m,one-4m", Path("target/finetuning")
BITNET_RATES, BITNET_TRIAL = (3e-4, 1e-3, 3e-3), 131_072
"""AdamW's rates for latent weights in their own units, and the tokens that each is tried for."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "muon": {"optimizer": "muon"},
    "mugrokfast 0.1": {"optimizer": "mugrokfast", "grokfast_lambda": 0.1},
    "mugrokfast 0.5": {"optimizer": "mugrokfast", "grokfast_lambda": 0.5},
    "mugrokfast 2": {"optimizer": "mugrokfast", "grokfast_lambda": 2.0},
}
RATE_FACTORS = (0.5, 1.0, 2.0)
"""The rates that are tried for each optimizer, times the recipe's own; where the best is the lowest or the
highest of them, the next one is tried too."""


WIDE = (1024, 2816, 4, 8_192)
"""Hidden, intermediate, blocks and vocabulary of the larger model of `step --wide` (random weights)."""


class RunFolder:
    """A run's folder as the pipeline's steps need one."""

    def __init__(self, path: Path, model: Path | None = None) -> None:
        self.path, self.id = path, path.name
        self.model = model or reference_model_path()
        self.work = path / "work"
        self.work.mkdir(parents=True, exist_ok=True)

    def read_run(self) -> dict[str, Any]:
        return {"model": str(self.model), "out": str(self.path / "out")}

    def choose(self, **measured: Any) -> dict[str, Any]:
        kept = self.path / "chosen.json"
        if not kept.is_file():
            kept.write_text(json.dumps(measured), encoding="utf-8")
        return json.loads(kept.read_text(encoding="utf-8"))


class Talk(NullContext):
    """Prints each validation of a training."""

    def __init__(self, name: str) -> None:
        self.name = name

    def emit(self, type: str, /, **fields: Any) -> None:
        if type == "finetune.step" and "validation_loss" in fields:
            print(
                f"  {self.name}: {fields['tokens']:,} tokens, kl {fields['kl']:.4f}, "
                f"validation loss {fields['validation_loss']:.4f}, {fields['tokens_per_s']:.0f} tokens/s",
                flush=True,
            )


class Bench:
    """Calibrated starts and finished rows in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calibrated: dict[str, Path] = {}

    def row(self, name: str, make: Any) -> dict[str, Any]:
        """The row of that name: read, or made by `make()` and kept."""
        path = self.folder / "rows" / f"{name}.json"
        if not path.is_file():
            found = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    def start(self, name: str, model: Path | None = None, **more: Any) -> steps.Work:
        """A run of `STARTS[name]` with steps 1 to 4 done, read back if they were before."""
        config = CompressionConfig(**STARTS[name], **more)
        work = steps.Work(
            config=config, directory=RunFolder(self.folder / "starts" / name, model), context=NullContext()
        )
        for number, (step, function) in enumerate(pipeline.STEPS[:4], start=1):
            record = work.folder / f"step{number}.json"
            if number > 1 and record.is_file():
                steps.recall(work, number)
                continue
            skipped = function(work)
            record.write_text(json.dumps({"n": number, "name": step, "seconds": 0.0, "skipped": skipped}))
        return work

    def whole_run(self, name: str, start: str, tokens: int) -> dict[str, Any]:
        """The report of a run of the pipeline with that budget, from the calibrated start."""
        self.start(start)
        folder = self.folder / "runs" / name
        if not (folder / "work").is_dir():
            shutil.copytree(self.folder / "starts" / start, folder)
        config = CompressionConfig(**STARTS[start], tokens=tokens, finetune=True, overwrite=True)
        report = pipeline.run(config, RunFolder(folder), Talk(name))
        keys = ("ratio_file", "perplexity_change", "perplexity_interval", "accuracy_kept", "sparsity")
        packed = report["after"]["packed"]
        return {
            "case": name,
            **{key: report[key] for key in keys},
            **{key: packed[key] for key in ("perplexity", "top1", "kl", "agreement")},
            "gates": {gate["name"]: gate["passed"] for gate in report["gates"]},
            "fine_tuning": report["fine_tuning"],
        }

    def trained(
        self,
        name: str,
        work: steps.Work,
        student: Any,
        layers: dict[str, BitLinear],
        recipe: Recipe,
        evaluate: bool = True,
    ) -> dict[str, Any]:
        """Train a student by `recipe` on the run's text and evaluate what is written of it."""
        text = TrainingWindows(work.tokenizer, work.splits.fine_tuning, work.window, recipe.seed)
        folder = self.folder / "training" / name
        validation = work.windows("validation")
        result = fine_tune(
            student, work.original, text, validation, work.config, folder, Talk(name), recipe=recipe
        )
        if evaluate and recipe.rest_lr > 0:
            save_rest(work, student)
        found = self.evaluated(work, layers, folder) if evaluate else {}
        shutil.rmtree(folder)
        return _figures(name, result) | found

    def evaluated(self, work: steps.Work, layers: dict[str, BitLinear], folder: Path) -> dict[str, Any]:
        store = TensorStore(folder / "tensors")
        for target in work.targets:
            codes, scales = layers[target.name].codes_and_scales()
            store.put(target.name, codes, scales, layer_statistics(target, codes, scales, work))
        assert work.plan is not None
        rest = tensor_entries(work.rest_path) if work.rest_path.is_file() else {}
        packed = write_packed(
            work.source, work.plan, store, folder / "packed", seed=0, versions={}, dense=rest
        )
        work.rest_path.unlink(missing_ok=True)
        found = evaluate_model(
            load(packed, activation_bits=8), work.windows("held_out"), reference=work.original
        )
        before = work.evaluations["before"]
        return {
            "perplexity_change": found.perplexity / before["perplexity"] - 1,
            "accuracy_kept": found.top1 / before["top1"],
            **{key: getattr(found, key) for key in ("perplexity", "top1", "kl", "agreement")},
        }


def _figures(name: str, result: FineTuneResult) -> dict[str, Any]:
    keys = ("steps", "tokens", "loss_first", "loss_best", "best_step", "stopped", "tokens_per_s", "recipe")
    found = result.to_json()
    return {"case": name} | {key: found[key] for key in keys}


def finetuning(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole runs of the pipeline with budgets of training, all gates judged."""
    bench, rows = Bench(arguments.folder), []
    print(f"{'case':10} {'ratio':>6} {'change':>8} {'kept':>7} {'kl':>7} {'agree':>6} {'zeros':>6}  gates")
    for name in arguments.trainings.split(","):
        start, tokens = CASES[name]
        row = bench.row(name, lambda: bench.whole_run(name, start, tokens))  # noqa: B023
        rows.append(row)
        failed = [gate for gate, passed in row["gates"].items() if not passed]
        print(
            f"{name:10} {row['ratio_file']:6.2f} {row['perplexity_change']:+8.2%} "
            f"{row['accuracy_kept']:7.2%} {row['kl']:7.4f} {row['agreement']:6.4f} {row['sparsity']:6.3f}  "
            f"{'all pass' if not failed else 'failed: ' + ', '.join(failed)}; "
            f"{row['fine_tuning']['tokens_per_s']:.0f} tokens/s",
            flush=True,
        )
    return rows


class AbsmeanLinear(BitLinear):
    """BitNet's layer: one scale for the tensor, the mean magnitude of its latents at every step."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def _refresh(self) -> None:
        key = (self.latent._version, self.latent.data_ptr())
        if key == self._key:
            return
        scale = self.latent.abs().mean().to(torch.float16).float()
        self._scales = scale.expand(1, self.out_features, self.groups)
        self._codes = (self.latent / scale).round().clamp(-1, 1).to(torch.int8).unsqueeze(0)
        self._weight = self._codes[0] * scale
        self._key = key


def bitnet_student(work: steps.Work) -> tuple[Any, dict[str, BitLinear]]:
    """The original with absmean codes of one scale a tensor, latents where its weights are."""
    student, _ = make_student(work)  # everything else as it is written
    originals = modules_of(work.original, [target.name for target in work.targets])
    layers: dict[str, BitLinear] = {}
    for target in work.targets:
        path, module = originals[target.name]
        weight: Tensor = weight_out_in(module)
        scale = weight.abs().mean().expand(1, target.rows, 1)
        layers[target.name] = AbsmeanLinear(weight, scale, 0, bias=module.bias)
        replace_module(student, path, layers[target.name])
    return student, layers


def bitnet(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """BitNet's usual recipe: absmean per tensor, cross-entropy, AdamW at its best rate of three."""
    bench = Bench(arguments.folder)

    def train(name: str, rate: float, tokens: int) -> dict[str, Any]:
        work = bench.start("bitnet", optimizer="adamw", tokens=tokens)
        student, layers = bitnet_student(work)
        # one rate for all tensors in the weights' own units, as AdamW has it
        AbsmeanLinear.unit = 1.0  # type: ignore[assignment]
        recipe = _recipe(work, lr=rate, scale_lr=0.0, ce_share=1.0, pull=0.0, patience=1_000)
        return bench.trained(name, work, student, layers, recipe)

    rows = []
    for rate in BITNET_RATES:
        name = f"bitnet-{BITNET_TRIAL}-{rate:g}"
        rows.append(bench.row(name, lambda: train(name, rate, BITNET_TRIAL)))  # noqa: B023
    best = min(rows, key=lambda row: row["loss_best"])
    rate = best["recipe"]["lr"]
    rows.append(bench.row("bitnet-1m", lambda: train("bitnet-1m", rate, 1_000_000)))
    rows.append(bench.row("one-1m", lambda: bench.whole_run("one-1m", *CASES["one-1m"])))
    print(f"{'case':20} {'change':>8} {'kept':>7} {'kl':>7} {'agree':>6}")
    for row in rows:
        print(
            f"{row['case']:20} {row['perplexity_change']:+8.2%} {row['accuracy_kept']:7.2%} "
            f"{row['kl']:7.4f} {row['agreement']:6.4f}"
        )
    print(f"kl of ours at 1 M tokens is {rows[-1]['kl'] / rows[-2]['kl']:.0%} of that recipe's")
    return rows


def optimizers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every optimizer from the same codes, its rate tuned on seed 0 by validation loss over three values."""
    bench, rows = Bench(arguments.folder), []
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    opened: list[steps.Work] = []

    def train(name: str, kind: str, seed: int, tokens: int, factor: float, evaluate: bool) -> dict[str, Any]:
        if not opened:
            opened.append(bench.start("one"))
        work = opened[0]  # the same text and windows for all
        work.config = CompressionConfig(**STARTS["one"], tokens=tokens, seed=seed, **OPTIMIZERS[kind])
        student, layers = make_student(work)
        recipe = _recipe(work, patience=1_000)
        recipe = _recipe(work, patience=1_000, lr=recipe.lr * factor)
        return bench.trained(name, work, student, layers, recipe, evaluate)

    print(f"{'optimizer':16} {'rate':>8} {'seeds':>5} {'loss':>7} {'kl':>15} {'change':>17}")
    kinds = arguments.kinds.split(",") if arguments.kinds else list(OPTIMIZERS)
    unknown = [kind for kind in kinds if kind not in OPTIMIZERS]
    if unknown:
        sys.exit(f"no optimizer {unknown[0]!r}; there are {', '.join(OPTIMIZERS)}")
    for kind in kinds:
        stem = kind.replace(" ", "-")

        def tried(factor: float) -> float:
            name = f"tuning-{stem}-{arguments.tuning_tokens}-{factor:.3g}"  # noqa: B023
            made = bench.row(
                name,
                lambda: train(name, kind, 0, arguments.tuning_tokens, factor, False),  # noqa: B023
            )
            return float(made["loss_best"])

        factor, losses = tuned(tried)
        print(f"  {kind}: " + ", ".join(f"{loss:.4f} at {key:g}" for key, loss in losses.items()), flush=True)
        found = []
        for seed in seeds:
            name = f"{stem}-{arguments.tokens}-x{factor:.3g}-seed{seed}"
            found.append(
                bench.row(name, lambda: train(name, kind, seed, arguments.tokens, factor, True))  # noqa: B023
            )
        rows += found
        kl, change = ([row[key] for row in found] for key in ("kl", "perplexity_change"))
        print(
            f"{kind:16} {found[0]['recipe']['lr']:8.2g} {len(found):5} "
            f"{statistics.mean(row['loss_best'] for row in found):7.4f} "
            f"{statistics.mean(kl):7.4f} +-{_spread(kl):6.4f} "
            f"{statistics.mean(change):+8.2%} +-{_spread(change):6.2%}",
            flush=True,
        )
    return rows


def tuned(tried: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """(the best factor, {factor: loss}) over `RATE_FACTORS` and what lies beyond while that is better."""
    losses = {factor: tried(factor) for factor in RATE_FACTORS}
    while True:
        best = min(losses, key=lambda factor: losses[factor])  # of equal ones the one tried first
        beyond = best / 2 if best == min(losses) else best * 2 if best == max(losses) else None
        if beyond is None:
            return best, dict(sorted(losses.items()))
        losses[beyond] = tried(beyond)


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")
BATCH = 4
"""Windows of a profiled step."""


def step(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Where the time of a training step goes, in each number format."""
    bench, rows = Bench(arguments.folder), []
    wide, text = None, {}
    if arguments.wide:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from large import write_text
        from large_models import make_llama

        wide = arguments.folder / "wide-model"
        if not wide.is_dir():
            make_llama(wide, *WIDE)
        text = {"text": [str(write_text(arguments.folder / "text"))]}
    print(f"{'format':9} {'optimizer':11} {'step':>7} {'tokens/s':>8} {'products':>8} {'optimizer':>9}  rest")
    for format in ("float32", "bfloat16"):
        for kind in ("adamw", "mugrokfast"):
            work = bench.start("wide" if wide else "one", wide, optimizer=kind, **text)
            student, _ = make_student(work)
            recipe = _recipe(work, muon_format=format, autocast=format, batch_windows=BATCH)
            rows.append({"format": format, "optimizer": kind} | _profiled(work, student, recipe))
            row = rows[-1]
            most = sorted(row["rest"].items(), key=lambda item: -item[1])[:4]
            print(
                f"{format:9} {kind:11} {row['seconds']:6.3f}s {row['tokens_per_s']:8.0f} "
                f"{row['products']:8.1%} {row['optimizer_share']:9.1%}  "
                + ", ".join(f"{name} {share:.1%}" for name, share in most),
                flush=True,
            )
    return rows


def _profiled(work: steps.Work, student: Any, recipe: Recipe) -> dict[str, Any]:
    """Seconds of a step (the best of eight), and shares of one that torch's profiler watched."""
    text = TrainingWindows(work.tokenizer, work.splits.fine_tuning, work.window, 0)
    with tempfile.TemporaryDirectory() as folder:
        training = _Run(student, work.original, text, work.windows("validation"), recipe, Path(folder), None)
        keep_freed_memory()
        with faster_modules(student, work.original):
            times = []
            for _ in range(11):
                started = time.perf_counter()
                training._step()
                times.append(time.perf_counter() - started)
                training.state.step += 1
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
                training._step()
    shares: dict[str, float] = {}
    for event in watched.events():
        parent, name = event, event.name
        while parent is not None and parent.name != "optimizer":
            parent = parent.cpu_parent
        if parent is not None:
            name = "optimizer"
        elif name.startswith(PRODUCTS):
            name = "products"
        shares[name] = shares.get(name, 0.0) + event.self_cpu_time_total
    total, seconds = sum(shares.values()), min(times[3:])
    return {
        "seconds": seconds,
        "tokens_per_s": recipe.batch_tokens / seconds,
        "products": shares.pop("products") / total,
        "optimizer_share": shares.pop("optimizer") / total,
        "rest": {name.removeprefix("aten::"): spent / total for name, spent in shares.items()},
    }


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _recipe(work: steps.Work, **changes: Any) -> Recipe:
    assert work.plan is not None
    planes = float(np.mean([planned.planes for planned in work.plan.tensors.values()]))
    return recipe_for(work.config, work.window, work.chosen["number_formats"], None, planes, **changes)


def add_commands(commands: Any) -> dict[str, Any]:
    """Add the commands of this file to the parsers of `benches/quality.py`; name -> function."""
    made = {}
    functions = {"finetuning": finetuning, "bitnet": bitnet, "optimizers": optimizers, "step": step}
    for name, function in functions.items():
        parser = commands.add_parser(name, help=function.__doc__)
        parser.add_argument("--folder", type=Path, default=FOLDER)
        made[name] = (parser, function)
    made["finetuning"][0].add_argument("--cases", dest="trainings", default=TRAININGS)
    made["step"][0].add_argument("--wide", action="store_true", help="a Llama of 51 M weights in its blocks")
    made["optimizers"][0].add_argument("--seeds", default="0,1,2")
    made["optimizers"][0].add_argument("--kinds", help=f"some of {', '.join(OPTIMIZERS)} (all)")
    made["optimizers"][0].add_argument("--tokens", type=int, default=250_000)
    made["optimizers"][0].add_argument("--tuning-tokens", type=int, default=100_000)
    return {name: function for name, (_, function) in made.items()}
