"""`generate` on a packed directory: the decoder writes what transformers writes, also without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import pack
from tritpress.bench_generate import bench_generate, write_random_model
from tritpress.decoder import Decoder, Sampler
from tritpress.decoder.linear import Ternary
from tritpress.decoder.tokens import Tokenizer
from tritpress.decoder.writing import write_tokens
from tritpress.errors import InputError, UsageError
from tritpress.formats.huggingface import load_tokenizer
from tritpress.generate import generate, generate_with
from tritpress.loading import load
from tritpress.reference import reference_model_path

PROMPT = "def main(arguments):\n    "


@pytest.fixture(autouse=True)
def one_thread_of_torch():
    """Two pools that share the cores take turns waiting for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The built-in model with two planes and its tokenizer."""
    folder = tmp_path_factory.mktemp("reference")
    pack(reference_model_path(), folder, planes=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_model_path() / name, folder / "packed" / name)
    return folder / "packed"


def test_greedy_text_is_that_of_transformers(packed: Path) -> None:
    pieces: list[str] = []
    ours = generate(packed, PROMPT, max_new_tokens=20, on_text=pieces.append)
    theirs = generate_with(load(packed), load_tokenizer(packed), PROMPT, 20)
    assert ours["engine"] == "decoder" and theirs["engine"] == "transformers"
    for key in ("text", "tokens", "stopped", "prompt"):
        assert ours[key] == theirs[key]
    assert "".join(pieces) == ours["text"] and len(pieces) > 10
    assert ours["tokens_per_s"] == pytest.approx(ours["tokens"] / ours["seconds"])


def test_text_is_the_same_in_both_formats(packed: Path) -> None:
    """Bit for bit."""
    told = {format: Decoder.open(packed, threads=1, format=format) for format in ("2bit", "1.6bit")}
    tokens = np.arange(40) * 7 % told["2bit"].architecture.vocabulary
    logits = {name: decoder.forward(tokens, all_positions=True) for name, decoder in told.items()}
    assert np.array_equal(logits["2bit"], logits["1.6bit"])
    for name, decoder in told.items():
        ternary = [product for product in decoder.products() if isinstance(product, Ternary)]
        assert {matrix.format for product in ternary for matrix in product.matrices} == {name}
    texts = {name: generate(packed, PROMPT, max_new_tokens=8, format=name)["text"] for name in told}
    assert texts["2bit"] == texts["1.6bit"]
    by_torch = [load(packed, format=name)(torch_ids(tokens)).logits for name in told]
    assert by_torch[0].equal(by_torch[1])
    with pytest.raises(UsageError, match="format must be 2bit or"):
        generate(packed, PROMPT, format="3bit")


def torch_ids(tokens: np.ndarray):
    import torch

    return torch.from_numpy(tokens)[None]


def test_both_engines_stream(packed: Path, tiny_moe_dir: Path, tmp_path: Path) -> None:
    pack(tiny_moe_dir, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_moe_dir / name, tmp_path / "packed" / name)
    pieces: list[str] = []
    found = generate(tmp_path / "packed", "import", max_new_tokens=8, threads=1, on_text=pieces.append)
    assert found["engine"] == "transformers" and "".join(pieces) == found["text"]
    assert generate(packed, "import", max_new_tokens=2, activation_bits=None)["engine"] == "transformers"


def test_draws_follow_the_seed(packed: Path) -> None:
    def drawn(seed: int, **more) -> str:
        options = {"max_new_tokens": 12, "temperature": 1.5, "seed": seed, "threads": 1} | more
        return generate(packed, PROMPT, **options)["text"]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, top_p=1e-6) == drawn(2, top_p=1e-6) == drawn(3, temperature=0.0)


def test_the_end_of_text_ends_it(packed: Path) -> None:
    decoder = Decoder.open(packed, threads=1)
    prompt = Tokenizer(packed).encode(PROMPT)
    free = write_tokens(decoder, prompt, 10, Sampler())
    shown: list[int] = []
    stop = free[4]
    found = write_tokens(decoder, prompt, 10, Sampler(), eos=(stop,), on_token=shown.append)
    assert found == free[: free.index(stop) + 1] and shown == found[:-1]
    assert len(free) == 10 and decoder.position == len(prompt) + len(found) - 1


def test_the_models_length_is_kept(packed: Path) -> None:
    tokenizer = Tokenizer(packed)
    prompt = tokenizer.decode(tokenizer.encode("import os\n" * 500)[:505])
    length = len(tokenizer.encode(prompt))
    found = generate(packed, prompt, max_new_tokens=1000)
    assert found["tokens"] == 512 - length or found["stopped"] == "eos"
    with pytest.raises(InputError, match="shorten it"):
        generate(packed, "x y " * 600)
    assert generate(packed, "", max_new_tokens=2)["tokens"] in (1, 2)
    with pytest.raises(UsageError, match="threads"):
        generate(packed, "x", threads=0)


def test_the_tokenizer_is_that_of_transformers(packed: Path, tmp_path: Path) -> None:
    ours, theirs = Tokenizer(packed), load_tokenizer(packed)
    text = "class Größe:\n\treturn '日本' # 🙂  <|eot|>"
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"])
    assert (ours.eos_token_id, ours.bos_token_id) == (theirs.eos_token_id, theirs.bos_token_id)
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(InputError, match="cannot be opened"):
        Tokenizer(tmp_path)


WITHOUT_TORCH = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers"}:
            raise ImportError(f"no {name} here")

sys.meta_path.insert(0, Refuse())
from tritpress.cli import main
sys.argv = ["tritpress", "generate", *sys.argv[1:]]
main()
"""


def test_the_command_needs_no_torch(packed: Path) -> None:
    def call(*words: str) -> str:
        command = [sys.executable, "-c", WITHOUT_TORCH, str(packed), "--prompt", PROMPT]
        command += ["--max-new-tokens", "6"]
        environment = {**os.environ, "TRITPRESS_NUM_THREADS": "1"}
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, check=True)
        return done.stdout

    found = json.loads(call("--json"))
    assert found["engine"] == "decoder" and found["tokens"] == 6
    assert call("--threads", "1") == PROMPT + found["text"] + "\n"


def test_bench_rows_add_up(monkeypatch) -> None:
    sizes = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 500,
    }  # fmt: skip
    monkeypatch.setattr("tritpress.decoder.weights.DENSE_HEAD_WEIGHTS", 0)
    monkeypatch.setattr("tritpress.bench_generate.MODELS", {"small": sizes})
    monkeypatch.setattr("tritpress.bench_generate.PROMPT", 8)
    rows = bench_generate(1, ("small",), (4, 100))
    assert [(row["format"], row["context"]) for row in rows] == [
        ("2bit", 4), ("2bit", 100), ("1.6bit", 4), ("1.6bit", 100)
    ]  # fmt: skip
    block = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256 + 2 * 128
    for row in rows:
        assert row["parameters"] == 2 * block + 128 + 2 * 500 * 128
        assert 0 < row["head_us"] < row["matvec_us"] < row["us"] and 0 < row["rest_us"] < row["us"]
        assert row["rest_share"] == pytest.approx(row["rest_us"] / row["us"], abs=1e-3)
        assert row["tokens_s"] == pytest.approx(1e6 / row["us"], rel=1e-2)


def test_a_random_model_is_a_sound_one(tmp_path: Path) -> None:
    from tritpress.formats.packed_reader import open_packed

    sizes = {
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 300, "tie_word_embeddings": 1,
    }  # fmt: skip
    write_random_model(tmp_path, sizes, planes=2)
    open_packed(tmp_path)  # checks every value
    logits = Decoder.open(tmp_path).forward([1, 2, 3])
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 100
