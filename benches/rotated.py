"""A Llama whose residual stream is rotated by a random Hadamard matrix folded into its weights.

    python benches/rotated.py OUT [--model DIR] [--values | --plain | --sort]

The rotated model computes what the original computes (the norms' weights are folded into the matrices behind
them first), but its weights are incoherent: outliers of single channels are spread over all (QuaRot, Ashkboos
et al. 2024, arXiv 2404.00456, without its online rotations). `--values` rotates each head's values between v
and o as well. The head is untied, because the last norm's weight goes into it alone; `--plain` only unties
and folds, to compare with. `--sort` rotates nothing either, but puts neurons of the feed-forward parts with
like weights side by side, so that they share a scale (the reordering of PT2-LLM, for the one place where it
folds into the weights). `benches/methods.py --model OUT` then shows what that does to each method.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tritpress.formats.huggingface import load_original
from tritpress.formats.source import open_source
from tritpress.reference import reference_model_path


def hadamard(size: int, generator: torch.Generator) -> Tensor:
    """Orthogonal [size, size]: Sylvester's Hadamard matrix with random signs of its columns, float64."""
    if size & (size - 1):
        raise SystemExit(f"the width {size} is no power of two")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return matrix / size**0.5 * signs


@torch.no_grad()
def rotate(model: torch.nn.Module, residual: bool, values: bool) -> None:
    """Fold norms, then rotate the residual stream and each head's values, in place."""
    inner = model.model
    generator = torch.Generator().manual_seed(0)
    hidden = model.config.hidden_size
    turn = hadamard(hidden, generator) if residual else torch.eye(hidden, dtype=torch.float64)

    def fold(linear: torch.nn.Linear, norm: torch.nn.Module) -> None:
        linear.weight.copy_((linear.weight.double() * norm.weight.double()) @ turn)

    embeddings = inner.embed_tokens.weight.double().clone()
    model.lm_head.weight = torch.nn.Parameter((embeddings * inner.norm.weight.double() @ turn).float())
    inner.embed_tokens.weight = torch.nn.Parameter((embeddings @ turn).float())
    inner.norm.weight.fill_(1.0)
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            fold(linear, layer.input_layernorm)
        for linear in (mlp.gate_proj, mlp.up_proj):
            fold(linear, layer.post_attention_layernorm)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(1.0)
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.copy_(turn.T @ linear.weight.double())
        if values:
            size = attention.head_dim
            head = hadamard(size, generator)
            v = attention.v_proj.weight.double().view(-1, size, hidden)
            attention.v_proj.weight.copy_((head.T @ v).view(-1, hidden))
            o = attention.o_proj.weight.double().view(hidden, -1, size)
            attention.o_proj.weight.copy_((o @ head).view(hidden, -1))


@torch.no_grad()
def sort_neurons(model: torch.nn.Module) -> None:
    """Order the neurons of each feed-forward part by the norm of what they write, in place."""
    for layer in model.model.layers:
        mlp = layer.mlp
        order = mlp.down_proj.weight.norm(dim=0).argsort(descending=True)
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order].clone())
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[order].clone())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=reference_model_path())
    parser.add_argument("--values", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--sort", action="store_true")
    arguments = parser.parse_args()
    model = load_original(open_source(arguments.model))
    ids = torch.arange(256).reshape(2, 128) * 7 % model.config.vocab_size
    with torch.no_grad():
        before = model(input_ids=ids).logits
        rotate(model, not (arguments.plain or arguments.sort), arguments.values)
        if arguments.sort:
            sort_neurons(model)
        after = model(input_ids=ids).logits
    print(f"the logits differ by {float((after - before).norm() / before.norm()):.1e} of their size")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.model.iterdir():
        if path.suffix == ".json" and "index" not in path.name:
            shutil.copy(path, arguments.out / path.name)
    config = json.loads((arguments.model / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "dtype": "float32"}
    (arguments.out / "config.json").write_text(json.dumps(config, indent=1))
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, arguments.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
