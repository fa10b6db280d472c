"""A server opens models, texts and plans below its allowed folders alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tritpress.config import CompressionConfig
from tritpress.dashboard import folders
from tritpress.dashboard.views import checks
from tritpress.dashboard.views.checks import check_model, check_text
from tritpress.errors import UsageError
from tritpress.reference import reference_model_path


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    allowed, runs = tmp_path / "allowed", tmp_path / "runs"
    for folder in (allowed, runs, tmp_path / "elsewhere"):
        folder.mkdir()
    monkeypatch.setattr(folders, "allowed", folders.choose([allowed], runs, loopback=True))
    return allowed


def test_what_suits_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    assert folders.choose([], runs, loopback=True) is None
    assert folders.choose([], runs, loopback=False) == (tmp_path.resolve(), runs.resolve())
    with pytest.raises(UsageError, match=r"--allow-folder .*/nowhere: there is no such folder"):
        folders.choose([tmp_path / "nowhere"], runs, loopback=True)


def test_a_bare_server_where_people_sign_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import panel as pn

    here, runs = tmp_path / "here", tmp_path / "runs"
    for folder in (here, runs, tmp_path / "elsewhere"):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TRITPRESS_RUNS", str(runs))
    assert folders.refusal(tmp_path / "elsewhere") is None, "it acts over loopback alone"
    monkeypatch.setattr(pn.config, "cookie_secret", "a secret")
    assert folders.refusal(here / "model") is None and folders.refusal(runs / "x") is None
    assert "lies outside the folders" in str(folders.refusal(tmp_path / "elsewhere"))


def test_paths_outside_are_refused(inside: Path) -> None:
    (inside / "notes.txt").write_text("text", encoding="utf-8")
    outside = inside.parent / "elsewhere"
    assert folders.refusal(inside) is None and folders.refusal(inside / "sub" / "model") is None
    assert folders.refusal(reference_model_path()) is None
    outer = (outside, inside / ".." / "elsewhere", inside.parent / "allowed-too", "~nobody-here/x", "a\0b")
    for path in outer:
        assert folders.refusal(path) is not None, path
    (inside / "link").symlink_to(outside)
    assert "lies outside the folders" in str(folders.refusal(inside / "link"))
    assert folders.refused(str(inside), CompressionConfig(text=["self"])) is None
    assert folders.refused(str(inside), CompressionConfig(text=[str(outside)])) is not None
    assert folders.refused(str(inside), CompressionConfig(plan=str(outside / "plan.json"))) is not None


def test_large_folders_of_text_are_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}").mkdir()
    assert not check_text([str(tmp_path)], reference=False).ok
    for i in range(10, 30):
        (tmp_path / f"{i:02}" / "notes.txt").write_text("text", encoding="utf-8")
    assert check_text([str(tmp_path)], reference=False).words.startswith("20 files")
    monkeypatch.setattr(checks, "SECONDS", -1.0)
    told = check_text([str(tmp_path)], reference=False)
    assert told.ok and told.words.startswith("Large folders: no text among the first files")
    (tmp_path / "more.txt").write_text("text", encoding="utf-8")
    assert check_text([str(tmp_path)], reference=False).words.startswith("more than 1 file")


@pytest.mark.parametrize("path", ["~nobody-here/x", "~a\0b/x", "x" * 300, "a\0b"])
def test_what_cannot_be_looked_at_is_no_text_and_no_model(path: str) -> None:
    told = check_text([path], reference=False)
    assert not told.ok and path in told.words and told.words.endswith(".")
    assert not check_model(path).ok and check_model(path).lines[0]


def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.stat

    def refuses(path: Any, *given: Any, **named: Any) -> os.stat_result:
        if "closed" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, *given, **named)

    monkeypatch.setattr(os, "stat", refuses)
    told = check_text([str(tmp_path / "closed" / "notes.txt")], reference=False)
    assert not told.ok and told.words.endswith("notes.txt cannot be looked at: Permission denied.")
    assert not check_model(str(tmp_path / "closed")).ok


def test_the_sidebar_says_nothing_of_what_lies_outside(inside: Path) -> None:
    outside = inside.parent / "elsewhere"
    (outside / "secret.txt").write_text("text", encoding="utf-8")
    found = check_model(str(outside))
    assert not found.ok and "--allow-folder" in found.lines[0]
    told = check_text([str(outside / "secret.txt")], reference=False)
    assert not told.ok and "--allow-folder" in told.words
    assert check_text(["self"], reference=False).ok
