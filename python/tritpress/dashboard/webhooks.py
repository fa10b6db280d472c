"""Where the alerts of runs that a page or the API starts may go.

The worker posts them from the server's machine, and the run's log says what was answered: whoever may start
runs on a server that others reach could so ask about addresses that only that machine reaches. There a
webhook on this machine or in its network is refused, unless its host was allowed at the start.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

from tritpress.errors import UsageError

allowed: frozenset[str] = frozenset()
"""Hosts of webhooks that this process's server allows wherever they are."""


def choose(given: Any) -> frozenset[str]:
    """The hosts that are allowed, names or addresses. Raises `UsageError` for what is none."""
    for host in given:
        if not host or any(sign in host for sign in "/@ ?#"):
            raise UsageError(f"--allow-webhook {host}: give the host alone, as in hooks.example.org")
    return frozenset(_plain(host) for host in given)


def refusal(config: Any) -> str | None:
    """The sentence that refuses the webhook of a run that is to be started over this server; None where there
    is none or it may be had. Looks its name up: not for the server's loop.
    """
    if config.alert_webhook is None or not _others_reach_it():
        return None
    host = _plain(urlsplit(config.alert_webhook).hostname or "")
    if host in allowed:
        return None
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return f"the webhook's host {host} is not found: name one that is"
    if all(_is_public(str(where[0])) for *_, where in found):
        return None
    return (
        f"the webhook's host {host} lies on this server's machine or in its network; --allow-webhook allows "
        "it at the server's start"
    )


def _others_reach_it() -> bool:
    """Whether others than who has this machine reach the server; a bare `panel serve` acts for them where
    people sign in.
    """
    from tritpress.dashboard import security

    guard = security.active
    if guard is not None:
        return not guard.loopback or bool(guard.names)
    panel = sys.modules.get("panel")
    return panel is not None and bool(panel.config.cookie_secret)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_global and not address.is_multicast


def _plain(host: str) -> str:
    return host.strip().strip("[]").rstrip(".").lower()
