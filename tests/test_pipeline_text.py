"""Text that a run cannot use is refused in its first step, in one sentence, before anything is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_paged_models import Folder, MostHeld
from tritpress import steps
from tritpress.config import CompressionConfig
from tritpress.errors import InputError, TritpressError, UsageError
from tritpress.formats.huggingface import load_tokenizer
from tritpress.formats.source import open_source


class Told(MostHeld):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def emit(self, type: str, /, **fields: Any) -> None:
        self.events.append(type)


def load(model: Path, folder: Path, **options: Any) -> tuple[steps.Work, Told]:
    folder.mkdir(exist_ok=True)
    context = Told()
    work = steps.Work(CompressionConfig(**options), Folder(folder, model), context)
    try:
        steps.load(work)
    except TritpressError:
        assert "evaluation" not in context.events and not list((folder / "work").glob("tensors/*"))
        raise
    return work, context


@pytest.fixture()
def short(tmp_path: Path) -> Path:
    """Enough characters for four parts, too few tokens for a window of 4096."""
    path = tmp_path / "short.txt"
    path.write_text("".join(f"{' ' * 90}{i * 7919 % 977}\n" for i in range(100)))
    return path


@pytest.mark.parametrize(
    "options,part",
    [
        ({}, "held-out"),
        ({"evaluate": False}, "calibration"),
        ({"evaluate": False, "method": "fast"}, "validation"),
    ],
)
def test_a_text_too_short_for_a_window(
    options: dict[str, Any], part: str, short: Path, tiny_qwen3_dir: Path, tmp_path: Path
) -> None:
    words = rf"the {part} text has \d+ tokens, which do not fill one window of 512"
    with pytest.raises(InputError, match=words):
        load(tiny_qwen3_dir, tmp_path / "run", text=[str(short)], window=4096, **options)


@pytest.mark.parametrize(
    "options,option",
    [
        ({"method": "gptq"}, "--method gptq"),
        ({"finetune": True}, "--finetune"),
        ({"tokens": 5000}, "--tokens"),
        ({"epochs": 1}, "--epochs"),
        ({"minutes": 0.5}, "--minutes"),
    ],
)
def test_calibration_asked_for_without_text(
    options: dict[str, Any], option: str, tiny_qwen3_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{option} needs text: give files or folders of it with --text"):
        load(tiny_qwen3_dir, tmp_path / "run", **options)


def test_a_file_that_is_not_text(tiny_qwen3_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    with pytest.raises(InputError, match=r"picture\.txt is a binary file, not text"):
        load(tiny_qwen3_dir, tmp_path / "run", text=[str(tmp_path / "picture.txt")])
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        load(tiny_qwen3_dir, tmp_path / "run2", text=[str(tmp_path / "latin.txt")])


def test_the_windows_are_known_by_their_hash(text_dir: Path, tiny_qwen3_dir: Path, tmp_path: Path) -> None:
    options = {"text": [str(text_dir)], "evaluation_tokens": 2048, "calibration_tokens": 1024, "window": 64}
    (work, _), (again, _) = (load(tiny_qwen3_dir, tmp_path / name, **options) for name in "ab")
    assert work.text_facts is not None and again.text_facts is not None
    assert work.text_facts["held_out_windows_sha256"] == again.text_facts["held_out_windows_sha256"]
    assert work.text_facts["held_out_tokens"] == 32 * 63
    other, _ = load(tiny_qwen3_dir, tmp_path / "c", **{**options, "window": 32})
    assert other.text_facts["held_out_windows_sha256"] != work.text_facts["held_out_windows_sha256"]


class KeepingFolder(Folder):
    """As a run's directory: what is chosen at the first start stays."""

    def choose(self, **measured: Any) -> dict[str, Any]:
        kept = self.path / "chosen.json"
        if not kept.is_file():
            kept.write_text(json.dumps(measured))
        return json.loads(kept.read_text())


def test_a_model_that_changed_since_the_run_began(tiny_qwen3_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen3_dir, model)
    weights, told = model / "model.safetensors", model / "config.json"
    (tmp_path / "run").mkdir()
    config = CompressionConfig(method="fast", evaluate=False)

    def start() -> None:
        steps.load(steps.Work(config, KeepingFolder(tmp_path / "run", model), Told()))

    start()
    start()  # the same model
    was, entries = weights.read_bytes(), open_source(model).tensors
    trained = bytearray(was)
    entry = entries["model.layers.0.mlp.down_proj.weight"]
    trained[entry.offset] ^= 1
    weights.write_bytes(trained)
    with pytest.raises(InputError, match=r"model has changed since run .* \(model.safetensors\).*a new run"):
        start()
    weights.write_bytes(was)
    config_was = told.read_text()
    told.write_text(json.dumps({**json.loads(config_was), "rope_theta": 5.0}))
    with pytest.raises(InputError, match=r"has changed since run .* \(config.json\)"):
        start()
    told.write_text(json.dumps(json.loads(config_was)))  # other spaces are no other model
    start()
    kept = tmp_path / "run" / "chosen.json"
    kept.write_text(json.dumps({k: v for k, v in json.loads(kept.read_text()).items() if k != "model_files"}))
    weights.write_bytes(trained)
    start()  # begun before the files were noted


def test_a_text_that_changed_since_the_run_began(tiny_qwen3_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    lines = [f"{' ' * 90}{i * 7919 % 977} {i}\n" for i in range(4000)]
    text.write_text("".join(lines))
    (tmp_path / "run").mkdir()
    config = CompressionConfig(text=[str(text)], window=64, evaluation_tokens=1024, calibration_tokens=1024)

    def start() -> None:
        steps.load(steps.Work(config, KeepingFolder(tmp_path / "run", tiny_qwen3_dir), Told()))

    start()
    start()  # the same text
    text.write_text("".join(lines[:3000]))
    with pytest.raises(InputError, match=r"the text has changed since run .* \(.*held-out.*start a new run"):
        start()
    text.write_text("".join(lines))
    start()


def test_a_special_token_that_the_model_has_no_embedding_for(
    text_dir: Path, tiny_qwen3_dir: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_qwen3_dir, tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"eos_token": "<end-of-all>"})
    tokenizer.save_pretrained(model)
    assert load_tokenizer(model).eos_token_id == 2048
    options = {"evaluation_tokens": 2048, "calibration_tokens": 1024, "window": 64}
    work, _ = load(model, tmp_path / "a", text=[str(text_dir)], **options)
    assert work.windows("held_out").max() < 2048  # nothing between documents, as for a tokenizer without
    spelt = tmp_path / "spelt.txt"
    spelt.write_text("".join(f"{' ' * 90}{i * 7919 % 977} {i}<end-of-all>\n" for i in range(2000)))
    with pytest.raises(InputError, match=r"gives token 2048 for the text spelt\.txt.*the model knows 2048"):
        load(model, tmp_path / "b", text=[str(spelt)], **options)
