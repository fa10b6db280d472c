"""The handoff checklist on real directories: all holds, and each kind of damage fails its own item."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tritpress.evaluate.handoff import check_handoff
from tritpress.formats.dequantized import write_dequantized
from tritpress.formats.huggingface import load_original
from tritpress.formats.packed import write_packed
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import find_targets
from tritpress.loading import load
from tritpress.plan import Plan, TensorPlan
from tritpress.ternarize import ternarize

FILES = "packed files are those that were written"
READER = "packed model passes the strict reader"
COMPLETE = "dequantized model is complete"
BITS = "packed decodes to dequantized bit for bit"
FINITE = "no value is NaN or infinite"
CONFIG = "configurations fit the files"
TOKENIZER = "tokenizer round trips"
CLEAN = "no code and no leftovers in the directories"
STOCK = "dequantized opens in stock transformers"
LOGITS = "packed and dequantized give the same logits"
GRADIENTS = "gradients reach every pressed tensor"
SIZE = "size on disk is the one the ratio was judged by"

pytestmark = pytest.mark.usefixtures("one_thread")


def press(model_dir: Path, out: Path) -> None:
    """Two planes, int8 embeddings, by weights alone."""
    source = open_source(model_dir)
    targets, store = find_targets(source), TensorStore(out / "store")
    planned = {}
    for target in targets:
        weight = read_tensor(target.entry)
        weight = np.ascontiguousarray(weight.T if target.transposed else weight)
        made = ternarize(weight, planes=2, group_size=32)
        store.put(target.name, made.codes, made.scales, {})
        planned[target.name] = TensorPlan(
            name=target.name, rows=target.rows, cols=target.cols, planes=2, group_size=32,
            transposed=target.transposed,
        )  # fmt: skip
    plan = Plan(tensors=planned, embeddings="int8")
    write_packed(source, plan, store, out / "packed", seed=0, versions={})
    write_dequantized(out / "packed", source, out / "dequantized")


def gates_for(model_dir: Path, out: Path, *, gradients: bool | None = True):
    size = sum(path.stat().st_size for path in (out / "packed").glob("*.safetensors"))
    return [
        {"name": "ratio", "actual": open_source(model_dir).bytes_fp32 / size, "passed": True, "advice": None},
        {"name": "gradient_flow", "actual": 1.0, "passed": gradients, "advice": "because"},
    ]


def models_of(out: Path):
    return {"packed": load(out / "packed"), "dequantized": load_original(out / "dequantized")}


def check(model_dir: Path, out: Path, *, with_models: bool = False, gradients: bool | None = True):
    items = check_handoff(
        out / "packed",
        out / "dequantized",
        open_source(model_dir),
        models=models_of(out) if with_models else None,
        windows=np.random.default_rng(0).integers(0, 2048, (2, 24)) if with_models else None,
        gates=gates_for(model_dir, out, gradients=gradients),
    )
    assert all(set(item) == {"name", "passed", "detail"} and item["detail"] for item in items)
    return {item["name"]: item for item in items}


@pytest.fixture(scope="module")
def pressed(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pressed")
    press(tiny_llama_dir, out)
    return out


@pytest.fixture
def copy_of(pressed: Path, tmp_path: Path) -> Path:
    for folder in ("packed", "dequantized"):
        shutil.copytree(pressed / folder, tmp_path / folder)
    return tmp_path


def failing(items) -> set[str]:
    return {name for name, item in items.items() if item["passed"] is False}


@pytest.mark.parametrize("fixture", ["tiny_llama_dir", "tiny_gpt2_dir", "tiny_moe_dir"])
def test_a_sound_result_passes_every_item(fixture, request, tmp_path):
    model_dir = request.getfixturevalue(fixture)
    press(model_dir, tmp_path)
    items = check(model_dir, tmp_path, with_models=True)
    assert {name: item for name, item in items.items() if item["passed"] is not True} == {}
    assert len(items) == 12


def test_without_models_their_items_are_not_checked_never_passed(tiny_llama_dir, pressed):
    items = check(tiny_llama_dir, pressed, gradients=None)
    assert {name for name, item in items.items() if item["passed"] is None} == {STOCK, LOGITS, GRADIENTS}
    assert "because" in items[GRADIENTS]["detail"]
    assert failing(check(tiny_llama_dir, pressed, gradients=False)) == {GRADIENTS}


def edit(path: Path, offset_from_end: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = len(data) - offset_from_end
    data[at : at + len(value)] = value
    path.write_bytes(data)


def test_a_changed_packed_weight_is_seen(tiny_llama_dir, copy_of):
    edit(copy_of / "packed" / "model.safetensors", 2, b"\x01\x20")
    assert failing(check(tiny_llama_dir, copy_of)) >= {FILES}


def test_a_changed_dequantized_weight_is_seen(tiny_llama_dir, copy_of):
    from safetensors.numpy import load_file, save_file

    path = copy_of / "dequantized" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][3, 4] += np.float16(0.5)
    save_file(tensors, path, metadata={"format": "pt"})
    items = check(tiny_llama_dir, copy_of, with_models=True)
    assert failing(items) >= {BITS, LOGITS} and name in items[BITS]["detail"]
    tensors[name][3, 4] = np.float16("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    assert failing(check(tiny_llama_dir, copy_of)) >= {BITS, FINITE}
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    assert failing(check(tiny_llama_dir, copy_of)) >= {COMPLETE, BITS}


def test_a_negative_zero_is_another_bit(tiny_llama_dir, copy_of):
    from safetensors.numpy import load_file, save_file

    path = copy_of / "dequantized" / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("down_proj.weight") and (tensors[n] == 0).any())
    tensors[name] = np.where(tensors[name] == 0, np.float16(-0.0), tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    assert failing(check(tiny_llama_dir, copy_of)) == {BITS}


def test_leftovers_tokenizer_and_config(tiny_llama_dir, copy_of):
    (copy_of / "packed" / "modeling.py").write_text("print()")
    assert failing(check(tiny_llama_dir, copy_of)) == {CLEAN}
    (copy_of / "packed" / "modeling.py").unlink()
    (copy_of / "dequantized" / "tokenizer.json").write_text("{}")
    assert failing(check(tiny_llama_dir, copy_of)) == {TOKENIZER}
    shutil.copy(tiny_llama_dir / "tokenizer.json", copy_of / "dequantized" / "tokenizer.json")
    path = copy_of / "dequantized" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"dtype": "float32"}))
    assert failing(check(tiny_llama_dir, copy_of)) == {CONFIG}


def test_tokenizer_files_of_other_names(tiny_llama_dir, tmp_path):
    model = shutil.copytree(tiny_llama_dir, tmp_path / "model")
    (model / "tokenizer.model.v3").write_bytes(b"sentences")
    (model / "tokenizer.json.bak").write_text("{}")  # nobody's: neither copied nor missed
    (model / "tokenizer.model.py").write_text("print()")  # code never is copied
    press(model, tmp_path)
    for which in ("packed", "dequantized"):
        names = {path.name for path in (tmp_path / which).glob("tokenizer*")}
        assert names == {"tokenizer.json", "tokenizer_config.json", "tokenizer.model.v3"}
    items = check(model, tmp_path)
    assert failing(items) == set() and items[TOKENIZER]["detail"].startswith("3 files;")
    (tmp_path / "dequantized" / "tokenizer.model.v3").unlink()
    assert failing(check(model, tmp_path)) == {TOKENIZER}


def test_a_missing_folder_fails_items_and_raises_nothing(tiny_llama_dir, copy_of):
    shutil.rmtree(copy_of / "packed")
    items = check_handoff(copy_of / "packed", copy_of / "dequantized", open_source(tiny_llama_dir))
    assert failing({item["name"]: item for item in items}) >= {FILES, READER, BITS, CONFIG, TOKENIZER}


def test_a_size_other_than_the_judged_one_fails(tiny_llama_dir, pressed):
    gates = [{"name": "ratio", "actual": 9.0, "passed": True, "advice": None}]
    source = open_source(tiny_llama_dir)
    items = check_handoff(pressed / "packed", pressed / "dequantized", source, gates=gates)
    found = {item["name"]: item for item in items}
    assert found[SIZE]["passed"] is False and "the gate read 9.0" in found[SIZE]["detail"]
    assert found[GRADIENTS]["passed"] is None


@pytest.mark.parametrize("fixture", ["tiny_llama_dir", "tiny_moe_dir"])
def test_every_parameter_of_the_loaded_model_is_compared(fixture, request, tmp_path):
    model_dir = request.getfixturevalue(fixture)
    press(model_dir, tmp_path)
    loaded = load_original(tmp_path / "dequantized")
    source = open_source(model_dir)

    def stock():
        items = check_handoff(
            tmp_path / "packed", tmp_path / "dequantized", source, models={"dequantized": loaded}
        )
        return next(item for item in items if item["name"] == STOCK)

    assert stock()["passed"] is True
    parameters = dict(loaded.named_parameters())
    for name in [n for n in parameters if "layers.0." in n or "layers." not in n]:
        with torch.no_grad():
            value = parameters[name].view(-1)[-1].clone()
            parameters[name].view(-1)[-1] += 1
            assert stock()["passed"] is False, name
            parameters[name].view(-1)[-1] = value
    loaded.register_parameter("foreign", torch.nn.Parameter(torch.ones(2)))
    assert stock()["passed"] is False and "foreign" in stock()["detail"]


def test_configurations_without_an_architecture_fail(tiny_llama_dir, copy_of):
    source = open_source(tiny_llama_dir)
    for folder in ("packed", "dequantized"):
        path = copy_of / folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": []}))
    source.config["architectures"] = []
    items = check_handoff(copy_of / "packed", copy_of / "dequantized", source)
    found = {item["name"]: item for item in items}[CONFIG]
    assert found["passed"] is False and "no architecture" in found["detail"]
