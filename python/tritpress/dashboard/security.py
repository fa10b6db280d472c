"""Who may see and who may act: the rules alone, without a server; `gate.py` puts them before every request.

`tritpress dashboard` installs a `Guard`: nothing passes it without the token, from a foreign page, or under a
foreign name of this host. A bare `panel serve` has no guard, so each page asks `page_rights` for itself.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tritpress.errors import UsageError

TOKEN_VARIABLE = "TRITPRESS_TOKEN"

LOOPBACK_NAMES = ("localhost", "localhost.localdomain")

FORWARDED = ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Forwarded", "Via")
"""Headers that a proxy adds: who asks sits behind it, wherever that is."""

LEAST_PASSWORD, LEAST_TOKEN = 8, 16
"""Characters that a password or token of one's own must have: wrong passwords are held to a few a minute,
wrong tokens are not counted.
"""


@dataclass(frozen=True)
class Rights:
    """Whether a page may change anything, and if not, the sentence that says why."""

    may_act: bool
    why_not: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: `status` 401 or 403 and a sentence."""

    status: int
    sentence: str
    cross_site: bool = False  # a link followed from another site: following it again from here is all right


@dataclass(frozen=True)
class Guard:
    """The rules of one server.

    `token` None asks for none (a server on loopback that was started so). `names` are further names that this
    server may be reached by, beside IP addresses and the machine's own names.
    """

    token: str | None
    port: int
    loopback: bool = True
    password: str | None = None
    names: frozenset[str] = frozenset()

    @property
    def cookie(self) -> str:
        """The cookie's name; cookies know no ports, so that two servers of a host need two names."""
        return f"tritpress_{self.port}"

    @property
    def cookie_value(self) -> str:
        """What the cookie holds: not the token, which a cookie sent to another port would give away.

        It depends on the token alone: pages go on when a server is started again with the same one.
        """
        return _derived(self.token or "")

    def foreign(self, headers: Mapping[str, str]) -> Refusal | None:
        """The refusal of a request under a foreign host name or from a page of another origin."""
        host = headers.get("Host", "")
        name = host_name(host)
        if not self.known_host(name):
            return Refusal(
                403,
                f"this server is not known as {name!r}"
                + ("" if self.loopback else ": start it with --allow-host to name it so"),
            )
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Refusal(403, f"requests from pages of {origin} are refused")
        site = headers.get("Sec-Fetch-Site")
        if site is not None and site not in ("same-origin", "none"):
            return Refusal(403, "requests from other sites are refused", cross_site=origin is None)
        return None

    def known_host(self, name: str) -> bool:
        """Whether that is a name of this server; a foreign one means that a name was bent to our address."""
        if is_loopback(name) or name in self.names:
            return True
        return not self.loopback and (_address(name) is not None or name in machine_names())

    def admits(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Whether the request carries the token (`Authorization: Bearer TOKEN`) or the cookie for it."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return same(given.strip(), self.token)
        return same(cookies.get(self.cookie, ""), self.cookie_value)

    def is_token(self, given: str) -> bool:
        """Whether `given` is the token."""
        return self.token is not None and same(given, self.token)

    def is_password(self, given: str) -> bool:
        """Whether `given` is the password, where there is one."""
        return self.password is not None and same(given, self.password)


active: Guard | None = None
"""The guard of this process's server; None under a bare `panel serve`."""


@functools.cache
def _derived(token: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", token.encode(), b"tritpress page cookie", 200_000).hex()


def new_token() -> str:
    """A token that nobody guesses: 192 bits."""
    return secrets.token_urlsafe(24)


def same(given: str, right: str) -> bool:
    """Compare without telling by the time it takes how much was right."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass"))


def make_guard(
    address: str,
    port: int,
    *,
    token: str | None = None,
    password: str | None = None,
    require_token: bool = True,
    hosts: Collection[str] = (),
) -> Guard:
    """The guard of a server at that address; a token is made when none is given.

    Raises `UsageError` for an address other than loopback without a token or password of the user's own, for
    one of these that is too short, and where no token is to be asked for although others can reach it.
    """
    for what, given, least in (("token", token, LEAST_TOKEN), ("password", password, LEAST_PASSWORD)):
        if given is not None and len(given) < least:
            raise UsageError(f"--{what} must have at least {least} characters")
    loopback = is_loopback(address)
    if not loopback and not require_token:
        raise UsageError(f"--no-token is for 127.0.0.1 alone; on {address} give --token or --password")
    if not loopback and token is None and password is None:
        raise UsageError(
            f"others can reach a server on {address}: give --token or --password (or {TOKEN_VARIABLE} in the "
            "environment), or leave --address out"
        )
    if not require_token and (token is not None or password is not None):
        raise UsageError("--no-token leaves out what --token and --password ask for: give one or the other")
    names = frozenset(host_name(host) for host in hosts)
    return Guard((token or new_token()) if require_token else None, port, loopback, password, names)


def page_rights(request: Any) -> Rights:
    """The rights of a page opened by `request` (that of Bokeh's session context; None: not known).

    Behind a guard every page may act, for nothing else gets through. Without one a page may act when the
    request came over loopback, by no proxy, or when Panel's own authentication knows the user.
    """
    if active is not None:
        return Rights(True)
    if request is None:
        return Rights(False, "It is not known where this page is shown.")
    # The session's own headers may come from a token that the browser sends: the request's are the real ones.
    request = getattr(request, "_request", request)
    headers = getattr(request, "headers", None) or {}
    if panel_user(request) is not None:
        return Rights(True)
    advice = "`tritpress dashboard` asks for a token and may act; so does `panel serve` with --basic-auth."
    if any(name in headers for name in FORWARDED):
        return Rights(False, f"This page came through a proxy and nobody has signed in. {advice}")
    remote = str(getattr(request, "remote_ip", "") or "")
    if not is_loopback(remote):
        return Rights(False, f"This page is shown beyond this machine and nobody has signed in. {advice}")
    foreign = [name for name in (host_name(headers.get("Host", "")), *announced()) if not is_loopback(name)]
    if foreign:
        return Rights(False, f"This page is served as {foreign[0]} and nobody has signed in. {advice}")
    return Rights(True)


def panel_user(request: Any) -> str | None:
    """Who has signed in with Panel's authentication; None for nobody and for guests."""
    panel = sys.modules.get("panel")
    cookies = getattr(request, "cookies", None) or {}
    values = {key: getattr(morsel, "value", morsel) for key, morsel in cookies.items()}
    if panel is None or "user" not in values or values.get("is_guest"):
        return None
    secret = panel.config.cookie_secret
    if not secret:
        return None
    from tornado.web import decode_signed_value

    user = decode_signed_value(secret, "user", values["user"])
    return user.decode("utf-8", "replace") if user and user != b"guest" else None


def announced() -> list[str]:
    """Names by which a bare `panel serve` was told that its pages may be reached (as behind a proxy)."""
    found = os.environ.get("BOKEH_ALLOW_WS_ORIGIN", "").split(",")
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option == "--allow-websocket-origin":
            found.append(value if equals else next(arguments, ""))
    return [host_name(name.strip()) for name in found if name.strip()]


def host_name(host: str) -> str:
    """The name or address in a Host header, without the port and the brackets of IPv6, in small letters."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


def is_loopback(name: str) -> bool:
    """Whether that name or address is this machine itself and nothing else."""
    address = _address(name)
    if address is None:
        return name.lower().rstrip(".") in LOOPBACK_NAMES
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def machine_names() -> set[str]:
    """The names that this machine calls itself by."""
    name = socket.gethostname().lower()
    return {name, f"{name}.local"}


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
