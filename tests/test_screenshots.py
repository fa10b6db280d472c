"""The script that takes pictures of the page leaves no server behind, whatever goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import screenshots

sync_api = pytest.importorskip("playwright.sync_api")

STARTED: list[Noted] = []


class Noted:
    """Stands in for a server; the second one does not come up."""

    def __init__(self, folder: Path) -> None:
        self.stopped = False
        STARTED.append(self)
        if len(STARTED) == 2:
            raise SystemExit("the server did not come up")

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    STARTED.clear()
    monkeypatch.setattr(screenshots, "Server", Noted)
    monkeypatch.setattr(screenshots, "make_runs", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["screenshots.py", "--out", str(tmp_path / "pictures")])


def test_without_a_browser_no_server_stays(
    noted: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(screenshots, "CHROMIUM", str(tmp_path / "no-such-browser"))
    with pytest.raises(sync_api.Error):
        screenshots.main()
    assert all(server.stopped for server in STARTED)


@pytest.mark.browser
@pytest.mark.skipif(not Path(screenshots.CHROMIUM).exists(), reason="there is no Chromium")
def test_when_one_server_does_not_come_up_the_other_is_stopped(noted: None) -> None:
    with pytest.raises(SystemExit, match="did not come up"):
        screenshots.main()
    assert [server.stopped for server in STARTED] == [True, False]


def test_a_server_that_does_not_come_up_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    times = iter([0.0, 100.0])
    monkeypatch.setattr(screenshots, "subprocess", SimpleNamespace(Popen=lambda *_: process))
    monkeypatch.setattr(screenshots, "time", SimpleNamespace(monotonic=lambda: next(times)))
    try:
        with pytest.raises(SystemExit, match="did not come up"):
            screenshots.Server(tmp_path)
        assert process.poll() is not None
    finally:
        process.kill()
        process.wait(20)
