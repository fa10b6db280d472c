"""Packed directories that no writer made: everything the format forbids is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import make_model, pack, safetensors_bytes, small_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_decoder import read_safetensors
from tritpress.errors import InputError
from tritpress.formats.packed import open_packed
from tritpress.inspect import inspect_path

DOWN = "model.layers.0.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"
METADATA = {"format": "pt", "tritpress": "1"}
_TYPES = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32", "int64": "I64"}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A small packed model; `down_proj` has 10 inputs, so two codes of padding a row."""
    folder = tmp_path_factory.mktemp("good")
    pack(make_model(folder / "m", small_tensors(np.random.default_rng(0))), folder)
    return folder / "packed"


@pytest.fixture
def packed(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "packed")
    return tmp_path / "packed"


def _change(folder: Path, change, metadata: dict[str, str] = METADATA) -> None:
    """Apply `change` to the arrays of the weight file and write it anew."""
    file = folder / "model.safetensors"
    tensors = {name: value.copy() for name, value in read_safetensors(file).items()}
    change(tensors)
    typed = {name: (_TYPES[str(value.dtype)], value) for name, value in tensors.items()}
    file.write_bytes(safetensors_bytes(typed, metadata))


def _configure(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def refused(folder: Path, message: str) -> None:
    for reader in (open_packed, inspect_path):
        with pytest.raises(InputError, match=message) as caught:
            reader(folder)
        assert "\n" not in str(caught.value)


def test_the_good_one_opens(packed: Path) -> None:
    assert set(open_packed(packed).verify_checksums()) == {"model.safetensors"}
    assert inspect_path(packed)["checksums"] == "verified"


def _set(name: str, index, value):
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name][index] = value

    return change


def _replace(name: str, make):
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = make(tensors[name])

    return change


BAD_VALUES = {
    "code 3": (_set(f"{DOWN}.codes", (0, 1, 0), 0b01_01_01_11), "value 3"),
    "padding": (_set(f"{DOWN}.codes", (0, 0, 2), 0b10_01_01_01), "padded with something other than 1"),
    "negative scale": (_set(f"{DOWN}.scales", (0, 0, 0), -1.0), "negative"),
    "NaN scale": (_set(f"{DOWN}.scales", (0, 0, 0), np.nan), "NaN or infinity"),
    "infinite scale": (_set(f"{DOWN}.scales", (0, 0, 0), np.inf), "NaN or infinity"),
    "NaN row scale": (_set(f"{EMBED}.q8_scale", 3, np.nan), "NaN or infinity"),
    "negative row scale": (_set(f"{EMBED}.q8_scale", 3, -2.0), "negative"),
    "NaN weight": (_set("model.norm.weight", 3, np.nan), "NaN or infinity"),
    "code dtype": (_replace(f"{DOWN}.codes", lambda a: a.astype(np.int8)), "is I8 .* where U8"),
    "scale dtype": (_replace(f"{DOWN}.scales", lambda a: a.astype(np.float32)), "is F32 .* where F16"),
    "too few columns": (_replace(f"{DOWN}.codes", lambda a: a[..., :-1]), r"where U8 \[\d, 8, 3\] is due"),
    "too many planes": (_replace(f"{DOWN}.codes", lambda a: np.concatenate([a, a])), "is due"),
    "scale shape": (_replace(f"{DOWN}.scales", lambda a: a[:, :-1]), "is due"),
    "row scales": (_replace(f"{EMBED}.q8_scale", lambda a: a[:-1]), r"q8_scale.*is due"),
    "row dtype": (_replace(f"{EMBED}.q8", lambda a: a.astype(np.uint8)), "is U8 .* where I8"),
    "rows of three dimensions": (_replace(f"{EMBED}.q8", lambda a: a[None]), "two dimensions"),
    "float32 weight": (_replace("model.norm.weight", lambda a: a.astype(np.float32)), "must be F16"),
    "missing codes": (lambda t: t.pop(f"{DOWN}.codes"), r"down_proj\.weight\.codes is missing"),
    "missing scales": (lambda t: t.pop(f"{DOWN}.scales"), r"down_proj\.weight\.scales is missing"),
    "missing row scales": (lambda t: t.pop(f"{EMBED}.q8_scale"), r"q8_scale is missing"),
    "missing rows": (lambda t: t.pop(f"{EMBED}.q8"), "q8 is missing"),
    "stored twice": (lambda t: t.update({DOWN: np.ones((8, 10), np.float16)}), "stored twice"),
    "unlisted codes": (lambda t: t.update({"x.codes": np.ones((1, 1, 1), np.uint8)}), "belongs to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(packed: Path, case: str) -> None:
    change, message = BAD_VALUES[case]
    _change(packed, change)
    refused(packed, message)


@pytest.mark.parametrize("case", ["code 3", "negative scale", "NaN row scale", "NaN weight"])
def test_reading_one_tensor_checks_it_too(packed: Path, case: str) -> None:
    change, message = BAD_VALUES[case]
    _change(packed, change)
    model = open_packed(packed, values=False)
    with pytest.raises(InputError, match=message):
        for name in model.names():
            model.ternary(name) if name in model.tensors else model.dense(name)


BAD_CONFIG = {
    "version 2": (lambda q: q.update(version=2), "version 2.* reads version 1"),
    "version true": (lambda q: q.update(version=True), "version True"),
    "no version": (lambda q: q.pop("version"), "version None"),
    "another format": (lambda q: q.update(format="1.6bit"), "format '1.6bit'"),
    "no tensors": (lambda q: q.pop("tensors"), "must list the packed tensors"),
    "an unknown tensor": (lambda q: q["tensors"].update(x=q["tensors"][DOWN]), r"x\.codes is missing"),
    "negative planes": (lambda q: q["tensors"][DOWN].update(planes=-1), "planes and group_size"),
    "planes as text": (lambda q: q["tensors"][DOWN].update(planes="1"), "planes and group_size"),
    "other planes": (lambda q: q["tensors"][DOWN].update(planes=7), "is due"),
    "other group size": (lambda q: q["tensors"][DOWN].update(group_size=7), "group_size 7"),
    "shape": (lambda q: q["tensors"][DOWN].update(shape=[8, 13]), "down_proj.* is due"),
    "rows": (lambda q: q["tensors"][DOWN].update(shape=[9, 10]), "down_proj.* is due"),
    "no shape": (lambda q: q["tensors"][DOWN].pop("shape"), "shape of model"),
    "huge shape": (lambda q: q["tensors"][DOWN].update(shape=[2**60, 2**60]), "shape of model"),
    "transposed unknown": (lambda q: q.update(transposed=["x"]), "lists x as transposed"),
    "transposed no list": (lambda q: q.update(transposed="x"), "transposed must be a list"),
    "tied unknown": (lambda q: q.update(tied=["x"]), "lists x as tied"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_bad_configuration(packed: Path, case: str) -> None:
    change, message = BAD_CONFIG[case]
    _configure(packed, change)
    refused(packed, message)


def test_unknown_keys_are_passed_over(packed: Path) -> None:
    _configure(packed, lambda q: q.update(new={"a": 1}) or q["tensors"][DOWN].update(note="x"))
    open_packed(packed)


@pytest.mark.parametrize(
    "metadata", [{}, {"format": "pt"}, {"format": "pt", "tritpress": "2"}, {"format": "np", "tritpress": "1"}]
)
def test_unknown_metadata(packed: Path, metadata: dict[str, str]) -> None:
    _change(packed, lambda tensors: None, metadata)
    refused(packed, "metadata")


def test_data_past_the_end_and_truncation(packed: Path) -> None:
    file = packed / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw + b"\0")
    refused(packed, r"model\.safetensors")
    file.write_bytes(raw[:-1])
    refused(packed, r"model\.safetensors")


def test_links_out_of_the_directory(packed: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        os.rename(packed / name, tmp_path / name)
        (packed / name).symlink_to(tmp_path / name)
        with pytest.raises(InputError, match="leads out of the model directory"):
            open_packed(packed)
        (packed / name).unlink()
        os.rename(tmp_path / name, packed / name)


def test_a_changed_byte_is_found_by_its_checksum(packed: Path) -> None:
    _change(packed, _set(f"{EMBED}.q8", (0, 0), 5))
    open_packed(packed)  # a good file, but not the one that was written
    with pytest.raises(
        InputError,
        match=r"model\.safetensors (is not the file that was written|has \d+ "
        r"bytes)",
    ):
        inspect_path(packed)


def test_a_flipped_bit_is_found_by_its_checksum(packed: Path) -> None:
    file = packed / "model.safetensors"
    raw = bytearray(file.read_bytes())
    name = f"{EMBED}.q8"
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    raw[8 + int.from_bytes(raw[:8], "little") + header[name]["data_offsets"][0]] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InputError, match=r"its sha256 is not that of tritpress\.json"):
        inspect_path(packed)


def test_the_description_must_fit(packed: Path) -> None:
    path = packed / "tritpress.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"version": 2}))
    with pytest.raises(InputError, match="version 2"):
        inspect_path(packed)
    path.write_text(json.dumps(described | {"weights": {}}))
    with pytest.raises(InputError, match="does not list the weight files"):
        inspect_path(packed)


def test_without_a_description_there_is_nothing_to_verify(packed: Path) -> None:
    whole = inspect_path(packed)
    assert whole["verified"] is True and whole["note"] is None
    (packed / "tritpress.json").unlink()
    found = inspect_path(packed)
    assert found["verified"] is found["checksums"] is None and "no checksums to verify" in found["note"]
    assert found["tensors"] == whole["tensors"] and found["bytes"] == whole["bytes"]
    with pytest.raises(InputError, match=r"tritpress\.json is missing"):
        open_packed(packed).verify_checksums()


@pytest.mark.parametrize("told", [{"quant_method": "awq"}, {"bits": 4}, "x"])
def test_a_model_of_another_method_is_named(packed: Path, told) -> None:
    path = packed / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))
    method = "quant_method 'awq'" if "quant_method" in told else "without saying by which quant_method"
    with pytest.raises(InputError, match=rf"config\.json describes a model quantized .*{method}"):
        inspect_path(packed)


def test_what_is_no_packed_model(packed: Path, tmp_path: Path) -> None:
    plain = make_model(tmp_path / "plain", small_tensors(np.random.default_rng(0)))
    with pytest.raises(InputError, match="not that of a packed model"):
        open_packed(plain)
    with pytest.raises(InputError, match="not the directory"):
        open_packed(tmp_path / "nowhere")
    (packed / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        open_packed(packed)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data, good: Path, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    raw = bytearray((good / "model.safetensors").read_bytes())
    config = bytearray((good / "config.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged = data.draw(st.sampled_from([raw, config]))
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(raw)
    (folder / "config.json").write_bytes(config)
    try:
        model = open_packed(folder)
        for name in model.names():
            model.ternary(name) if name in model.tensors else model.dense(name)
    except InputError as error:
        assert "\n" not in str(error)
