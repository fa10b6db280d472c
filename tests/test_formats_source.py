"""Reading model directories: values, names, sizes, what is pressed and what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import LLAMA, bf16, make_model, safetensors_bytes, small_tensors
from tritpress.errors import InputError
from tritpress.formats.source import TIED_BY_DEFAULT, open_source, read_rows, read_tensor
from tritpress.formats.store import TensorStore
from tritpress.formats.targets import find_embeddings, find_targets


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_values_come_as_float32(tmp_path: Path, rng: np.random.Generator, dtype: str) -> None:
    values = rng.standard_normal((5, 7)).astype(np.float32)
    stored = (
        bf16(values) if dtype == "BF16" else values.astype({"F64": "f8", "F32": "f4", "F16": "f2"}[dtype])
    )
    expected = (
        (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else stored.astype(np.float32)
    )
    tensors = small_tensors(rng) | {"model.layers.0.mlp.extra_proj.weight": (dtype, stored)}
    entry = open_source(make_model(tmp_path / "m", tensors)).tensors["model.layers.0.mlp.extra_proj.weight"]
    np.testing.assert_array_equal(read_tensor(entry), expected)
    np.testing.assert_array_equal(read_rows(entry, 2, 4), expected[2:4])
    assert read_rows(entry, 5, 5).shape == (0, 7) and read_tensor(entry).dtype == np.float32


def test_bfloat16_equals_torchs(tiny_llama_dir: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(tiny_llama_dir / "model.safetensors")
    source = open_source(tiny_llama_dir)
    assert source.source_dtype == "bfloat16" and set(stored) == set(source.tensors)
    for name, entry in source.tensors.items():
        np.testing.assert_array_equal(read_tensor(entry), stored[name].float().numpy())


def test_sizes_and_class(tiny_llama_dir: Path, tiny_sharded_dir: Path) -> None:
    from safetensors.torch import load_file

    source = open_source(tiny_llama_dir)
    stored = load_file(tiny_llama_dir / "model.safetensors")
    assert source.parameters == sum(tensor.numel() for tensor in stored.values())
    assert source.bytes_fp32 == 4 * source.parameters
    assert source.bytes_on_disk == os.path.getsize(tiny_llama_dir / "model.safetensors")
    assert (source.size_class, source.class_ratio) == ("tiny", 6.0)
    assert source.architecture == "LlamaForCausalLM" and source.model_type == "llama" and source.tied == {}
    sharded = open_source(tiny_sharded_dir)
    assert len(sharded.weight_files) > 1
    assert sharded.bytes_on_disk == sum(p.stat().st_size for p in tiny_sharded_dir.glob("*.safetensors"))


def test_tied_heads(tmp_path: Path, rng: np.random.Generator, tiny_qwen3_dir: Path) -> None:
    assert open_source(tiny_qwen3_dir).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    tensors = small_tensors(rng)
    untied = open_source(make_model(tmp_path / "a", tensors))
    assert untied.tied == {} and "lm_head.weight" in untied.tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    config = LLAMA | {"tie_word_embeddings": True}
    copied = open_source(
        make_model(tmp_path / "b", tensors, config)
    )  # stored twice: counted and written once
    assert copied.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" in copied.ignored and "lm_head.weight" not in copied.tensors
    assert copied.parameters == untied.parameters - 16 * 8


def test_a_stored_copy_of_the_embedding_is_a_head_where_nothing_says_that_it_is_tied(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    silent = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    tensors = small_tensors(rng)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    own = open_source(make_model(tmp_path / "llama", tensors, silent))
    assert own.tied == {} and "lm_head.weight" in own.tensors
    for kind in ("gemma", "starcoder2", "cohere2_moe", "gemma4_text"):
        copied = open_source(make_model(tmp_path / kind, tensors, silent | {"model_type": kind}))
        assert copied.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_the_kinds_that_are_tied_by_default_are_those_of_transformers() -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from tritpress.formats.huggingface import quiet_transformers

    def tied(kind: str) -> bool:
        made = CONFIG_MAPPING[kind]
        try:
            return getattr(made(), "tie_word_embeddings", None) is True
        except Exception:  # has no defaults for all of its settings: the class's own then
            return getattr(made, "tie_word_embeddings", None) is True

    with quiet_transformers():
        found = {kind for kind in CONFIG_MAPPING_NAMES if tied(kind)}
    assert found == set(TIED_BY_DEFAULT)
    assert not found & {"llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt_neox"}


def test_tables_that_are_no_weights_are_not_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = small_tensors(rng)
    plain = open_source(make_model(tmp_path / "a", tensors))
    tensors["model.layers.0.attn.bias"] = ("F32", np.ones((1, 1, 4, 4), np.float32))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", np.ones(4, np.float32))
    source = open_source(make_model(tmp_path / "b", tensors))
    assert source.parameters == plain.parameters and len(source.ignored) == 2


def test_a_hugging_face_cache_opens_though_its_files_are_links(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    made = make_model(tmp_path / "made", small_tensors(rng))
    blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(made.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert open_source(snapshot).parameters > 0


# ------------------------------------------------------------------------------------------------ targets


def test_llama_targets(tiny_llama_dir: Path) -> None:
    source = open_source(tiny_llama_dir)
    targets = find_targets(source)
    assert [t.layer for t in targets] == [0] * 7 + [1] * 7
    assert {t.kind for t in targets} == {"q", "k", "v", "o", "gate", "up", "down"}
    down = next(t for t in targets if t.kind == "down")
    assert (down.rows, down.cols, down.transposed, down.experts) == (64, 150, False, ())
    assert find_embeddings(source) == ["lm_head.weight", "model.embed_tokens.weight"]


def test_gpt2_targets_are_transposed(tiny_gpt2_dir: Path) -> None:
    source = open_source(tiny_gpt2_dir)
    targets = find_targets(source)
    assert all(t.transposed for t in targets) and {t.kind for t in targets} == {"qkv", "o", "fc1", "fc2"}
    fc1 = next(t for t in targets if t.kind == "fc1")
    assert (fc1.rows, fc1.cols) == (256, 64) == tuple(reversed(fc1.entry.shape))
    assert find_embeddings(source) == ["transformer.wpe.weight", "transformer.wte.weight"]
    assert source.tied == {"lm_head.weight": "transformer.wte.weight"}


def test_routers_stay_and_experts_go(tiny_moe_dir: Path) -> None:
    source = open_source(tiny_moe_dir)
    targets = find_targets(source)
    assert sum(t.kind == "expert" for t in targets) == 2 * 4 * 3
    assert not any(t.name.endswith("block_sparse_moe.gate.weight") for t in targets)


def _config(name: str, **more) -> object:
    import transformers

    common = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    return getattr(transformers, name)(**(common | more))


@pytest.mark.parametrize(
    ("name", "more", "kinds"),
    [
        ("MistralConfig", {"num_key_value_heads": 2}, "q k v o gate up down"),
        ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 8}, "q k v o gate up down"),
        ("PhiConfig", {}, "q k v o fc1 fc2"),
        ("Phi3Config", {}, "qkv o gate down"),
        ("GPTNeoXConfig", {}, "qkv o fc1 fc2"),
        ("OPTConfig", {"ffn_dim": 48}, "q k v o fc1 fc2"),
        ("FalconConfig", {}, "qkv o fc1 fc2"),
    ],
)
def test_every_linear_layer_of_a_block_is_found(name: str, more: dict, kinds: str, tmp_path: Path) -> None:
    from conftest import save_tiny_model
    from tritpress.formats.huggingface import load_original, modules_of
    from tritpress.nn.surgery import linear_modules

    source = open_source(save_tiny_model(_config(name, **more), tmp_path / "m"))
    targets = find_targets(source)
    assert sorted(t.kind for t in targets) == sorted(kinds.split())
    model = load_original(source)
    found = modules_of(model, [t.name for t in targets])
    assert {path for path, _ in found.values()} == {p for p in linear_modules(model) if p != "lm_head"}
    for target in targets:
        assert tuple(found[target.name][1].weight.shape) == (target.rows, target.cols)


@pytest.mark.parametrize(
    ("shape", "module", "transposed"),
    [
        ((4, 24, 8), "gate_up_proj", False), ((4, 8, 24), "gate_up_proj", True),
        ((4, 8, 12), "down_proj", False), ((4, 12, 8), "down_proj", True),
    ],
)  # fmt: skip
def test_stacked_experts(
    tmp_path: Path, rng: np.random.Generator, shape, module: str, transposed: bool
) -> None:
    name = f"model.layers.0.mlp.experts.{module}"
    tensors = small_tensors(rng) | {name: ("F32", rng.standard_normal(shape).astype(np.float32))}
    target = next(t for t in find_targets(open_source(make_model(tmp_path / "m", tensors))) if t.name == name)
    inner = shape[2] if transposed == (module == "gate_up_proj") else shape[1]
    rows, cols = (24, 8) if module == "gate_up_proj" else (8, 12)
    assert (target.experts, target.rows, target.cols, target.transposed) == ((4,), rows, cols, transposed)
    assert inner in (rows, cols) and target.kind == "expert" and target.shape == (4, rows, cols)


def test_a_model_without_linear_layers_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {k: v for k, v in small_tensors(rng).items() if "layers" not in k}
    with pytest.raises(InputError, match="no linear layer to press"):
        find_targets(open_source(make_model(tmp_path / "m", tensors)))


# ------------------------------------------------------------------------------------------------ store


def test_the_store_keeps_tensors_and_what_is_known_of_them(tmp_path: Path, rng: np.random.Generator) -> None:
    store = TensorStore(tmp_path / "store")
    codes = rng.integers(0, 255, (2, 5, 3), dtype=np.uint8)
    scales = rng.random((2, 5, 1)).astype(np.float16)
    name = "model.layers.0.q_proj.weight"
    assert not store.has(name)
    store.put(name, codes, scales, {"mse": 0.5})
    assert store.has(name) and store.names() == [name] and store.info(name) == {"mse": 0.5}
    for got, expected in zip(store.get(name), (codes, scales), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(store.path_for(name))["codes"], codes)  # a file like any other
    store.remove(name)
    assert not store.has(name) and store.names() == []


def test_hostile_and_long_names_stay_inside_the_store(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    names = ["../../evil", "a/b", "a%2Fb", ".hidden", "..", "x" * 5000, "x" * 5001, "ä.weight"]
    codes, scales = np.ones((1, 1, 1), np.uint8), np.ones((1, 1, 1), np.float16)
    for name in names:
        store.put(name, codes, scales, {})
    assert len({store.path_for(name) for name in names}) == len(names)
    assert store.names() == sorted(names)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != tmp_path / "store"] == []


def test_an_unfinished_tensor_is_not_there(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    path, codes_at, scales_at = store.prepare("w", (1, 4, 3), (1, 4, 1))
    assert not store.has("w") and codes_at > scales_at
    with open(path, "r+b") as file:
        file.seek(codes_at)
        file.write(bytes([0x55] * 12))
    store.commit("w", {"a": 1})
    codes, scales = store.get("w")
    assert (codes == 0x55).all() and (scales == 0).all() and list(tmp_path.rglob("*.tmp")) == []


def test_a_broken_file_in_the_store_is_named(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    store.path_for("w").write_bytes(safetensors_bytes({"codes": ("F32", np.ones(1, np.float32))}))
    with pytest.raises(InputError, match=r"w\.safetensors"):
        store.get("w")


def test_the_index_of_a_sharded_model_is_followed(tiny_sharded_dir: Path) -> None:
    index = json.loads((tiny_sharded_dir / "model.safetensors.index.json").read_text())
    source = open_source(tiny_sharded_dir)
    assert {name: entry.file.name for name, entry in source.tensors.items()} == index["weight_map"]
