"""The wheel in an environment without torch: import, inspect, and a 1 GB model pressed in little memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what the base install asks for, nothing else."""
    if shutil.which("cargo") is None or not (ROOT / "Cargo.toml").is_file():
        pytest.skip("building the wheel needs the sources and cargo")
    base = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--quiet", "--out", str(base)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = base.glob("*.whl")
    assert "-cp311-abi3-manylinux" in wheel.name
    subprocess.run([sys.executable, "-m", "venv", str(base / "venv")], check=True)
    install = [str(base / "venv/bin/pip"), "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True)
    return base / "venv"


@pytest.fixture(scope="module")
def gigabyte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 1 GB in bfloat16 with random weights, in two shards, written piece by piece."""
    folder = tmp_path_factory.mktemp("gigabyte")
    hidden, inner, layers, vocabulary = 1536, 4096, 18, 8192
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner,
        "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": vocabulary,
        "tie_word_embeddings": True, "dtype": "bfloat16", "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        block = f"model.layers.{i}"
        shapes |= {f"{block}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"{block}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{block}.{p}_layernorm.weight": (hidden,) for p in ("input", "post_attention")}
    noise = (
        np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32).view(np.uint32) >> 16
    ).astype("<u2")
    names, weight_map = sorted(shapes), {}
    for shard, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{shard:05d}-of-00002.safetensors"
        header, at = {}, 0
        for name in part:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
            at += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name in part:
                left = int(np.prod(shapes[name]))
                while left:
                    out.write(noise[: min(left, noise.size)].tobytes())
                    left -= min(left, noise.size)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) > 1_000_000_000
    return folder


MEASURED = (
    "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]);"
    "print('peak kB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr);"
    "sys.exit(done.returncode)"
)


def _run(bare: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the wheel; the last line of stderr is the peak resident set of its largest process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(bare / "bin/python"), "-c", MEASURED, str(bare / "bin/tritpress"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


def test_import_without_torch(bare: Path) -> None:
    code = "import tritpress, importlib.util as u; print(tritpress.__version__, u.find_spec('torch'))"
    done = subprocess.run([str(bare / "bin/python"), "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and done.stdout.endswith("None\n"), done.stderr


def test_a_gigabyte_in_less_memory(bare: Path, gigabyte_model: Path, tmp_path: Path) -> None:
    done = _run(
        bare, "compress", str(gigabyte_model), "-o", str(tmp_path / "out"), "--method", "fast",
        "--no-finetune", "--runs", str(tmp_path / "runs"), "--json",
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    unmeasured = {gate["name"] for gate in report["gates"] if gate["passed"] is None}
    assert unmeasured == {"accuracy", "perplexity", "gradient_flow"}
    assert all(
        "torch" in gate["advice"] or "text" in gate["advice"]
        for gate in report["gates"]
        if gate["passed"] is None
    )
    peak_kb = int(done.stderr.split()[-1])
    assert peak_kb < 1_000_000, f"{peak_kb} kB"

    checked = _run(bare, "inspect", str(tmp_path / "out" / "packed"), "--json")
    assert checked.returncode == 0, checked.stderr
    shutil.rmtree(tmp_path / "out")
