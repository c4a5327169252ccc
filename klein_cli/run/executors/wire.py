"""What klein's processes say to each other over a stream socket: JSON and raw bytes, no pickle.

4 bytes           the header's length, big-endian
the header        a JSON object; "kind" names the message, "parts" the lengths of what follows
the parts         raw bytes, one after another: images' pixels, or the files of given images
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from socket import socket
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from klein_cli.run.executors.worker import (
    CancelRequest,
    Drawn,
    DrawRequest,
    Failure,
    LoadRequest,
    Stepped,
    WorkerInfo,
)
from klein_cli.tables import built

if TYPE_CHECKING:
    from klein_cli.run.fallback import Pixels

Message = LoadRequest | DrawRequest | CancelRequest | WorkerInfo | Stepped | Drawn | Failure

_KINDS = {kind.__name__: kind for kind in get_args(Message)}
_LENGTH = struct.Struct("!I")


def send(connection: socket, message: Message) -> None:
    """Send a message; waits until it is taken. Raises OSError when nobody is there."""
    for piece in encoded(message):
        connection.sendall(piece)


def encoded(message: Message) -> Iterator[bytes | memoryview]:
    """The bytes of a message, in pieces."""
    said: dict[str, Any]
    parts: Sequence[memoryview] = ()
    if isinstance(message, Drawn | Stepped):
        parts = [_bytes_of(image) for image in message.images]
        said = {
            **asdict(replace(message, images=[])),
            "images": [],
            "shapes": [image.shape for image in message.images],
            "levels": [image.dtype.name for image in message.images],
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
    yield _LENGTH.pack(len(text)) + text
    yield from parts


def receive(connection: socket) -> Message | None:
    """Wait for the next message; None when the other side has gone, be it amid a message."""
    try:
        return _read(lambda size: _exactly(connection, size))
    except (EOFError, ConnectionError):
        return None


def decoded(data: bytes) -> Message:
    """A message from its bytes, all of them. Raises what is raised for what is no message."""
    left = memoryview(data)

    def take(size: int) -> bytearray:
        nonlocal left
        if not 0 <= size <= len(left):
            raise EOFError("it ends too soon")
        piece, left = bytearray(left[:size]), left[size:]
        return piece

    message = _read(take)
    if left:
        raise ValueError("there is more behind it")
    return message


def _read(take: Callable[[int], bytearray]) -> Message:
    (length,) = _LENGTH.unpack(take(_LENGTH.size))
    header = json.loads(take(length))
    parts = [take(size) for size in header["parts"]]
    kind = _KINDS[header["kind"]]
    if "shapes" in header:
        return _with_images(header, parts, kind)
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


def _with_images(header: dict[str, Any], parts: list[bytearray], kind: Any) -> Message:
    import numpy

    images = [
        numpy.frombuffer(part, level).reshape(shape)
        for part, shape, level in zip(parts, header["shapes"], header["levels"], strict=True)
    ]
    names = {field.name for field in fields(kind)} - {"images"}
    hints = get_type_hints(kind, localns={"Pixels": object})
    given = {name: built(header[name], hints[name]) for name in names}
    return kind(images=images, **given)  # type: ignore[no-any-return]
