"""Tiny models with random weights, made by config: the reference tokenizer, two or so blocks, saved as
users do.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from browser_helpers import browser, page, runs_dir, server  # noqa: F401  (fixtures of the browser tests)
from server_helper import client, port, runs  # noqa: F401  (fixtures of the API's tests)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(config, items) -> None:
    """Browser tests have a second try, which the summary counts as a rerun: two browsers and two servers on
    two busy cores make even a generous time-out run out now and then."""
    if config.pluginmanager.hasplugin("rerunfailures"):
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.flaky(reruns=1))


def save_tiny_model(config, folder: Path, *, dtype: str = "float32", max_shard_size: str = "1GB") -> Path:
    """A causal language model with seeded random weights, saved with the reference tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM
    from tritpress.formats.huggingface import quiet_transformers
    from tritpress.reference import reference_model_path

    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        for parameter in model.parameters():  # biases and norms too: nothing is left at its tidy default
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_model_path() / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """torch on one thread: matrices this small only lose by threads, and much so on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory) -> Path:
    """Llama, 2 blocks, hidden 64, untied head, bfloat16, input sizes that no group size divides."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=150, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return save_tiny_model(config, tmp_path_factory.mktemp("models") / "tiny-llama", dtype="bfloat16")


@pytest.fixture(scope="session")
def tiny_qwen3_dir(tmp_path_factory) -> Path:
    """Qwen3, 2 blocks, hidden 64, tied head, float16."""
    from transformers import Qwen3Config

    config = Qwen3Config(
        vocab_size=2048, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return save_tiny_model(config, tmp_path_factory.mktemp("models") / "tiny-qwen3", dtype="float16")


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory) -> Path:
    """GPT-2 (Conv1D: weights stored [in, out]), 2 blocks, hidden 64, tied head, float32."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=2048, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return save_tiny_model(config, tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_sharded_dir(tmp_path_factory) -> Path:
    """Llama in several shards with an index, 3 blocks, tied head, bfloat16."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny-sharded"
    return save_tiny_model(config, folder, dtype="bfloat16", max_shard_size="200KB")


@pytest.fixture(scope="session")
def tiny_moe_dir(tmp_path_factory) -> Path:
    """Mixtral (experts as separate two-dimensional weights in the file), 2 blocks, 4 experts, untied head,
    bfloat16.
    """
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=512, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return save_tiny_model(config, tmp_path_factory.mktemp("models") / "tiny-moe", dtype="bfloat16")


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory) -> Path:
    """A folder of 70 documents: small modules of the interpreter's standard library."""
    import sysconfig

    folder = tmp_path_factory.mktemp("text")
    library = Path(sysconfig.get_paths()["stdlib"])
    small = sorted(p for p in library.glob("*.py") if 4_000 < p.stat().st_size < 30_000)
    for path in small[:70]:
        shutil.copy(path, folder / path.name)
    return folder
