"""Talking to an engine: one HTTP request a connection, by hand.

Python's own client takes longer to import than an engine on this machine to answer.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klein_cli.errors import KleinError
from klein_cli.run.resident.place import connected

_LINE = 65_536
HELLO_SECONDS = 1.0


class EngineError(KleinError):
    """The engine answers with an error, of this HTTP `status`, or not at all, which is 0."""

    def __init__(self, status: int, message: str, hint: str, retry_after: float = 0.0) -> None:
        super().__init__(message, hint)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an engine is: the socket of its owner, or a host with perhaps a `key`."""

    path: Path | None = None
    host: str = ""
    port: int = 0
    key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"http://{self.host}:{self.port}"

    def connect(self) -> socket.socket | None:
        """A connection; None where nobody answers."""
        if self.path is not None:
            return connected(self.path)
        try:
            return socket.create_connection((self.host, self.port), timeout=5)
        except OSError:
            return None


@contextmanager
def opened(
    place: Place, method: str, route: str, body: bytes = b"", *, seconds: float | None = None
) -> Iterator[socket.socket]:
    """The connection, where the body of the answer is next; `seconds` bound every wait.

    Raises EngineError for an answer that is an error, or none.
    """
    connection = place.connect()
    if connection is None:
        raise EngineError(0, f"no engine answers at {place}", "klein serve starts one")
    with connection:
        connection.settimeout(seconds)
        try:
            ask(connection, place, method, route, body)
            check_answer(connection)
        except OSError as error:
            raise EngineError(
                0, f"the engine at {place} does not answer: {error}", "klein ps shows what it does"
            ) from None
        yield connection


def ask(connection: socket.socket, place: Place, method: str, route: str, body: bytes) -> None:
    """Send a request. Raises OSError."""
    key = "" if place.key is None else f"Authorization: Bearer {place.key}\r\n"
    head = (
        f"{method} {route} HTTP/1.0\r\nHost: {place.host or 'localhost'}\r\n{key}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode("ascii") + body)


def check_answer(connection: socket.socket) -> None:
    """Read an answer's head. Raises EngineError unless it is a good one, OSError."""
    status, headers = read_head(connection)
    if status == 200:
        return
    try:
        error = json.loads(rest(connection))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        error = f"the engine answers with {status}"
    wait = headers.get("retry-after", "0")
    seconds = float(wait) if wait.isdigit() else 0.0
    raise EngineError(status, str(error), "klein ps shows what it does", seconds)


def asked(place: Place, method: str, route: str, *, seconds: float | None = None) -> Any:
    """The JSON that a route answers with. Raises EngineError."""
    with opened(place, method, route, seconds=seconds) as connection:
        try:
            return json.loads(rest(connection))
        except (OSError, ValueError):
            raise EngineError(
                0, f"what answers at {place} is no engine of klein's", "check --server"
            ) from None


def read_head(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """An answer's status and headers, and not a byte of what follows. Raises OSError."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        peeked = connection.recv(_LINE, socket.MSG_PEEK)
        end = (data + peeked).find(b"\r\n\r\n")
        wanted = len(peeked) if end < 0 else end + 4 - len(data)
        if not peeked or len(data) > _LINE:
            raise ConnectionError("it hung up")
        data += connection.recv(wanted)
    first, *lines = data.decode("latin-1").strip().split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
    }
    status = first.split(" ")[1:2]
    return int(status[0]) if status and status[0].isdigit() else 0, headers


def rest(connection: socket.socket) -> bytes:
    """All that is still to come. Raises OSError."""
    pieces = []
    while piece := connection.recv(_LINE):
        pieces.append(piece)
    return b"".join(pieces)
