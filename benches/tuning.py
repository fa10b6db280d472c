"""What the Tuning tab foretells beside what a run measures, on the reference model, without fine-tuning.

    python benches/tuning.py [--planes 2 | --ratio 6] [--calibration 16384] [--evaluation 16384]
                             [--thresholds 0.2,0.5,0.8,1.1] [--sparsities 0.15,0.3]

A run whose zeros the fit chose is pressed first; each setting is foretold from it as the tab does, then
pressed by the plan that the tab makes of it. Printed: how far perplexity rises over the original's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import tritpress as tp
from tritpress.reference import reference_model_path
from tritpress.runs.directory import RunDirectory
from tritpress.runs.history import run_state
from tritpress.runs.tuning import (
    Setting,
    basis_of,
    forecast,
    plan_of_run,
    read_curves,
    tuned_config,
    tuned_plan,
    write_plan,
)


class Bench:
    """Runs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"

    def press(self, **values: Any) -> tuple[RunDirectory, dict[str, Any]]:
        """A run with that configuration, and the state that it ended in."""
        out = Path(tempfile.mkdtemp(dir=self.folder)) / "out"
        report = tp.compress(reference_model_path(), out, tp.CompressionConfig(**values), runs_dir=self.runs)
        run = RunDirectory(self.runs / report["run"])
        return run, run_state(run)


def _rise(state: dict[str, Any], perplexity: float) -> float:
    return perplexity / float(state["evaluations"]["before"]["perplexity"]) - 1.0


def _zeros(state: dict[str, Any]) -> float:
    layers = state["layers"].values()
    return sum(one["sparsity"] * one["weights"] for one in layers) / sum(one["weights"] for one in layers)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--planes", type=int)
    parser.add_argument("--ratio", type=float, help="a mix of planes in place of one number of them")
    parser.add_argument("--calibration", type=int, default=16_384, help="tokens")
    parser.add_argument("--evaluation", type=int, default=16_384, help="tokens")
    parser.add_argument("--thresholds", type=_numbers, default=[0.2, 0.5, 0.8, 1.1])
    parser.add_argument("--sparsities", type=_numbers, default=[0.15, 0.3])
    given = parser.parse_args()
    size = {"target_ratio": given.ratio} if given.ratio else {"planes": given.planes or 2}
    with tempfile.TemporaryDirectory() as made:
        bench = Bench(Path(made))
        first, state = bench.press(
            method="gptq", finetune=False, outputs="packed", calibration_tokens=given.calibration,
            evaluation_tokens=given.evaluation, **size,
        )  # fmt: skip
        curves, basis, names = read_curves(first.path, state), basis_of(state), list(state["layers"])
        print("| setting | zeros: foretold | measured | perplexity: foretold | measured |")
        print("|---|---|---|---|---|")
        settings = [Setting(threshold=t) for t in given.thresholds]
        settings += [Setting(sparsity=s) for s in given.sparsities]
        for number, setting in enumerate(settings):
            found = forecast(curves, names, setting, basis)
            assert found is not None and found.perplexity is not None, setting
            path = bench.folder / f"plan-{number}.json"
            values = tuned_config(state["config"], path)
            write_plan(path, tuned_plan(plan_of_run(first.path), names, setting, curves), values)
            _, tuned = bench.press(**values)
            measured = float(tuned["evaluations"]["packed"]["perplexity"])
            print(
                f"| {setting.words} | {found.zeros:.1%} | {_zeros(tuned):.1%} "
                f"| {_rise(tuned, found.perplexity):+.1%} | {_rise(tuned, measured):+.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
