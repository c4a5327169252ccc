"""What klein's processes say to each other over a stream socket: JSON and raw bytes, no pickle.

4 bytes           the header's length, big-endian
the header        a JSON object; "kind" names the message, "parts" the lengths of what follows
the parts         raw bytes, one after another: the images' pixels
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from socket import socket
from typing import TYPE_CHECKING, Any

from klein_cli.output.metadata import Origin
from klein_cli.recipe import Model, Recipe
from klein_cli.run.executors.worker import Drawn, DrawRequest, Failure, LoadRequest, WorkerInfo
from klein_cli.settings import Settings

if TYPE_CHECKING:
    from klein_cli.run.fallback import Pixels

Message = LoadRequest | DrawRequest | WorkerInfo | Drawn | Failure

_LENGTH = struct.Struct("!I")


def send(connection: socket, message: Message) -> None:
    """Send a message; waits until it is taken. Raises OSError when nobody is there."""
    said: dict[str, Any]
    parts: Sequence[memoryview] = ()
    if isinstance(message, Drawn):
        parts = [_bytes_of(image) for image in message.images]
        said = {
            "shapes": [image.shape for image in message.images],
            "failure": None if message.failure is None else asdict(message.failure),
            "seconds": message.seconds,
        }
    else:
        said = asdict(message)
    send_frame(connection, {"kind": type(message).__name__, **said}, parts)


def receive(connection: socket) -> Message | None:
    """Wait for the next message; None when the other side has gone, be it amid a message."""
    frame = receive_frame(connection)
    if frame is None:
        return None
    header, parts = frame
    return _READERS[header["kind"]](header, parts)


def send_frame(
    connection: socket, header: Mapping[str, Any], parts: Sequence[memoryview] = ()
) -> None:
    """Send a header, which JSON can hold, and raw parts."""
    text = json.dumps({**header, "parts": [part.nbytes for part in parts]}).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)
    for part in parts:
        connection.sendall(part)


def receive_frame(connection: socket) -> tuple[dict[str, Any], list[bytearray]] | None:
    """A header and its parts; None when the connection ends."""
    try:
        (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
        header = json.loads(_exactly(connection, length))
        return header, [_exactly(connection, size) for size in header["parts"]]
    except (EOFError, ConnectionError):
        return None


def _bytes_of(image: Pixels) -> memoryview:
    import numpy

    return numpy.ascontiguousarray(image).data.cast("B")


def _exactly(connection: socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _load_request(header: dict[str, Any], parts: list[bytearray]) -> LoadRequest:
    settings = Settings(**header["settings"])
    return LoadRequest(model=header["model"], settings=settings, threads=header["threads"])


def _draw_request(header: dict[str, Any], parts: list[bytearray]) -> DrawRequest:
    recipes = [Recipe(**recipe) for recipe in header["recipes"]]
    return DrawRequest(recipes=recipes, tiled=header["tiled"])


def _worker_info(header: dict[str, Any], parts: list[bytearray]) -> WorkerInfo:
    origin = header["origin"]
    known = Origin(
        model=Model(**origin["model"]),
        settings=Settings(**origin["settings"]),
        provenance=origin["provenance"],
    )
    return WorkerInfo(origin=known, batch_size=header["batch_size"])


def _drawn(header: dict[str, Any], parts: list[bytearray]) -> Drawn:
    import numpy

    images = [
        numpy.frombuffer(part, numpy.uint8).reshape(shape)
        for part, shape in zip(parts, header["shapes"], strict=True)
    ]
    failure = None if header["failure"] is None else Failure(**header["failure"])
    return Drawn(images=images, failure=failure, seconds=header["seconds"])


def _failure(header: dict[str, Any], parts: list[bytearray]) -> Failure:
    return Failure(**{field.name: header[field.name] for field in fields(Failure)})


_READERS: dict[str, Callable[[dict[str, Any], list[bytearray]], Message]] = {
    "LoadRequest": _load_request,
    "DrawRequest": _draw_request,
    "WorkerInfo": _worker_info,
    "Drawn": _drawn,
    "Failure": _failure,
}
