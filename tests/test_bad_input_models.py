"""Model directories that cannot be used: one sentence that names the file or tensor, nothing else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import LLAMA, make_model, make_plan, pack, raw_file, safetensors_bytes, small_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tritpress.errors import InputError
from tritpress.formats.checks import check_finite
from tritpress.formats.output import claim, new_directory
from tritpress.formats.source import open_source, read_tensor
from tritpress.formats.targets import find_targets

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", small_tensors(np.random.default_rng(0)))


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_source(path)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and len(text) < 500


def test_paths(tmp_path: Path, model: Path) -> None:
    refused(tmp_path / "nowhere", r"nowhere does not exist")
    refused(model / "config.json", r"config\.json is a file; give the directory")
    (model / "config.json").unlink()
    refused(model, r"model has no config\.json")


@pytest.mark.parametrize("config", ["{", "[1]", '{"a": 1, "a": 2}', "\xff", '"x"'])
def test_a_config_that_is_none(model: Path, config: str) -> None:
    (model / "config.json").write_bytes(config.encode("latin-1"))
    refused(model, r"config\.json")


def test_no_weights_and_other_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")
    refused(model, r"weights\.safetensors but neither model\.safetensors nor")
    (model / "weights.safetensors").unlink()
    refused(model, "has no weights: expected model.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02")
    refused(model, r"pytorch_model\.bin is a pickle checkpoint")


def test_a_quantized_model(model: Path) -> None:
    (model / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": {"quant_method": "awq"}}))
    refused(model, "quantized already .*awq")


def test_a_packed_model_is_no_source(model: Path, tmp_path: Path) -> None:
    pack(model, tmp_path)
    refused(tmp_path / "packed", "quantized already .*tritpress")


def test_float8_weights(model: Path) -> None:
    header = {"a.weight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    (model / "model.safetensors").write_bytes(raw_file(json.dumps(header).encode(), b"\0\0"))
    refused(model, r"model\.safetensors.*(a\.weight.*)?F8_E4M3")


def _header(**changes) -> bytes:
    return json.dumps({"a": ONE["a"] | changes}).encode()


HOSTILE = {
    "empty": b"",
    "too short": b"\1\0\0",
    "length beyond the file": (2**40).to_bytes(8, "little") + b"{}",
    "length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "not JSON": raw_file(b"{not json", b""),
    "not UTF-8": raw_file(b'{"\xff": 1}', b""),
    "a list": raw_file(b"[]", b""),
    "deep nesting": raw_file(b"[" * 100_000, b""),
    "duplicate names": raw_file(b'{"a":%s,"a":%s}' % ((json.dumps(ONE["a"]).encode(),) * 2), bytes(8)),
    "unknown dtype": raw_file(_header(dtype="Q4_0"), bytes(8)),
    "shape and bytes disagree": raw_file(_header(shape=[3]), bytes(8)),
    "negative shape": raw_file(_header(shape=[-2]), bytes(8)),
    "huge shape": raw_file(_header(shape=[2**62, 2**62]), bytes(8)),
    "shape that wraps to the right size": raw_file(_header(shape=[2**63, 2**2]), bytes(8)),
    "offsets beyond the file": raw_file(_header(shape=[1000], data_offsets=[0, 4000]), bytes(8)),
    "offsets backwards": raw_file(_header(data_offsets=[8, 0]), bytes(8)),
    "negative offsets": raw_file(_header(data_offsets=[-8, 0]), bytes(8)),
    "a gap": raw_file(_header(data_offsets=[4, 12]), bytes(12)),
    "data past the end": raw_file(_header(), bytes(9)),
    "truncated": raw_file(_header(), bytes(7)),
    "missing fields": raw_file(b'{"a": {"dtype": "F32"}}', bytes(8)),
    "fields of another type": raw_file(b'{"a": {"dtype": 1, "shape": "x", "data_offsets": {}}}', bytes(8)),
    "overlap": raw_file(
        json.dumps({"a": ONE["a"], "b": ONE["a"] | {"data_offsets": [4, 12]}}).encode(), bytes(12)
    ),
    "metadata that is no text": raw_file(json.dumps({"__metadata__": {"a": 1}} | ONE).encode(), bytes(8)),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(model: Path, case: str) -> None:
    (model / "model.safetensors").write_bytes(HOSTILE[case])
    refused(model, r"model\.safetensors")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data, tmp_path_factory) -> None:
    good = safetensors_bytes(small_tensors(np.random.default_rng(0)))
    end = 8 + int.from_bytes(good[:8], "little")
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, len(raw) - 1, end, end - 1, 9]))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").write_bytes(bytes(raw[:cut]))
    try:
        source = open_source(folder)
        for entry in source.tensors.values():
            assert read_tensor(entry).size == entry.size
        find_targets(source)
    except InputError as error:
        assert "\n" not in str(error)


# ------------------------------------------------------------------------------------------------ shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards and their index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    tensors = small_tensors(np.random.default_rng(0))
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        (folder / file).write_bytes(safetensors_bytes({name: tensors[name] for name in part}))
        weight_map |= dict.fromkeys(part, file)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _reindex(folder: Path, **changes) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def test_shards_open(sharded: Path) -> None:
    assert len(open_source(sharded).weight_files) == 2


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, r"model-00002-of-00002\.safetensors is missing")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "x.bin",
        "",
        "..",
        7,
    ],
)
def test_an_index_that_leaves_the_directory(sharded: Path, tmp_path: Path, name) -> None:
    (tmp_path / "secret.safetensors").write_bytes(safetensors_bytes({"x": ("F32", np.ones(1))}))
    _reindex(sharded, x=name)
    refused(sharded, "not a plain file name|not a .safetensors file")


def test_a_shard_that_is_a_link_out(sharded: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    os.rename(sharded / "model-00001-of-00002.safetensors", outside)
    (sharded / "model-00001-of-00002.safetensors").symlink_to(outside)
    refused(sharded, "link that leads out of the model directory")


def test_an_index_that_says_something_else(sharded: Path) -> None:
    _reindex(sharded, **{"model.norm.weight": "model-00001-of-00002.safetensors",
                         "lm_head.weight": "model-00002-of-00002.safetensors"})  # fmt: skip
    refused(sharded, "is not listed under this file")


def test_an_index_with_a_tensor_that_is_nowhere(sharded: Path) -> None:
    _reindex(sharded, ghost="model-00001-of-00002.safetensors")
    refused(sharded, "the index says that tensor ghost is in")


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, second = (sharded / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    second.write_bytes(first.read_bytes())
    refused(sharded, "is in both|is not listed")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "nothing"])
def test_an_index_without_a_map(sharded: Path, index: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    refused(sharded, r"index\.json")


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_values_that_cannot_be_written_name_the_tensor(tmp_path: Path, name: str, value: float) -> None:
    tensors = small_tensors(np.random.default_rng(0))
    tensors[name][1].flat[3] = value
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        pack(make_model(tmp_path / "m", tensors), tmp_path)
    assert not (tmp_path / "packed").exists()


def test_a_file_that_shrinks_while_it_is_read(model: Path) -> None:
    source = open_source(model)
    entry = max(source.tensors.values(), key=lambda e: e.offset)
    os.truncate(model / "model.safetensors", entry.offset + 4)
    with pytest.raises(InputError, match=r"ends inside tensor .*truncated"):
        read_tensor(entry)
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot read"):
        read_tensor(entry)


def test_a_plan_of_another_model(model: Path, tmp_path: Path) -> None:
    from tritpress.formats.packed import packed_size

    other = make_model(tmp_path / "other", small_tensors(np.random.default_rng(0), inner=12))
    with pytest.raises(InputError, match=r"the plan has tensor .*down_proj"):
        packed_size(open_source(model), make_plan(find_targets(open_source(other))))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_are_checked_before_anything_is_written(tmp_path: Path, value: float) -> None:
    tensors = small_tensors(np.random.default_rng(0))
    source = open_source(make_model(tmp_path / "good", tensors))
    check_finite(source, source.tensors)
    tensors["model.norm.weight"][1][3] = value
    bad = open_source(make_model(tmp_path / "bad", tensors))
    check_finite(bad, [name for name in bad.tensors if name != "model.norm.weight"])
    with pytest.raises(InputError, match=r"model\.safetensors: tensor model\.norm\.weight holds") as caught:
        check_finite(bad, bad.tensors)
    assert ("1e+06" if value == 1e6 else "NaN or infinity") in str(caught.value)


def test_folders_made_for_an_output_that_failed_go_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RuntimeError), new_directory(tmp_path / "there" / "a" / "b" / "out") as folder:
        (folder / "file").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "there").iterdir()) == []
    with pytest.raises(RuntimeError), new_directory(tmp_path / "c" / "d" / "out"):
        (tmp_path / "c" / "mine").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "c").iterdir()) == [tmp_path / "c" / "mine"]


def test_what_was_there_before_a_kill_comes_back(tmp_path: Path) -> None:
    """Killed after the old directory was taken away and before the new one stood in its place."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for kind in ("old", "writing"):
        (tmp_path / f".out.{kind}-{ended.pid}").mkdir()
        (tmp_path / f".out.{kind}-{ended.pid}" / "file").write_text(kind)
    with pytest.raises(InputError, match="is not empty"), new_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("system", ["usual", "no call", "not on this file system"])
def test_a_file_is_made_as_long_as_asked(tmp_path: Path, monkeypatch, system: str) -> None:
    def refuses(*_) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if system == "no call":
        monkeypatch.delattr(os, "posix_fallocate")
    elif system != "usual":
        monkeypatch.setattr(os, "posix_fallocate", refuses)
    with open(tmp_path / "f", "wb") as file:
        claim(file.fileno(), 10_000)
        claim(file.fileno(), 5_000)  # what is there stays
    assert (tmp_path / "f").stat().st_size == 10_000
    monkeypatch.setattr(
        os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")), False
    )
    with open(tmp_path / "f", "r+b") as file, pytest.raises(OSError, match="full"):
        claim(file.fileno(), 20_000)


def test_an_output_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    rename = os.rename

    def fails(source: Path, target: Path) -> None:
        if "writing" in source.name:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(InputError), new_directory(tmp_path / "out", overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


# ------------------------------------------------------------------------------------------------ models


def impossible(folder: Path, tensors, message: str, **config) -> None:
    source = open_source(make_model(folder, tensors, LLAMA | config))
    with pytest.raises(InputError, match=message) as caught:
        find_targets(source)
    assert "\n" not in str(caught.value)


def blocks(number: int = 3) -> dict[str, tuple[str, np.ndarray]]:
    rng, tensors = np.random.default_rng(0), {}
    for layer in range(number):
        made = small_tensors(rng)
        tensors |= {name.replace("layers.0.", f"layers.{layer}."): value for name, value in made.items()}
    return tensors


@pytest.mark.parametrize("config", [{}, {"model_type": ""}, {"model_type": 7}, {"architectures": ["X"]}])
def test_a_config_without_a_model_type(model: Path, config: dict) -> None:
    (model / "config.json").write_text(json.dumps(config))
    refused(model, r"config\.json names no model_type")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight",
        "model.norm.weight", "model.layers.0.input_layernorm.weight",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("dtype", "numpy"), [("I16", "<i2"), ("I8", "i1"), ("BOOL", "?")])
def test_weights_stored_as_integers(tmp_path: Path, name: str, dtype: str, numpy: str) -> None:
    tensors = small_tensors(np.random.default_rng(0))
    tensors[name] = (dtype, np.ones(tensors[name][1].shape, numpy))
    message = rf"model\.safetensors: tensor {name} has dtype {dtype}; a weight must be F32, F16 or BF16"
    impossible(tmp_path / "m", tensors, message)


def test_an_embedding_that_disagrees_with_the_configuration(tmp_path: Path) -> None:
    tensors = small_tensors(np.random.default_rng(0))
    impossible(tmp_path / "a", tensors, r"embed_tokens.* 16 rows, but vocab_size in .* is 20", vocab_size=20)
    impossible(tmp_path / "b", tensors, r"embed_tokens.* 8 columns, but hidden_size in", hidden_size=16)
    text = {"vocab_size": 17, "hidden_size": 8}
    impossible(tmp_path / "c", tensors, "vocab_size in .* is 17", text_config=text)
    opt = {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 8, "vocab_size": 16}
    assert find_targets(open_source(make_model(tmp_path / "d", tensors, opt)))  # projected by design


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("shape", [(8, 12), (6, 8)])
def test_a_weight_of_a_foreign_shape(tmp_path: Path, number: int, shape: tuple[int, int]) -> None:
    name = f"model.layers.{number - 1}.self_attn.q_proj.weight"
    tensors = blocks(number) | {name: ("F32", np.ones(shape, np.float32))}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    impossible(tmp_path / "m", tensors, rf"tensor {name} is \[{shape[0]}, {shape[1]}\], but", **heads)
    if number > 1 or shape[1] != 8:  # seen without the configuration's help, too
        impossible(tmp_path / "n", tensors, rf"tensor {name}", model_type="olmo")


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("role", ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"])
def test_a_block_that_lacks_a_weight(tmp_path: Path, number: int, role: str) -> None:
    tensors = blocks(number)
    del tensors[f"model.layers.1.{role}.weight"]
    message = rf"block 1 has no {role}\.weight .* \(such as model\.layers\.0\.{role}"
    impossible(tmp_path / "m", tensors, message)


def test_models_whose_blocks_differ_by_design(tmp_path: Path) -> None:
    def found(folder: str, tensors, **config) -> int:
        made = make_model(tmp_path / folder, tensors, LLAMA | {"model_type": "other"} | config)
        return len(find_targets(open_source(made)))

    attention = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkvo"]
    assert found("no-attention", {k: v for k, v in blocks().items() if k not in attention}) == 17
    assert found("shared", {k: v for k, v in blocks().items() if k not in attention[1:3]}) == 19
    narrow = {f"model.layers.1.mlp.{part}_proj.weight": ("F32", np.ones((6, 8))) for part in ("gate", "up")}
    narrow["model.layers.1.mlp.down_proj.weight"] = ("F32", np.ones((8, 6)))
    assert found("narrow", blocks() | narrow) == 21
    types = ["sliding", "full", "sliding"]
    keys = {k: v for k, v in blocks().items() if k != attention[2]}
    assert found("values-are-keys", keys, layer_types=types) == 20
