"""A large model goes through in a small resident set, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = """
import importlib.abc, json, resource, sys
class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, NoTorch())
from tritpress import _core
from tritpress.formats.dequantized import write_dequantized
from tritpress.formats.packed import packed_size, write_packed
from tritpress.formats.source import open_source
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import find_targets
from tritpress.inspect import inspect_path
from tritpress.plan import Plan, TensorPlan

model, out = sys.argv[1:]
source = open_source(model)
store = TensorStore(out + "/store")
plan = Plan(embeddings="int8", tensors={
    t.name: TensorPlan(name=t.name, rows=t.rows, cols=t.cols, planes=1, transposed=t.transposed)
    for t in find_targets(source)})
for t in find_targets(source):
    codes, scales = (1, t.rows, -(-t.cols // 4)), (1, t.rows, -(-t.cols // 64))
    path, codes_at, scales_at = store.prepare(t.name, codes, scales)
    _core.ternarize_stream(str(t.entry.file), t.entry.offset, t.entry.dtype, t.rows, t.cols, t.transposed,
                           str(path), codes_at, scales_at, fit="absmean", group_size=64, planes=1)
    store.commit(t.name, {})
write_packed(source, plan, store, out + "/packed", seed=0, versions={})
found = inspect_path(out + "/packed")
write_dequantized(out + "/packed", source, out + "/dequantized")
assert found["bytes"] == packed_size(source, plan)
# not ru_maxrss: a process starts with the peak of the one that forked it
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"peak_kb": peak, "bytes": source.bytes_on_disk, "packed": found["bytes"]}))
"""


def make_large(folder: Path, gigabytes: float) -> Path:
    """A bfloat16 Llama of about that size with 256 MB embeddings, written without holding it in memory."""
    hidden, inner, vocabulary = 2048, 5632, 65_536
    block = {
        **{f"self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"},
        "mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner), "input_layernorm.weight": (hidden,),
    }  # fmt: skip
    size = sum(2 * int(np.prod(shape)) for shape in block.values())
    layers = max(1, round((gigabytes * 2**30 - 2 * vocabulary * hidden) / size))
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    header, position = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + nbytes]}
        position += nbytes
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32) * 0.02
    piece = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    raw = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        while position > 0:
            position -= file.write(piece[:position])
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def _press(tmp_path: Path, gigabytes: float) -> dict:
    model = make_large(tmp_path / "model", gigabytes)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_one_gigabyte_in_less_than_one(tmp_path: Path) -> None:
    found = _press(tmp_path, 1.0)
    assert found["bytes"] > 0.95 * 2**30
    assert found["peak_kb"] < 400_000, found
