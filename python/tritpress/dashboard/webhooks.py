"""Where the alerts of runs that a page or the API starts may go.

The worker posts them from the server's machine, and the run's log says what was answered: whoever may start
runs on a server that others reach could so ask about addresses that only that machine reaches. There a
webhook on this machine or in its network is refused, unless its host was allowed at the start.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from tritpress.errors import UsageError

allowed: frozenset[str] = frozenset()
"""Hosts of webhooks that this process's server allows wherever they are."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")


def choose(given: Any) -> frozenset[str]:
    """The hosts that are allowed, names or addresses. Raises `UsageError` for what is none."""
    for host in given:
        port = ":" in host and not _is_address(_plain(host))
        if not host or port or any(sign in host for sign in "/@ ?#"):
            raise UsageError(
                f"--allow-webhook {host}: give the host alone, without a port, as in hooks.example.org"
            )
    return frozenset(_plain(host) for host in given)


def refusal(config: Any) -> str | None:
    """The sentence that refuses the webhook of a run that is to be started over this server; None where there
    is none or it may be had. Looks its name up: not for the server's loop.
    """
    if config.alert_webhook is None or not _others_reach_it():
        return None
    parts = urlsplit(config.alert_webhook)
    host = _plain(parts.hostname or "")
    if host in allowed:
        return None
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        if _by_proxy(parts.scheme, parts.netloc.rpartition("@")[2]):
            return None  # it looks the name up, where that is known
        return f"the webhook's host {host} is not found: name one that is; {_advice()}"
    if all(_is_public(str(where[0])) for *_, where in found):
        return None
    return (
        f"the webhook's host {host} lies on this server's machine or in its network; {_advice()}"
    )


def _advice() -> str:
    from tritpress.dashboard import security

    if security.active is None:
        return "`tritpress dashboard --allow-webhook` could allow it, `panel serve` cannot"
    return "--allow-webhook allows it at the server's start"


def _by_proxy(scheme: str, host: str) -> bool:
    """Whether the worker's post to a host, with its port where one is given, goes by a proxy of the
    environment (`runs.outbox` posts by urllib, which asks in the same words)."""
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


def _others_reach_it() -> bool:
    """Whether others than who has this machine reach the server; a bare `panel serve` acts for them where
    people sign in, and where the API asks for the environment's token.
    """
    from tritpress.dashboard import security

    guard = security.active
    if guard is not None:
        return not guard.loopback or any(not security.is_loopback(name) for name in guard.names)
    if os.environ.get(security.TOKEN_VARIABLE):
        return True
    panel = sys.modules.get("panel")
    return panel is not None and bool(panel.config.cookie_secret)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_site_local:
            return False
        inner = address.ipv4_mapped or address.sixtofour  # the addresses of IPv4 that it stands for
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    return address.is_global and not address.is_multicast


def _plain(host: str) -> str:
    """A host as it is compared: an address in its one form, a name in small letters."""
    host = host.strip().strip("[]").rstrip(".").lower()
    return str(ipaddress.ip_address(host)) if _is_address(host) else host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
