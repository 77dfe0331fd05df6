"""The listening half of a WebSocket (RFC 6455): enough to follow a server's events with the standard library."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from urllib.parse import urlsplit

CONTINUATION, TEXT, CLOSE, PING, PONG = 0x0, 0x1, 0x8, 0x9, 0xA
CONNECT_TIMEOUT = 30  # seconds


class Listener:
    """Yields the text messages of a WebSocket; binary ones are passed over. Use it in a `with`.

    Raises:
        OSError: the server cannot be reached, is no WebSocket, is silent for longer than `patience`, or goes away.
    """

    def __init__(self, url: str, patience: float | None = None):
        """
        Args:
            url: ws:// or wss://, with path and query.
            patience: seconds to wait for a message; None is for ever.
        """
        parts = urlsplit(url)
        secure = parts.scheme == "wss"
        port = parts.port or (443 if secure else 80)
        self.socket = socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT)
        if secure:
            self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=parts.hostname)
        self.stream = self.socket.makefile("rb")
        self._shake_hands(f"{parts.path or '/'}?{parts.query}", f"{parts.hostname}:{port}")
        self.socket.settimeout(patience)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_) -> None:
        self.stream.close()
        self.socket.close()

    def __iter__(self) -> Iterator[str]:
        message, kind = b"", CONTINUATION
        while True:
            final, code, payload = self._frame()
            if code == CLOSE:
                raise ConnectionError("the server closed the connection")
            if code == PING:
                self._answer(payload)
            if code >= CLOSE:
                continue  # control frames may come in the middle of a message
            if code != CONTINUATION:
                message, kind = b"", code
            message += payload
            if final and kind == TEXT:
                yield message.decode()

    def _shake_hands(self, path: str, host: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        self.socket.sendall("\r\n".join((*lines, "", "")).encode())
        status = self.stream.readline()
        while self.stream.readline().strip():
            pass
        if b" 101 " not in status:
            raise ConnectionError(f"no WebSocket at {host}{path}: {status.decode(errors='replace').strip()}")

    def _frame(self) -> tuple[bool, int, bytes]:
        """(last of its message, opcode, payload)."""
        first, length = self._read(2)
        if length == 126:
            (length,) = struct.unpack(">H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._read(8))
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _read(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) < count:
            raise ConnectionError("the server went away")
        return data

    def _answer(self, payload: bytes) -> None:
        mask = os.urandom(4)  # what a client sends is masked
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.socket.sendall(bytes([0x80 | PONG, 0x80 | len(payload)]) + mask + masked)
