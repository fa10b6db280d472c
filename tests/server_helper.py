"""Servers of the page and its API in processes of their own, for tests that come to them as strangers do."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import free_port
from tritpress.client import Client, ClientError

TOKEN = "token-of-the-tests"

MAIN = str(Path(__file__).parents[1] / "dashboard")
"""What `panel serve` serves from the repository."""

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def port(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number, log = port_and_log(tmp_path_factory.mktemp("log"))
    with serving(serve_command(runs, number), number, log):
        yield number


@pytest.fixture(scope="module")
def client(port: int) -> Client:
    return Client(f"http://127.0.0.1:{port}", TOKEN)


def refusal(action: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        action()
    return caught.value


def others_address() -> str | None:
    """An address of this machine that is not loopback; None when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address would be used
            address = str(probe.getsockname()[0])
        except OSError:
            address = ""
    if not address or address.startswith("127."):
        try:
            known = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        except OSError:
            return None
        found = sorted(str(info[4][0]) for info in known)
        address = next((one for one in found if not one.startswith("127.")), "")
    return address or None
