"""`tritpress runs report`: files in three formats, written whole or not at all, errors in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from dashboard_log import write_run
from tritpress.cli import app
from tritpress.dashboard.report.charts import pictures
from tritpress.dashboard.report.facts import read_facts
from tritpress.dashboard.report.save import kind_of, save
from tritpress.errors import InputError, UsageError
from tritpress.runs.directory import RunDirectory
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(runs: Path) -> RunDirectory:
    run = write_run(runs, "whole", layers=4, steps=20, name="Whole one")
    run.report_path.write_text(json.dumps({"versions": {"torch": "2.15"}}))
    return run


@pytest.fixture(scope="module")
def broken(runs: Path) -> RunDirectory:
    run = write_run(runs, "broken", layers=2, until="output")
    run.update_run(status="failed")
    return run


def is_the_page(text: str) -> bool:
    return text.startswith("<!doctype html>") and text.endswith("</html>\n") and "Whole one" in text


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="tritpress")


def test_the_command_writes_each_format(runs: Path, whole: RunDirectory, tmp_path: Path) -> None:
    done = call("runs", "report", "whole", "--runs", runs, "-o", tmp_path / "r.html")
    assert done.exit_code == 0 and "r.html" in done.output, done.output
    assert is_the_page((tmp_path / "r.html").read_text())
    done = call("runs", "report", "whole", "--runs", runs, "-o", tmp_path / "r.JSON", "--json")
    told = json.loads(done.output)
    assert (tmp_path / "r.JSON").read_text() == whole.report_path.read_text()
    assert told["format"] == "json" and told["bytes"] == (tmp_path / "r.JSON").stat().st_size
    assert call("runs", "report", "whole", "--runs", runs, "-o", tmp_path / "r.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "r.zip") as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            if name.endswith(".svg"):
                ElementTree.fromstring(archive.read(name))
        assert sum(name.endswith(".svg") for name in archive.namelist()) == len(
            pictures(read_facts(whole.path))
        )
    done = call("runs", "report", "who", "--runs", runs, "-o", "-", "--format", "html")
    assert done.exit_code == 0
    assert is_the_page(done.output)


def test_the_command_names_its_file_itself(
    runs: Path, whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("runs", "report", "whole", "--runs", runs).exit_code == 0
    assert call("runs", "report", "whole", "--runs", runs, "--format", "zip").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole-report.html", "whole-report.zip"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["whole", "-o", "r.pdf"], 2, "'r.pdf' does not tell the format"),
        (["whole", "-o", "r.html", "--format", "pdf"], 2, "--format takes html, json or zip"),
        (["whole", "-o", "-", "--json"], 2, "give -o a file"),
        (["none", "-o", "r.html"], 1, "there is no run 'none'"),
        (["broken", "-o", "r.json"], 1, "run broken has no report.json: it is still at work"),
        (["whole", "-o", "nowhere/r.html"], 1, "the folder nowhere is not there"),
        (["whole", "-o", "folder.html"], 1, "folder.html is a folder"),
        (["whole", "-o", "taken.html"], 1, "taken.html is there already"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_sentence(
    words: list[str],
    code: int,
    said: str,
    runs: Path,
    whole: RunDirectory,
    broken: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "taken.html").write_text("mine")
    done = call("runs", "report", *words, "--runs", runs)
    assert done.exit_code == code and said in done.stderr, done.output
    assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "taken.html").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "taken.html"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    save(b"old", path)
    with pytest.raises(InputError, match="already"):
        save(b"new", path)
    save(b"new", path, replace=True)
    assert path.read_bytes() == b"new"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        save(b"newer", path, replace=True)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_the_format_by_ending() -> None:
    assert kind_of(Path("a.HTM"), None) == "html" and kind_of(Path("a.txt"), "json") == "json"
    with pytest.raises(UsageError, match="give --format"):
        kind_of(Path("report"), None)


def test_the_report_needs_no_page(whole: RunDirectory, tmp_path: Path) -> None:
    """The command works where neither panel nor torch is installed."""
    code = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "transformers", "panel", "bokeh", "holoviews", "markupsafe"}}:
            raise ImportError(f"the base install has no {{name}}")

sys.meta_path.insert(0, Refuse())
sys.argv = ["tritpress", "runs", "report", {str(whole.path)!r}, "-o", {str(tmp_path / "r.html")!r}]
from tritpress.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").stat().st_size > 50_000
