"""The page in a browser: with and without the token, beyond loopback, and on a run that was pushed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import open_page, show, wait_until
from dashboard_log import make_run, write_run
from server_helper import MAIN, TOKEN, others_address, port_and_log, serving
from tritpress.client import Client
from tritpress.events import EventWriter

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_a_page_of_a_bare_panel_serve_acts_on_loopback_alone(browser: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "live", name="at work")
    writer = EventWriter(run.path)
    writer.emit("run.started", model="/models/m", out="out", config={}, name="at work")
    writer.close()
    host = others_address()

    def acts(address: str) -> bool:
        """Whether the Stop button of a page opened under that address sends its command."""
        port, log = port_and_log(tmp_path)
        command = [sys.executable, "-m", "panel", "serve", MAIN, "--port", str(port)]
        command += ["--allow-websocket-origin", f"{address}:{port}"]
        run.commands_path.unlink(missing_ok=True)
        with serving(command, port, log, host=address, TRITPRESS_RUNS=str(runs)):
            page = browser.new_page()
            page.set_default_timeout(15_000)
            try:
                open_page(page, f"http://{address}:{port}/dashboard?run=live")
                page.get_by_text("at work").first.wait_for()
                page.wait_for_timeout(500)
                stop = page.get_by_role("button", name="Stop", exact=True)
                if stop.is_enabled():
                    stop.click()
                    page.wait_for_timeout(1500)
                if not run.commands_path.exists():
                    page.get_by_text("nobody has signed in").first.wait_for()
                return run.commands_path.exists()
            finally:
                page.close()

    assert acts("127.0.0.1")
    if host is None:
        pytest.skip("this machine has no address but loopback")
    assert not acts(host)


def test_the_page_in_a_browser_with_and_without_the_token(browser: Any, runs: Path, port: int) -> None:
    write_run(runs, "r1", name="first")
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(15_000)
    refused = page.goto(f"http://127.0.0.1:{port}/dashboard?run=r1")
    assert refused.status == 401
    assert "token" in page.get_by_role("heading").inner_text()
    assert page.get_by_text("first").count() == 0
    open_page(page, f"http://127.0.0.1:{port}/dashboard?run=r1&tab=metrics&token={TOKEN}")
    assert "token" not in page.url and "run=r1" in page.url and "tab=metrics" in page.url
    page.get_by_text("first").first.wait_for()
    assert TOKEN not in page.content() and page.evaluate("document.cookie") == ""
    again = page.goto(f"http://127.0.0.1:{port}/dashboard?run=r1")
    assert again.status == 200
    context.close()


def test_signing_in_with_the_password(browser: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "r1", name="first")
    port, log = port_and_log(tmp_path)
    words = ["--runs", str(tmp_path / "runs"), "--port", str(port), "--password", "open sesame"]
    with serving([sys.executable, "-m", "tritpress", "dashboard", *words], port, log):
        page = browser.new_page()
        page.set_default_timeout(15_000)
        page.goto(f"http://127.0.0.1:{port}/dashboard?run=r1&tab=metrics")
        for password in ("wrong", "open sesame"):
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Sign in").click()
            if password == "wrong":
                page.get_by_role("alert").get_by_text("not the password").wait_for()
        page.get_by_role("tab", name="Overview").wait_for()
        page.get_by_text("first").first.wait_for()
        assert "run=r1" in page.url and "tab=metrics" in page.url
        page.close()


def test_a_pushed_run_in_the_page(browser: Any, client: Client, port: int) -> None:
    """Sparse events of a controller that is not tritpress: every tab stands, figures arrive live."""
    page = browser.new_page()
    page.set_default_timeout(15_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"a script ran: {dialog.message}"))
    with client.push("<img src=x onerror=alert(1)>") as pusher:
        pusher.emit("step.started", step=4)
        pusher.emit("layer.finished", name="a.weight", layer=0, kind="q", rows=8, cols=8)
        pusher.emit("evaluation", when="before", perplexity=9.5)
        pusher.emit("gate", name="ratio", actual=7.0)
        pusher.emit("metric", name="<b>mine</b>", value=1.0)
        pusher.emit("output", path="/etc/passwd", bytes=5)
        pusher.emit("log", message="<img src=x onerror=alert(2)>")
        pusher.emit("finetune.step", step=1, loss=0.5)
        assert pusher.flush()
        open_page(page, f"http://127.0.0.1:{port}/dashboard?run={pusher.run_id}&token={TOKEN}")
        page.get_by_text("<img src=x onerror=alert(1)>").first.wait_for()
        for tab in ("Progress", "Metrics", "Quality", "Outputs", "Overview"):
            show(page, tab)
            page.wait_for_timeout(300)
        pusher.emit("alert", message="told from afar", level="warning")
        page.get_by_text("told from afar").first.wait_for()
    wait_until(
        page,
        lambda: page.locator("[data-status]").first.get_attribute("data-status") == "finished",
        "the end of the pushed run",
    )
    assert not problems, problems
    page.close()
