"""Runs that are started over a server that others reach post no alerts into that server's own network."""

from __future__ import annotations

import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from runs_helper import tiny_model
from tritpress.config import CompressionConfig
from tritpress.dashboard import security, webhooks
from tritpress.dashboard.api.errors import ApiError
from tritpress.dashboard.api.handlers import start
from tritpress.dashboard.security import Guard
from tritpress.dashboard.session import Session
from tritpress.dashboard.store import RunStore
from tritpress.errors import UsageError

NAMES = {
    "hooks.example.org": ["93.184.216.34"],
    "inner.example.org": ["10.0.0.7"],
    "both.example.org": ["93.184.216.34", "10.0.0.7"],
    "mapped.example.org": ["::ffff:169.254.169.254"],
    "local.example.org": ["fe80::1%eth0"],
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = socket.getaddrinfo

    def look_up(host: str, *given: Any, **named: Any) -> list[Any]:
        if host not in NAMES:
            return plain(host, None, flags=socket.AI_NUMERICHOST)  # no name server is asked
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in NAMES[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.delenv(security.TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "active", Guard("t" * 20, 5006, loopback=False))


def refusal(host: str) -> str | None:
    return webhooks.refusal(CompressionConfig(alert_webhook=f"http://{host}/hook"))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9000", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0", "10.1.2.3", "192.168.0.1",
     "169.254.169.254", "100.64.0.1", "[fd00::1]", "[2002:7f00:1::]", "[fec0::1]",
     "[64:ff9b::7f00:1]", "224.0.0.1", "inner.example.org", "INNER.example.org.",
     "both.example.org", "mapped.example.org", "local.example.org"],
)  # fmt: skip
def test_addresses_of_the_servers_own_network_are_refused(reached: None, host: str) -> None:
    assert "lies on this server's machine or in its network; --allow-webhook" in str(refusal(host))


def test_what_may_be_had(reached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("hooks.example.org") is None and refusal("93.184.216.34:8443") is None
    assert webhooks.refusal(CompressionConfig()) is None
    assert refusal("[2606:4700::1]") is refusal("[64:ff9b::5db8:d822]") is None
    assert "is not found" in str(refusal("nowhere.invalid"))
    assert "--allow-webhook" in str(refusal("nowhere.invalid"))
    monkeypatch.setattr(webhooks, "allowed", webhooks.choose(["Inner.example.org", "10.1.2.3", "[::1]"]))
    assert refusal("inner.example.org") is refusal("10.1.2.3:81") is refusal("[::1]:9") is None
    assert refusal("127.0.0.1") is not None
    monkeypatch.setattr(webhooks, "allowed", webhooks.choose(["0:0:0:0:0:0:0:1"]))
    assert refusal("[::1]:9") is None
    for bad in ("", "http://a", "a/b", "a b", "hooks.local:8080", "127.0.0.1:80", "[::1]:80"):
        with pytest.raises(UsageError, match="--allow-webhook"):
            webhooks.choose([bad])


def test_a_name_that_only_the_proxy_knows_is_its_business(
    reached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"http": "http://proxy:3128"})
    monkeypatch.setattr(urllib.request, "proxy_bypass", lambda host: host == "inner.invalid")
    assert refusal("nowhere.invalid") is None
    assert "is not found" in str(refusal("inner.invalid")), "it is asked for without the proxy"
    secure = CompressionConfig(alert_webhook="https://nowhere.invalid/hook")
    assert "is not found" in str(webhooks.refusal(secure)), "no proxy for https"
    assert refusal("10.1.2.3") is not None


def test_who_has_the_machine_posts_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import panel as pn

    assert refusal("127.0.0.1") is None
    monkeypatch.setattr(security, "active", Guard("t" * 20, 5006))
    assert refusal("127.0.0.1") is None
    monkeypatch.setattr(security, "active", Guard("t" * 20, 5006, names=frozenset({"by.a.proxy"})))
    assert refusal("127.0.0.1") is not None
    named = frozenset({"localhost", "127.0.0.1"})
    monkeypatch.setattr(security, "active", Guard("t" * 20, 5006, names=named))
    assert refusal("127.0.0.1") is None, "others do not reach it by names of this machine itself"
    monkeypatch.setattr(security, "active", None)
    monkeypatch.setenv(security.TOKEN_VARIABLE, "t" * 20)
    assert "`panel serve` cannot" in str(refusal("127.0.0.1")), "the API starts runs by it"
    monkeypatch.delenv(security.TOKEN_VARIABLE)
    assert refusal("127.0.0.1") is None
    monkeypatch.setattr(pn.config, "cookie_secret", "a secret")
    assert refusal("127.0.0.1") is not None


def test_page_and_api_start_no_such_run(reached: None, tmp_path: Path) -> None:
    model, runs = tiny_model(tmp_path / "model"), tmp_path / "runs"
    config = {"alert_webhook": "http://inner.example.org/"}
    with pytest.raises(ApiError, match="inner") as told:
        start(runs, {"model": str(model), "config": config})
    assert told.value.status == 403
    session: Any = Session(RunStore(runs))
    session.starting.start_run(str(model), config)
    (job,) = session.steering.jobs
    job.future.exception(timeout=60)
    session.steering.look(time.time())
    assert session.toasts.area.notifications[-1].message.startswith("the webhook's host inner.example.org")
    assert not runs.exists()
