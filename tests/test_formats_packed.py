"""The packed format: exact bytes, exact sizes, the same weights for every reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import LLAMA, make_model, make_plan, pack, press, small_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from packed_decoder import decode, read_folder
from tritpress.errors import InputError
from tritpress.formats.dense import decode_rows, quantize_rows, to_half
from tritpress.formats.dequantized import write_dequantized
from tritpress.formats.packed import dense_as_packed, open_packed, packed_size, write_packed
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.targets import find_targets
from tritpress.inspect import inspect_path

KINDS = ["tiny_llama_dir", "tiny_qwen3_dir", "tiny_gpt2_dir", "tiny_sharded_dir", "tiny_moe_dir"]


@pytest.fixture(params=KINDS)
def model_dir(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("embeddings", ["int8", "fp16"])
def test_an_independent_reader_gets_the_dequantized_bytes(
    model_dir: Path, tmp_path: Path, embeddings: str
) -> None:
    source, plan, _ = pack(model_dir, tmp_path, embeddings=embeddings)
    write_dequantized(tmp_path / "packed", source, tmp_path / "dequantized")
    decoded, dequantized = decode(tmp_path / "packed"), read_folder(tmp_path / "dequantized")
    assert set(decoded) == set(dequantized) == set(source.tensors)
    for name, weight in dequantized.items():
        assert weight.dtype == np.float16 and weight.shape == source.tensors[name].shape
        np.testing.assert_array_equal(decoded[name], weight, err_msg=name)
    for name, value in dense_as_packed(source, plan):
        np.testing.assert_array_equal(value, dequantized[name], err_msg=name)


def test_the_size_is_known_before(model_dir: Path, tmp_path: Path) -> None:
    source, plan, _ = pack(model_dir, tmp_path)
    written = sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.safetensors"))
    assert packed_size(source, plan) == written == open_packed(tmp_path / "packed").bytes_on_disk


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_size_is_known_before_for_any_plan(data, tmp_path_factory, tiny_llama_dir: Path) -> None:
    source = open_source(tiny_llama_dir)
    plan = make_plan(find_targets(source), embeddings=data.draw(st.sampled_from(["int8", "fp16"])))
    for planned in plan.tensors.values():
        planned.planes = data.draw(st.integers(1, 3))
        planned.group_size = data.draw(st.sampled_from([0, 32, 64, 128, 256]))
    folder = tmp_path_factory.mktemp("plan")
    write_packed(source, plan, press(source, plan, folder / "store"), folder / "packed", seed=0, versions={})
    assert packed_size(source, plan) == (folder / "packed" / "model.safetensors").stat().st_size


def test_equal_runs_give_equal_bytes_wherever_they_run(tiny_sharded_dir: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "elsewhere" / "a model"
    shutil.copytree(tiny_sharded_dir, moved)
    pack(tiny_sharded_dir, tmp_path / "one")
    pack(moved, tmp_path / "two" / "deeper")
    first, second = tmp_path / "one" / "packed", tmp_path / "two" / "deeper" / "packed"
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir()) and "tritpress.json" in names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        assert str(tmp_path).encode() not in (first / name).read_bytes()


def test_config_and_description(tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    import hashlib

    pack(tiny_gpt2_dir, tmp_path, planes=2)
    packed = tmp_path / "packed"
    config = json.loads((packed / "config.json").read_text())
    told = config["quantization_config"]
    assert (told["quant_method"], told["version"], told["group_size"]) == ("tritpress", 1, 64)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert told["tensors"][name] == {"shape": [256, 64], "planes": 2, "group_size": 64}
    assert sorted(told["tensors"]) == told["transposed"] and told["tied"] == ["transformer.wte.weight"]
    assert config["dtype"] == "float16" and config["n_embd"] == 64
    described = json.loads((packed / "tritpress.json").read_text())
    raw = (packed / "model.safetensors").read_bytes()
    assert described["weights"] == {
        "model.safetensors": {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    }
    original = hashlib.sha256((tiny_gpt2_dir / "model.safetensors").read_bytes()).hexdigest()
    assert described["source"]["model.safetensors"]["sha256"] == original
    assert described["plan"]["embeddings"] == "int8" and described["seed"] == 0
    assert (packed / "tokenizer.json").read_bytes() == (tiny_gpt2_dir / "tokenizer.json").read_bytes()


def test_a_sharded_source_gives_shards_and_an_index(tiny_sharded_dir: Path, tmp_path: Path) -> None:
    source, _, _ = pack(tiny_sharded_dir, tmp_path)
    index = json.loads((tmp_path / "packed" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "packed").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files and len(files) == len(source.weight_files)


def test_a_large_file_is_divided(tiny_llama_dir: Path, tmp_path: Path, monkeypatch) -> None:
    import tritpress.formats.layout as layout

    monkeypatch.setattr(layout, "SHARD_BYTES", 100_000)
    source, plan, _ = pack(tiny_llama_dir, tmp_path)
    files = sorted((tmp_path / "packed").glob("*.safetensors"))
    assert len(files) > 2 and sum(path.stat().st_size for path in files) == packed_size(source, plan)
    write_dequantized(tmp_path / "packed", source, tmp_path / "dequantized")
    decoded = decode(tmp_path / "packed")
    for name, weight in read_folder(tmp_path / "dequantized").items():
        np.testing.assert_array_equal(decoded[name], weight)


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_experts_keep_their_leading_dimension(tmp_path: Path, transposed: bool) -> None:
    rng = np.random.default_rng(1)
    shape = (3, 8, 22) if transposed else (3, 22, 8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = small_tensors(rng) | {name: ("F32", rng.standard_normal(shape).astype(np.float32))}
    source, plan, store = pack(make_model(tmp_path / "m", tensors), tmp_path)
    planes = plan.tensors[name].planes
    codes, scales, info = open_packed(tmp_path / "packed").ternary(name)
    assert (
        codes.shape == (planes, 3, 22, 2) and scales.shape[:3] == (planes, 3, 22) and info.shape == (3, 22, 8)
    )
    np.testing.assert_array_equal(codes, store.get(name)[0])
    write_dequantized(tmp_path / "packed", source, tmp_path / "dequantized")
    weight = read_folder(tmp_path / "dequantized")[name]
    assert weight.shape == shape
    np.testing.assert_array_equal(weight, decode(tmp_path / "packed")[name])


def test_integers_stay_as_they_are(tmp_path: Path) -> None:
    table = np.arange(12, dtype=np.int64)
    tensors = small_tensors(np.random.default_rng(0)) | {"model.position_ids": ("I64", table)}
    source, _, _ = pack(make_model(tmp_path / "m", tensors), tmp_path)
    write_dequantized(tmp_path / "packed", source, tmp_path / "dequantized")
    for folder in ("packed", "dequantized"):
        np.testing.assert_array_equal(read_folder(tmp_path / folder)["model.position_ids"], table)


def test_inspect_counts_what_is_there(model_dir: Path, tmp_path: Path) -> None:
    _, plan, _ = pack(model_dir, tmp_path)
    found = inspect_path(tmp_path / "packed")
    stored = read_folder(tmp_path / "packed")
    zeros = codes_in_all = 0
    for tensor in found["tensors"]:
        if tensor["storage"] != "ternary":
            continue
        codes, cols = stored[f"{tensor['name']}.codes"], tensor["shape"][-1]
        trits = np.stack([(codes >> (2 * s)) & 3 for s in range(4)], axis=-1).reshape(*codes.shape[:-1], -1)[
            ..., :cols
        ]
        assert tensor["sparsity"] == pytest.approx((trits == 1).mean())
        assert tensor["zeros_all_planes"] == pytest.approx((trits == 1).all(axis=0).mean())
        assert tensor["bits"] == pytest.approx(plan.tensors[tensor["name"]].bits)
        zeros += int((trits == 1).sum())
        codes_in_all += trits.size
    assert found["sparsity"] == pytest.approx(zeros / codes_in_all)
    assert sum(t["bytes"] for t in found["tensors"]) < found["bytes"] and found["checksums"] == "verified"
    assert found["ratio_file"] == pytest.approx(open_source(model_dir).bytes_fp32 / found["bytes"])
    plain = inspect_path(model_dir)
    assert plain["kind"] == "plain" and plain["parameters"] == found["parameters"]


# ------------------------------------------------------------------------------------------------ int8, fp16


@settings(max_examples=60, deadline=None)
@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-60_000, 60_000, width=32),
    )
)
def test_int8_rows_follow_the_rule(rows: np.ndarray) -> None:
    q8, scales = quantize_rows(rows, "w")
    for row, q, scale in zip(rows, q8, scales, strict=True):
        expected = np.float16(np.abs(row).max() / np.float32(127))
        assert scale == expected and q.dtype == np.int8
        if expected == 0:
            assert not q.any()
            continue
        # half to even, in float32, as numpy's rint does
        np.testing.assert_array_equal(
            q, np.clip(np.rint(row / np.float32(expected)), -127, 127).astype(np.int8)
        )
    decoded = decode_rows(q8, scales, "w")
    np.testing.assert_array_equal(
        decoded, (q8.astype(np.float32) * scales.astype(np.float32)[:, None]).astype("f2")
    )


@pytest.mark.parametrize("value", [70_000.0, -1e9, float("inf"), float("nan")])
def test_what_float16_cannot_hold_is_named(value: float) -> None:
    rows = np.array([[1.0, value]], dtype=np.float32)
    for store in (to_half, quantize_rows):
        with pytest.raises(InputError, match=r"model\.embed"):
            store(rows, "model.embed")


def test_int8_rows_that_decode_beyond_float16_are_named() -> None:
    with pytest.raises(InputError, match="row"):  # 65504 / 127 rounds up to 516, and 127 * 516 is too large
        quantize_rows(np.array([[65504.0]], dtype=np.float32), "row")


# ------------------------------------------------------------------------------------------------ writing


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    tensors = small_tensors(np.random.default_rng(0))
    tensors["model.norm.weight"] = ("F32", np.full(8, 1e6, np.float32))
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        pack(make_model(tmp_path / "m", tensors), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["store"]


def test_a_stopped_run_leaves_nothing_half_written(tiny_llama_dir: Path, tmp_path: Path) -> None:
    from tritpress.errors import StopRequested
    from tritpress.events.context import NullContext

    class Stopping(NullContext):
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls == 5:
                raise StopRequested("stop")

    source = open_source(tiny_llama_dir)
    plan = make_plan(find_targets(source))
    store = press(source, plan, tmp_path / "store")
    with pytest.raises(StopRequested):
        write_packed(source, plan, store, tmp_path / "out" / "packed", seed=0, versions={}, ctx=Stopping())
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_sentence(tiny_llama_dir: Path, tmp_path: Path, monkeypatch) -> None:
    import shutil
    from collections import namedtuple

    import tritpress.formats.writing as writing

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(InputError, match=r"packed: the disk is full; free some space"):
        pack(tiny_llama_dir, tmp_path)
    monkeypatch.undo()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    source = open_source(tiny_llama_dir)
    plan = make_plan(find_targets(source))
    store = press(source, plan, tmp_path / "store")
    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*packed: the disk is full"):
        write_packed(source, plan, store, tmp_path / "packed", seed=0, versions={})
    assert not (tmp_path / "packed").exists() and not list(tmp_path.glob(".packed*"))


def test_an_output_that_is_not_empty_is_kept(tiny_llama_dir: Path, tmp_path: Path) -> None:
    source, plan, store = pack(tiny_llama_dir, tmp_path)
    (tmp_path / "packed" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        write_packed(source, plan, store, tmp_path / "packed", seed=0, versions={})
    assert (tmp_path / "packed" / "mine.txt").exists()
    write_packed(source, plan, store, tmp_path / "packed", seed=0, versions={}, overwrite=True)
    assert not (tmp_path / "packed" / "mine.txt").exists() and not list(tmp_path.glob(".packed*"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a directory"):
        write_packed(source, plan, store, tmp_path / "file", seed=0, versions={}, overwrite=True)


def test_what_a_killed_process_left_is_removed(tiny_llama_dir: Path, tmp_path: Path) -> None:
    left = tmp_path / ".packed.writing-999999999"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    pack(tiny_llama_dir, tmp_path)
    assert not left.exists()


def test_a_plan_that_does_not_fit_is_refused(
    tiny_llama_dir: Path, tiny_qwen3_dir: Path, tmp_path: Path
) -> None:
    source = open_source(tiny_llama_dir)
    with pytest.raises(InputError, match="the plan has tensor"):
        packed_size(source, make_plan(find_targets(open_source(tiny_qwen3_dir))))
    plan = make_plan(find_targets(source))
    store = press(source, plan, tmp_path / "store")
    plan.tensors["model.layers.0.mlp.up_proj.weight"].planes = (
        1 + plan.tensors["model.layers.0.mlp.up_proj.weight"].planes % 3
    )
    with pytest.raises(InputError, match=r"up_proj"):
        write_packed(source, plan, store, tmp_path / "packed", seed=0, versions={})


def test_code_and_foreign_links_are_not_copied(tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "m", small_tensors(np.random.default_rng(0)), LLAMA | {"auto_map": {"AutoModel": "evil.M"}}
    )
    (model / "evil.py").write_text("raise SystemExit")
    (model / "generation_config.json").write_text("{}")
    source, _, _ = pack(model, tmp_path)
    write_dequantized(tmp_path / "packed", source, tmp_path / "dequantized")
    for folder in (tmp_path / "packed", tmp_path / "dequantized"):
        assert not list(folder.glob("*.py")) and (folder / "generation_config.json").is_file()
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (model / "vocab.json").symlink_to(secret)
    with pytest.raises(InputError, match=r"vocab\.json is a link that leads out"):
        pack(model, tmp_path / "again")


def test_dequantized_belongs_to_its_source(
    tiny_llama_dir: Path, tiny_qwen3_dir: Path, tmp_path: Path
) -> None:
    pack(tiny_llama_dir, tmp_path)
    with pytest.raises(InputError, match="was not made from"):
        write_dequantized(tmp_path / "packed", open_source(tiny_qwen3_dir), tmp_path / "dequantized")
    assert not (tmp_path / "dequantized").exists()


def test_the_source_may_be_read_in_any_dtype(tmp_path: Path) -> None:
    from formats_helpers import bf16

    tensors = {
        name: ("BF16", bf16(values)) for name, (_, values) in small_tensors(np.random.default_rng(0)).items()
    }
    source, _, _ = pack(make_model(tmp_path / "m", tensors), tmp_path)
    assert source.source_dtype == "bfloat16"
    norm = source.tensors["model.norm.weight"]
    np.testing.assert_array_equal(
        decode(tmp_path / "packed")["model.norm.weight"], read_tensor(norm).astype(np.float16)
    )
