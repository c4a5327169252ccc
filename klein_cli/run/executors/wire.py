"""What klein's processes say to each other over a stream socket: JSON and raw bytes, no pickle.

4 bytes           the header's length, big-endian
the header        a JSON object; "kind" names the message, "parts" the lengths of what follows
the parts         raw bytes, one after another: images' pixels, or the files of given images
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, replace
from socket import socket
from typing import TYPE_CHECKING, Any, get_args

from klein_cli.run.executors.worker import Drawn, DrawRequest, Failure, LoadRequest, WorkerInfo
from klein_cli.tables import built

if TYPE_CHECKING:
    from klein_cli.run.fallback import Pixels

Message = LoadRequest | DrawRequest | WorkerInfo | Drawn | Failure

_KINDS = {kind.__name__: kind for kind in get_args(Message)}
_LENGTH = struct.Struct("!I")


def send(connection: socket, message: Message) -> None:
    """Send a message; waits until it is taken. Raises OSError when nobody is there."""
    said: dict[str, Any]
    parts: Sequence[memoryview] = ()
    if isinstance(message, Drawn):
        parts = [_bytes_of(image) for image in message.images]
        said = {
            "shapes": [image.shape for image in message.images],
            "levels": [image.dtype.name for image in message.images],
            "failure": None if message.failure is None else asdict(message.failure),
            "seconds": message.seconds,
            "notes": message.notes,
        }
    elif isinstance(message, DrawRequest):
        parts = [memoryview(file.data) for file in message.files]
        bare = replace(message, files=[replace(file, data=b"") for file in message.files])
        said = asdict(bare)
        for file in said["files"]:
            del file["data"]
    else:
        said = asdict(message)
    sizes = [part.nbytes for part in parts]
    text = json.dumps({"kind": type(message).__name__, **said, "parts": sizes}).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)
    for part in parts:
        connection.sendall(part)


def receive(connection: socket) -> Message | None:
    """Wait for the next message; None when the other side has gone, be it amid a message."""
    try:
        (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
        header = json.loads(_exactly(connection, length))
        parts = [_exactly(connection, size) for size in header["parts"]]
    except (EOFError, ConnectionError):
        return None
    kind = _KINDS[header["kind"]]
    if kind is Drawn:
        return _drawn(header, parts)
    message: Message = built(header, kind)
    if isinstance(message, DrawRequest):
        files = zip(message.files, parts, strict=True)
        return replace(message, files=[replace(file, data=bytes(part)) for file, part in files])
    return message


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


def _drawn(header: dict[str, Any], parts: list[bytearray]) -> Drawn:
    import numpy

    images = [
        numpy.frombuffer(part, level).reshape(shape)
        for part, shape, level in zip(parts, header["shapes"], header["levels"], strict=True)
    ]
    failure = header["failure"] and built(header["failure"], Failure)
    notes = [(name, text) for name, text in header["notes"]]
    return Drawn(images=images, failure=failure, seconds=header["seconds"], notes=notes)
