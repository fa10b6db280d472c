"""Training one block after the other to give the original's hidden states, after the second-order sweep.

    python benches/block_reconstruction.py [--windows 64] [--epochs 16] [--threads N] [--folder DIR]

The idea is that of block reconstruction (BRECQ, arXiv 2102.05426; CAT-Q for ternary weights, arXiv
2606.26650): each block's latents and scales are trained on the squared error between what leaves it and what
leaves the original's, its own input being that of the compressed model so far. The start is the reference
model with one plane by gptq; figures are of held-out text through the packed kernels, as in
`benches/quality.py`. Epochs are over the calibration windows (fine-tuning text where more than 64 are asked
for); a block keeps the state with the least error on 16 windows of validation text.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import finetuning
import torch
from torch import Tensor
from tritpress.events.context import NullContext
from tritpress.finetune.mugrokfast import MuGrokfast
from tritpress.finetune.recipe import PULL_STEPS, SCALE_RATE, WALK
from tritpress.nn.bit_linear import BitLinear
from tritpress.nn.surgery import find_blocks
from tritpress.steps.student import make_student
from tritpress.ternarize.blocks import BlockRunner
from tritpress.text import token_windows


def error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error relative to the wanted hidden states' own variance over tokens."""
    return (found - wanted).square().mean() / wanted.var(dim=(0, 1)).mean()


class Block:
    """One block's training: latents in widths of their cells and factors on scales, as in fine-tuning."""

    def __init__(self, block: Any, steps: int) -> None:
        self.layers = {name: m for name, m in block.named_modules() if isinstance(m, BitLinear)}
        self.trained = {f"{name}.latent": layer.latent for name, layer in self.layers.items()}
        gains = {f"{name}.gain": layer.gain for name, layer in self.layers.items()}
        pull_steps = max(PULL_STEPS, steps // 4)
        self.pull, self.steps, self.step = 1.0 / pull_steps, steps, 0
        self.optimizer = MuGrokfast(
            self.trained,
            gains,
            units={f"{name}.latent": layer.unit for name, layer in self.layers.items()},
            kind="adamw",
            lr=WALK / math.sqrt(0.5 * pull_steps),
            other_lr=SCALE_RATE,
        )
        self.trained = self.trained | gains
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    def learn(self, loss: Tensor) -> None:
        """One step down the loss: a twentieth of them warms up, then a cosine."""
        self.step += 1
        share = self.step / self.steps
        factor = min(1.0, share / 0.05) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.set_rate(factor)
        self.optimizer.step()
        for layer in self.layers.values():
            layer.pull_to_middle(self.pull * factor)
            layer.changed()

    @torch.no_grad()
    def fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(values[name])
        for layer in self.layers.values():
            layer.changed()

    def values(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}


def reconstruct(student: Any, original: Any, windows: Any, held: Any, epochs: int) -> None:
    """Train the student's blocks in their order; prints the error on `held` before and after for each."""
    path, _ = find_blocks(original)
    runs = [
        [BlockRunner(model, model.get_submodule(path), some, NullContext()) for model in (student, original)]
        for some in (windows, held)
    ]
    (own, other), (own_held, other_held) = runs
    for number, block in enumerate(own.blocks):
        with torch.no_grad():
            for runner in (other, other_held):
                runner.hidden = [runner.step(number, hidden) for hidden in runner.hidden]

        def held_error(number: int = number) -> float:
            with torch.no_grad():
                errors = [
                    error(own_held.step(number, hidden), wanted)
                    for hidden, wanted in zip(own_held.hidden, other_held.hidden)
                ]
            return float(torch.stack(errors).mean())

        training = Block(block, epochs * len(own.hidden))
        before = best = held_error()
        kept = training.values()
        for _ in range(epochs):
            for i in torch.randperm(len(own.hidden)).tolist():
                training.learn(error(own.step(number, own.hidden[i]), other.hidden[i]))
            if (now := held_error()) < best:
                best, kept = now, training.values()
        training.fill(kept)
        for parameter in training.trained.values():
            parameter.requires_grad_(False)
        with torch.no_grad():
            for runner in (own, own_held):
                runner.hidden = [runner.step(number, hidden) for hidden in runner.hidden]
        print(f"  block {number}: error on held-out windows {before:.4f} -> {best:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, default=Path("target/finetuning"))
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    bench = finetuning.Bench(arguments.folder)
    work = bench.start("one")
    student, layers = make_student(work)
    part = work.splits.calibration if arguments.windows <= 64 else work.splits.fine_tuning
    windows = token_windows(work.tokenizer, part, work.window, arguments.windows)
    started = time.perf_counter()
    if arguments.epochs:
        reconstruct(student, work.original, windows, work.windows("validation")[:16], arguments.epochs)
    seconds = time.perf_counter() - started
    folder = arguments.folder / "training" / "blocks"
    shutil.rmtree(folder, ignore_errors=True)
    found = bench.evaluated(work, layers, folder)
    shutil.rmtree(folder)
    row = {"windows": len(windows), "epochs": arguments.epochs, "seconds": round(seconds, 1)} | found
    print(json.dumps({k: round(v, 5) for k, v in row.items()}))


if __name__ == "__main__":
    main()
