"""Who gets in: the token, foreign pages and names, addresses beyond loopback, and a bare `panel serve`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser_helpers import free_port
from dashboard_log import make_run, write_run
from server_helper import MAIN, TOKEN, ask, others_address, port_and_log, serve_command, serving
from tritpress.dashboard import security
from tritpress.dashboard.security import Guard, host_name, is_loopback, make_guard, page_rights
from tritpress.errors import UsageError

WS = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec_websocket_version": "13",
    "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec_websocket_protocol": "bokeh, x",
}


# The rules alone


def test_names_of_this_machine() -> None:
    for name in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"):
        assert is_loopback(name), name
    for name in ("0.0.0.0", "::", "192.0.2.7", "localhost.evil.example", "127.0.0.1.evil.example", "", "1"):
        assert not is_loopback(name), name
    assert host_name("LocalHost:5006") == "localhost"
    assert host_name("[::1]:5006") == "::1" and host_name("::1") == "::1"


def test_a_guard_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--token or --password"):
        make_guard("0.0.0.0", 1)
    with pytest.raises(UsageError, match="--no-token"):
        make_guard("0.0.0.0", 1, require_token=False)
    with pytest.raises(UsageError, match="--no-token"):
        make_guard("127.0.0.1", 1, token="long enough to be one", require_token=False)
    with pytest.raises(UsageError, match="--token must have at least 16"):
        make_guard("127.0.0.1", 1, token="fifteen letters")
    with pytest.raises(UsageError, match="--password must have at least 8"):
        make_guard("127.0.0.1", 1, password="letters")
    one, other = make_guard("127.0.0.1", 1), make_guard("127.0.0.1", 1)
    assert one.token and len(one.token) >= 32 and one.token != other.token
    assert one.cookie != make_guard("127.0.0.1", 2).cookie and one.token not in one.cookie_value


def test_what_a_guard_lets_in() -> None:
    guard = make_guard("127.0.0.1", 5006, token=TOKEN)
    assert guard.admits({"Authorization": f"Bearer {TOKEN}"}, {})
    assert guard.admits({}, {guard.cookie: guard.cookie_value})
    again = make_guard("127.0.0.1", 5006, token=TOKEN)
    assert again.admits({}, {guard.cookie: guard.cookie_value}), "it outlives a new start"
    for headers, cookies in (
        ({}, {}),
        ({"Authorization": "Bearer "}, {}),
        ({"Authorization": f"Basic {TOKEN}"}, {}),
        ({"Authorization": "Bearer wrong"}, {guard.cookie: guard.cookie_value}),
        ({}, {guard.cookie: TOKEN}),
        ({}, {guard.cookie: make_guard("127.0.0.1", 5006, token=TOKEN + "x").cookie_value}),
        ({}, {guard.cookie: ""}),
        ({}, {"tritpress_1": guard.cookie_value}),
    ):
        assert not guard.admits(headers, cookies), (headers, cookies)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"Host": "127.0.0.1:5006"}, True),
        ({"Host": "localhost:9000"}, True),  # through a tunnel
        ({"Host": "[::1]:5006", "Origin": "http://[::1]:5006", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Host": "localhost:5006", "Sec-Fetch-Site": "none"}, True),
        ({"Host": "evil.example:5006"}, False),
        ({"Host": ""}, False),
        ({}, False),
        ({"Host": "192.0.2.7:5006"}, False),
        ({"Host": "localhost:5006", "Origin": "http://localhost:8888"}, False),
        ({"Host": "localhost:5006", "Origin": "null"}, False),
        ({"Host": "localhost:5006", "Origin": "http://evil.example"}, False),
        ({"Host": "localhost:5006", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Host": "localhost:5006", "Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_foreign_requests(headers: dict[str, str], passes: bool) -> None:
    refusal = make_guard("127.0.0.1", 5006).foreign(headers)
    assert (refusal is None) == passes
    assert refusal is None or refusal.status == 403


def test_names_of_a_server_that_others_reach() -> None:
    guard = make_guard("0.0.0.0", 5006, token=TOKEN, hosts=["Press.Example:443"])
    for name in ("192.0.2.7", "press.example", socket.gethostname(), "127.0.0.1"):
        assert guard.foreign({"Host": f"{name}:5006"}) is None, name
    assert guard.foreign({"Host": "evil.example"}) is not None


def test_rights_of_a_page_without_a_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["panel", "serve", "dashboard"])
    monkeypatch.delenv("BOKEH_ALLOW_WS_ORIGIN", raising=False)

    def rights(remote: str, host: str = "localhost:5006", **headers: str) -> security.Rights:
        real = SimpleNamespace(remote_ip=remote, headers={"Host": host, **headers}, cookies={})
        forged = {"Host": "localhost:5006"}
        return page_rights(SimpleNamespace(_request=real, headers=forged, remote_ip="127.0.0.1", cookies={}))

    assert rights("127.0.0.1").may_act and rights("::1", "[::1]:5006").may_act
    for refused in (
        rights("192.0.2.7"),
        rights(""),
        rights("127.0.0.1", "press.example"),
        rights("127.0.0.1", **{"X-Forwarded-For": "192.0.2.7"}),
        rights("127.0.0.1", **{"Forwarded": "for=192.0.2.7"}),
        page_rights(None),
    ):
        assert not refused.may_act and refused.why_not.endswith(".")
    # Told to answer to another name, it stands behind a proxy, even one that says nothing of itself.
    monkeypatch.setattr(sys, "argv", ["panel", "serve", "--allow-websocket-origin=press.example:443"])
    assert not rights("127.0.0.1").may_act
    monkeypatch.setattr(sys, "argv", ["panel", "serve", "--allow-websocket-origin", "localhost:5006"])
    assert rights("127.0.0.1").may_act
    monkeypatch.setattr(security, "active", Guard(TOKEN, 5006))
    assert rights("192.0.2.7").may_act, "nothing gets as far as a page without the token"


def test_rights_of_who_signed_in_with_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    import panel as pn
    from tornado.web import create_signed_value

    monkeypatch.setenv("BOKEH_COOKIE_SECRET", "a secret of the tests")
    assert pn.config.cookie_secret

    def rights(**cookies: str) -> bool:
        headers = {"Host": "press.example", "X-Forwarded-For": "192.0.2.7"}
        return page_rights(SimpleNamespace(remote_ip="192.0.2.7", headers=headers, cookies=cookies)).may_act

    user = create_signed_value("a secret of the tests", "user", "ann").decode()
    assert rights(user=user)
    assert not rights(user=user, is_guest="1")
    assert not rights(user=create_signed_value("another secret", "user", "ann").decode())
    assert not rights(user=create_signed_value("a secret of the tests", "user", "guest").decode())
    assert not rights(user="ann") and not rights()


# A server of its own


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs, "r1", name="first")
    port, log = port_and_log(tmp_path_factory.mktemp("log"))
    with serving(serve_command(runs, port), port, log):
        yield port


def cookie_of(headers: dict[str, str]) -> str:
    return headers["set-cookie"].partition(";")[0]


def test_nothing_is_answered_without_the_token(served: int) -> None:
    for path in ("/", "/dashboard", "/static/js/bokeh.min.js", "/api/v1/runs", "/no/path", "/dashboard/ws"):
        status, headers, body = ask(served, path)
        assert status == 401 and b"Traceback" not in body, path
        assert "Bearer" in headers["www-authenticate"]
    status, _, body = ask(served, "/dashboard?run=r1", accept="text/html")
    assert status == 401 and b"tritpress dashboard" in body and b"first" not in body
    assert ask(served, "/dashboard?token=wrong")[0] == 401
    assert ask(served, "/dashboard/ws", **WS)[0] == 401
    assert ask(served, "/api/v1/runs/r1/commands", "POST", b"{}")[0] == 401


def test_the_token_becomes_a_cookie(served: int) -> None:
    status, headers, _ = ask(served, f"/dashboard?run=r1&token={TOKEN}&tab=progress&page=2")
    assert status == 302 and headers["location"] == "/dashboard?run=r1&tab=progress&page=2"
    set_cookie = headers["set-cookie"]
    assert "HttpOnly" in set_cookie and "SameSite=Strict" in set_cookie and TOKEN not in set_cookie
    cookie = cookie_of(headers)
    status, _, body = ask(served, "/dashboard?run=r1", cookie=cookie)
    assert status == 200 and TOKEN.encode() not in body
    assert cookie.partition("=")[2].encode() not in body, "the page's scripts cannot read the cookie"
    assert ask(served, "/api/v1/runs", cookie=cookie)[0] == 200
    assert ask(served, "/dashboard/ws", cookie=cookie, origin=f"http://127.0.0.1:{served}", **WS)[0] == 101
    # A link with the token on another site: the way in is a page, for a redirect would keep the cookie back.
    status, headers, body = ask(served, f"/dashboard?token={TOKEN}", sec_fetch_site="cross-site")
    assert status == 200 and "set-cookie" in headers and b'url=/dashboard"' in body
    # Not for the API: a token in an address ends up in logs.
    assert ask(served, f"/api/v1/runs?token={TOKEN}")[0] == 401
    assert ask(served, f"//evil.example/dashboard?token={TOKEN}")[1].get("location", "/") == "/"


def test_foreign_pages_and_names_are_refused(served: int) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    cookie = {"cookie": cookie_of(ask(served, f"/dashboard?token={TOKEN}")[1])}
    own = f"http://127.0.0.1:{served}"
    for allowed in (bearer, cookie):
        for path, more in (("/dashboard", {}), ("/api/v1/runs", {}), ("/dashboard/ws", WS)):
            for foreign in (
                {"origin": "http://evil.example"},
                {"origin": f"http://127.0.0.1:{served + 1}"},
                {"origin": "null"},
                {"host": f"evil.example:{served}"},
                {"host": f"evil.example:{served}", "origin": f"http://evil.example:{served}"},
                {"sec_fetch_site": "cross-site"},
                {"sec_fetch_site": "same-site", "origin": own},
            ):
                if "host" in foreign:  # http.client sends its own Host beside: the bare socket does it
                    assert ask_as(served, path, {**allowed, **more, **foreign}) == 403
                else:
                    assert ask(served, path, **allowed, **more, **foreign)[0] == 403, (path, foreign)
    assert ask(served, "/api/v1/runs/r1/stream", **bearer, **WS, origin="http://evil.example")[0] == 403
    assert ask(served, "/api/v1/runs/r1/stream", **bearer, **WS, origin=own)[0] == 101
    seen = {**cookie, "accept": "text/html"}
    status, _, body = ask(served, "/dashboard?run=r1", **seen, sec_fetch_site="cross-site")
    assert status == 403 and b'href="/dashboard?run=r1"' in body


def ask_as(port: int, path: str, headers: dict[str, str]) -> int:
    """The status of a request whose Host header is one of `headers`."""
    lines = [f"GET {path} HTTP/1.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        plain.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(plain.recv(64).split()[1])


# The command


def run_cli(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tritpress", "dashboard", *words]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TRITPRESS_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**clean, **env})


def test_what_the_command_refuses(tmp_path: Path) -> None:
    for words in (
        ["--address", "0.0.0.0"],
        ["--address", "::"],
        ["--address", "0.0.0.0", "--no-token"],
        ["--token", "short"],
        ["--no-token", "--token", "long enough to be one"],
    ):
        answer = run_cli("--runs", str(tmp_path), "--port", str(free_port()), *words)
        assert answer.returncode == 2, (words, answer)
        assert answer.stdout == "" and answer.stderr.count("\n") <= 2 and "Traceback" not in answer.stderr


def test_a_password_elsewhere_than_on_loopback(tmp_path: Path) -> None:
    write_run(tmp_path, "r1", name="first")
    port, log = port_and_log(tmp_path)
    words = ["--runs", str(tmp_path), "--port", str(port), "--address", "0.0.0.0"]
    command = [sys.executable, "-m", "tritpress", "dashboard", *words]
    host = others_address() or "127.0.0.1"
    with serving(command, port, log, host=host, TRITPRESS_PASSWORD="open sesame"):
        assert "token=" not in log.read_text()
        form = {"content_type": "application/x-www-form-urlencoded"}
        status, _, body = ask(port, "/dashboard?run=r1", host=host, accept="text/html")
        assert status == 401 and b'type="password"' in body and b'value="/dashboard?run=r1"' in body
        wrong = b"password=wrong&next=/dashboard"
        status, headers, _ = ask(port, "/login", "POST", wrong, host=host, **form)
        assert status == 401 and "set-cookie" not in headers
        right = b"password=open+sesame&next="
        evil = {**form, "origin": "http://evil.example"}
        assert ask(port, "/login", "POST", right, host=host, **evil)[0] == 403
        for to, goes in (("/dashboard?run=r1", "/dashboard?run=r1"), ("//evil.example", "/"), ("x", "/")):
            body = right + to.replace("?", "%3F").encode()
            status, headers, _ = ask(port, "/login", "POST", body, host=host, **form)
            assert (status, headers["location"]) == (303, goes)
        assert ask(port, "/dashboard", host=host, cookie=cookie_of(headers))[0] == 200
        for _ in range(10):
            status = ask(port, "/login", "POST", wrong, host=host, **form)[0]
        assert status == 429
        assert ask(port, "/login", "POST", right + b"/", host=host, **form)[0] == 429


# A bare `panel serve`


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """`panel serve dashboard` on every address; port and the machine's own address."""
    host = others_address()
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs, "r1", name="first")
    make_run(runs, "live", name="at work")
    port, log = port_and_log(tmp_path_factory.mktemp("log"))
    command = [sys.executable, "-m", "panel", "serve", MAIN, "--port", str(port)]
    command += ["--allow-websocket-origin", f"127.0.0.1:{port}"]
    command += ["--allow-websocket-origin", f"{host}:{port}"] if host else []
    command += ["--plugins", "tritpress.dashboard.api"]
    with serving(command, port, log, TRITPRESS_RUNS=str(runs), TRITPRESS_TOKEN=TOKEN):
        yield port, host or ""


def test_the_api_under_a_bare_panel_serve(bare: tuple[int, str]) -> None:
    port, _ = bare
    assert ask(port, "/api/v1/runs")[0] == 401
    assert ask(port, "/api/v1/runs", authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(port, "/api/v1/runs", authorization=f"Bearer {TOKEN}", origin="http://evil.example")[0] == 403
    assert ask(port, "/api/v1/runs/live/stream", **WS)[0] == 401
    assert ask(port, "/api/v1/runs/live/commands", "POST", b"{}")[0] == 401
