"""One server as the client sees it: its address, the token, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import threading
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from tritpress.errors import TritpressError, UsageError

TOKEN_VARIABLE = "TRITPRESS_TOKEN"
BASE = "/api/v1"


class ClientError(TritpressError):
    """The server's answer to what it would not do: `status` (0: it could not be reached) and its sentence."""

    def __init__(self, status: int, sentence: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.body = body or {}


class Server:
    """Where the API is and how to be let in. Connections are kept, one for each thread."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 30.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no address of a dashboard: http://HOST:PORT")
        try:
            port = parts.port
        except ValueError:
            raise UsageError(f"{url!r} has no usable port") from None
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self.secure else 80)
        self.prefix = parts.path.rstrip("/").removesuffix("/dashboard")
        given = parse_qs(parts.query).get("token", [None])[-1]
        self.token = token or given or os.environ.get(TOKEN_VARIABLE) or None
        self.timeout = timeout
        self._kept = threading.local()

    def __repr__(self) -> str:
        return f"Server({self.address})"  # never the token

    @property
    def address(self) -> str:
        """http://host:port of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.prefix}"

    def headers(self) -> dict[str, str]:
        """The headers that let a request in."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def path(self, *parts: str, **query: Any) -> str:
        """The path of an endpoint: /api/v1/runs/..., each part quoted."""
        given = {key: value for key, value in query.items() if value is not None}
        path = "/".join([f"{self.prefix}{BASE}", *(quote(part, safe="") for part in parts)])
        return path + (f"?{urlencode(given)}" if given else "")

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        timeout: float | None = None,
        *,
        repeatable: bool = False,
    ) -> dict[str, Any]:
        """The JSON object that the server answers. Raises `ClientError`."""
        data, _ = self.ask_raw(method, path, body, timeout, repeatable=repeatable)
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ClientError(0, f"{self.address} does not answer as a tritpress dashboard does")
        return found

    def ask_raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        timeout: float | None = None,
        *,
        repeatable: bool = False,
    ) -> tuple[bytes, http.client.HTTPMessage]:
        """The bytes of an answer and its headers. Raises `ClientError`.

        What is `repeatable` (every GET is) goes over the connection that was kept, and is asked anew when the
        server had closed that meanwhile.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = self.headers() | ({"Content-Type": "application/json"} if data is not None else {})
        try:
            kept = repeatable or method == "GET"
            request = (method, path, data, headers, timeout or self.timeout)
            status, answered, found = self._exchange(kept, *request)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ClientError(0, f"cannot reach {self.address}: {error or type(error).__name__}") from None
        if 200 <= status < 300:
            return answered, found
        raise refused(status, answered)

    def close(self) -> None:
        """Close this thread's connection; a later request opens another."""
        kept, self._kept.connection = getattr(self._kept, "connection", None), None
        if kept is not None:
            kept.close()

    def _exchange(self, repeatable: bool, *request: Any) -> tuple[int, bytes, http.client.HTTPMessage]:
        kept = getattr(self._kept, "connection", None)
        if kept is not None and repeatable:
            with contextlib.suppress(OSError, http.client.HTTPException):  # the server closed it: ask anew
                return self._on(kept, *request)
        self.close()
        self._kept.connection = fresh = self.connect(request[-1])
        return self._on(fresh, *request)

    def _on(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        data: bytes | None,
        headers: dict[str, str],
        timeout: float,
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A new connection to the server, straight, by no proxy."""
        if self.secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)


def refused(status: int, data: bytes) -> ClientError:
    """The error in an answer."""
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    sentence = body.get("error") or f"the server answered {status}"
    return ClientError(status, str(sentence), body)
