"""A small WebSocket client (RFC 6455) for one stream of text messages; no extensions, no fragments sent."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import Iterator

from tritpress.client.http import ClientError, Server, refused

ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

MESSAGE = 64 << 20
"""Bytes of a message, at most."""

SILENCE = 60.0
"""Seconds without a word, not even a ping, after which the other side is taken for gone."""


class WebSocket:
    """An open WebSocket. Raises `ClientError` with the server's sentence when it is refused."""

    def __init__(self, server: Server, path: str) -> None:
        connection = server.connect(server.timeout)
        key = base64.b64encode(os.urandom(16))
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key.decode(),
            **server.headers(),
        }
        try:
            connection.request("GET", path, headers=headers)
            self.socket: socket.socket = connection.sock
            # Read by hand: the bytes behind the head are the first frames, which must not end up elsewhere.
            self.rest = b""
            status, fields, self.rest = self._head()
        except OSError as error:
            connection.close()
            raise ClientError(0, f"cannot reach {server.address}: {error}") from None
        if status != 101:
            body = self._body(fields)
            self.close()
            raise refused(status, body)
        right = base64.b64encode(hashlib.sha1(key + ACCEPT).digest()).decode()
        if fields.get("sec-websocket-accept") != right:
            self.close()
            raise ClientError(0, f"{server.address} does not answer as a WebSocket does")
        self.socket.settimeout(SILENCE)

    def messages(self) -> Iterator[bytes]:
        """Each message until the server closes. Raises `ClientError` (status 0) when it breaks off."""
        parts: list[bytes] = []
        try:
            while True:
                last, kind, data = self._frame()
                if kind == PING:
                    self._send(PONG, data)
                elif kind == CLOSE:
                    self._send(CLOSE, data[:2])
                    return
                elif kind != PONG:
                    parts.append(data)
                    if sum(map(len, parts)) > MESSAGE:
                        raise ClientError(0, f"a message has more than {MESSAGE:,} bytes")
                    if last:
                        yield b"".join(parts)
                        parts = []
        except OSError as error:
            raise ClientError(0, f"the stream broke off: {error or type(error).__name__}") from None

    def close(self) -> None:
        """Close it without waiting for the server."""
        with contextlib.suppress(OSError):
            self._send(CLOSE, b"\x03\xe8")
        self.socket.close()

    def _frame(self) -> tuple[bool, int, bytes]:
        first, second = self._take(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._take(8))
        if size > MESSAGE:
            raise ClientError(0, f"a message has more than {MESSAGE:,} bytes")
        mask = self._take(4) if second & 0x80 else None
        data = self._take(size)
        return bool(first & 0x80), first & 0x0F, masked(data, mask) if mask else data

    def _send(self, kind: int, data: bytes) -> None:
        mask = os.urandom(4)
        self.socket.sendall(bytes([0x80 | kind, 0x80 | len(data)]) + mask + masked(data, mask))

    def _take(self, size: int) -> bytes:
        parts, missing = [self.rest[:size]], size - len(self.rest[:size])
        self.rest = self.rest[size:]
        while missing:
            chunk = self.socket.recv(min(missing, 1 << 20))
            if not chunk:
                raise ConnectionError("the server closed the connection")
            parts.append(chunk[:missing])
            missing -= len(chunk)
        return b"".join(parts)

    def _head(self) -> tuple[int, dict[str, str], bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = self.socket.recv(4096)
            if not chunk or len(data) > 64 << 10:
                raise ConnectionError("no answer")
            data += chunk
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) < 2 or not words[1].isdigit():
            raise ConnectionError("no HTTP answer")
        fields = {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
        return int(words[1]), fields, rest

    def _body(self, fields: dict[str, str]) -> bytes:
        length = fields.get("content-length", "")
        try:
            return self._take(min(int(length), 1 << 20)) if length.isdigit() else b""
        except OSError:
            return b""


def masked(data: bytes, mask: bytes) -> bytes:
    """`data` xor the mask, repeated."""
    size = len(data)
    whole = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")
