"""Methods of ternarization beside each other on one model, from the cheapest to the dearest.

    python benches/methods.py [--model DIR --text PATH] [--cases exact,gptq] [--threads N] [--json FILE]

Without `--model` the reference model on its own text. Every case is pressed, written, read back and measured
on held-out text through the packed kernels; no fine-tuning. `weighted` weighs the inputs by the diagonal of
the calibration Hessian; `gptq` is the sweep over the full Hessian, block by block.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from quality import Bench
from tritpress.config import CompressionConfig
from tritpress.evaluate.perplexity import evaluate_model
from tritpress.formats.packed import packed_size
from tritpress.loading import load
from tritpress.plan import make_plan

CASES: dict[str, dict[str, Any]] = {
    "bitnet": {"fit": "bitnet"},
    "absmean": {"fit": "absmean"},
    "twn": {"fit": "twn"},
    "exact": {},
    "bitnet-weighted": {"method": "weighted", "fit": "bitnet"},
    "absmean-weighted": {"method": "weighted", "fit": "absmean"},
    "twn-weighted": {"method": "weighted", "fit": "twn"},
    "exact-weighted": {"method": "weighted"},
    "gptq-bitnet": {"method": "gptq", "fit": "bitnet"},
    "gptq-absmean": {"method": "gptq", "fit": "absmean"},
    "gptq-twn": {"method": "gptq", "fit": "twn"},
    "gptq": {"method": "gptq"},
    "planes": {"planes": 2},
    "planes-weighted": {"planes": 2, "method": "weighted"},
    "planes-gptq": {"planes": 2, "method": "gptq"},
}


def measure(bench: Bench, name: str, baseline: float) -> dict[str, Any]:
    config = CompressionConfig(**{"planes": 1, "method": "fast", **CASES[name]})
    known = None if config.method == "fast" else bench.calibration(config)
    plan = make_plan(bench.source, bench.targets, config, known)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        packed = bench.press(config, plan, Path(folder))
        seconds = time.perf_counter() - started
        found = evaluate_model(load(packed), bench.held_out, reference=bench.original)
    return {
        "case": name,
        "ratio_file": bench.source.bytes_fp32 / packed_size(bench.source, plan),
        "perplexity": found.perplexity,
        "change": found.perplexity / baseline - 1,
        "top1": found.top1,
        "kl": found.kl,
        "agreement": found.agreement,
        "predicted_loss": None if known is None else plan.predicted_loss,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", action="append")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    unknown = [name for name in arguments.cases.split(",") if name not in CASES]
    if unknown:
        sys.exit(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    bench = Bench(model=arguments.model, text=arguments.text)
    before = evaluate_model(bench.original, bench.held_out)
    print(f"original: perplexity {before.perplexity:.3f}, top-1 {before.top1:.4f}, {before.tokens} tokens")
    print(f"{'case':16} {'ratio':>6} {'ppl':>8} {'change':>9} {'top-1':>6} {'kl':>7} {'agree':>6}  predicted")
    rows = []
    for name in arguments.cases.split(","):
        row = measure(bench, name, before.perplexity)
        rows.append(row)
        print(
            f"{name:16} {row['ratio_file']:6.2f} {row['perplexity']:8.3f} {row['change']:+9.2%} "
            f"{row['top1']:6.4f} {row['kl']:7.4f} {row['agreement']:6.4f}  "
            f"{'' if row['predicted_loss'] is None else format(row['predicted_loss'], '7.4f'):7}  "
            f"{row['seconds']:.0f} s",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
