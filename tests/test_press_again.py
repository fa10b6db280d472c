"""Tensors that are not what pressing made are found in the file, and pressed again on their own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tritpress as tp
from tritpress import steps
from tritpress.cli import app
from tritpress.errors import InputError
from tritpress.events.context import NullContext
from tritpress.formats.store import TensorStore
from tritpress.runs.directory import RunDirectory, find_run
from tritpress.steps.soundness import _reason, unsound_tensors
from typer.testing import CliRunner

VICTIM = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Path]:
    place = tmp_path_factory.mktemp("again")
    config = tp.CompressionConfig(planes=2, method="fast", finetune=False, evaluate=False)
    report = tp.compress(tiny_llama_dir, place / "out", config, runs_dir=place / "runs")
    return find_run(report["run"], place / "runs"), place / "out"


def opened(run: RunDirectory) -> steps.Work:
    work = steps.Work(config=run.config, directory=run, context=NullContext())
    steps.load(work)
    steps.recall(work, 4)
    return work


def hashes(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.safetensors"))
    }


def shuffle(path: Path, name: str, seed: int = 0) -> None:
    """Shuffle the rows of a tensor's codes where they lie in the file."""
    from tritpress.formats.source import read_raw, tensor_entries

    entry = tensor_entries(path)[name]
    codes = read_raw(entry).reshape(-1, entry.shape[-1])
    with path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.random.default_rng(seed).permutation(codes).tobytes())


def test_a_sound_file_is_found_sound(made) -> None:
    run, out = made
    assert unsound_tensors(opened(run), out / "packed") == []


def test_shuffled_codes_are_found_and_pressed_again(made) -> None:
    run, out = made
    before = hashes(out)
    shuffle(out / "packed" / "model.safetensors", f"{VICTIM}.codes")
    (found,) = unsound_tensors(opened(run), out / "packed")
    assert found["name"] == VICTIM and found["relative_error"] > 1.0 > 10 * found["plain"]
    assert "was" in found["reason"]  # it differs from what was noted when it was made
    # the same where what was noted is as wrong as the file
    store = TensorStore(run.work / "tensors")
    codes, scales = store.get(VICTIM)
    info = {**store.info(VICTIM), "relative_error": found["relative_error"]}
    rows = np.random.default_rng(0).permutation(codes.reshape(-1, codes.shape[-1]))
    store.put(VICTIM, rows.reshape(codes.shape), scales, info)
    (again,) = unsound_tensors(opened(run), out / "packed")
    assert again["name"] == VICTIM and "the cosine to its weights" in again["reason"]

    runs = str(run.path.parent)
    words = ["compress", "--resume", run.id, "--runs", runs, "--press-again", VICTIM, "--json"]
    result = CliRunner().invoke(app, words, prog_name="tritpress")
    assert result.exit_code in (0, 3), result.output
    assert hashes(out) == before and unsound_tensors(opened(run), out / "packed") == []


def test_a_calibrated_fit_may_be_further_off_than_zeros() -> None:
    # layer 0's down_proj of the reference model at one plane, as the sweep leaves it
    assert _reason(1.08, 0.705, 1.08, 0.208) is None
    assert "the cosine" in (_reason(1.9, 0.02, 1.9, 0.208) or "")
    assert "when it was made" in (_reason(1.08, 0.705, 0.3, 0.208) or "")


def test_the_note_of_what_was_written_is_whole_or_refused_in_a_sentence(tmp_path: Path, monkeypatch) -> None:
    from tritpress.runs import again

    note, out = tmp_path / "written.json", tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("codes")
    note.write_text(was := json.dumps({str(out): [["a", 0, 0]]}))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(InputError, match=r"cannot write .*written\.json"):
            again._know_outputs_again(note, json.loads(was))
    assert note.read_text() == was
    again._know_outputs_again(note, again._read_written(note) or {})
    assert json.loads(note.read_text())[str(out)][0][:2] == ["a", 5]
    note.write_text(was[:9])
    with pytest.raises(InputError, match=r"written\.json cannot be read .*remove it and the outputs"):
        again._read_written(note)


def test_what_cannot_be_pressed_again_is_one_sentence(made) -> None:
    run, _ = made
    runs = ["--runs", str(run.path.parent)]
    for words, said in (
        (["--resume", run.id, *runs, "--press-again", "no.weight"], "no.weight: run"),
        (["model", "-o", "out", "--press-again", VICTIM], "goes with --resume"),
    ):
        result = CliRunner().invoke(app, ["compress", *words], prog_name="tritpress")
        assert result.exit_code == 2 and said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
