"""What the Tuning tab foretells beside what a run measures, on the reference model, without fine-tuning.

    python benches/tuning.py [--planes 2 | --ratio 6] [--calibration 16384] [--evaluation 16384]
                             [--thresholds 0.2,0.5,0.8,1.1] [--sparsities 0.15,0.3]

A run whose zeros the fit chose is pressed first; each setting is foretold from it as the tab does, then
pressed by the plan that the tab makes of it. Printed: how far perplexity rises over the original's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tritpress.runs.tuning import Setting
from tuned_runs import tuned_runs


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
    settings = [Setting(threshold=t) for t in given.thresholds]
    settings += [Setting(sparsity=s) for s in given.sparsities]
    print("| setting | zeros: foretold | measured | perplexity: foretold | measured |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for tuned in tuned_runs(
            Path(folder), settings, method="gptq", finetune=False, outputs="packed",
            calibration_tokens=given.calibration, evaluation_tokens=given.evaluation, **size,
        ):  # fmt: skip
            if tuned.setting is None:
                continue
            before = tuned.perplexity("before")
            rises = [p / before - 1 for p in (tuned.foretold.perplexity, tuned.perplexity("packed"))]
            zeros = f"{tuned.foretold.zeros:.1%} | {tuned.zeros:.1%}"
            print(f"| {tuned.setting.words} | {zeros} | {rises[0]:+.1%} | {rises[1]:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
