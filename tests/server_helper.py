"""Servers of the page and its API in processes of their own, for tests that come to them as strangers do."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser_helpers import free_port

TOKEN = "token-of-the-tests"

SERVE = """
import sys
sys.path.insert(0, {tests!r})
import runs_helper
import tritpress.runs.launch as launch
launch.worker_command = lambda run: [sys.executable, runs_helper.__file__, str(run.path)]
from tritpress.dashboard.app import serve
serve({runs!r}, {port}, token={token!r}, **{options!r})
"""
"""The product's server; only the worker that it starts is the small one of the tests."""


def serve_command(runs: Path, port: int, **options: Any) -> list[str]:
    """The command line of `serve` with the small worker."""
    tests = str(Path(__file__).parent)
    code = SERVE.format(tests=tests, runs=str(runs), port=port, token=TOKEN, options=options)
    return [sys.executable, "-c", code]


@contextmanager
def serving(command: list[str], port: int, log: Path, host: str = "127.0.0.1", **env: str) -> Iterator[int]:
    """Run a server until the block ends; it answers something on `port` when the block begins."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **env})
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    ask(port, "/", host=host)
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, "the server did not come up"
                    time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait(20)


def ask(
    port: int,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    *,
    host: str = "127.0.0.1",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one bare request; `header_name=` is Header-Name, the path goes as it is."""
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        given = {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read()
    finally:
        connection.close()


def port_and_log(folder: Path) -> tuple[int, Path]:
    port = free_port()
    return port, folder / f"server-{port}.log"
