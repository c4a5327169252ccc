"""Pixels -> the bytes of a PNG, in threads: strips of rows, filtered and deflated each by itself.

The strips follow each other in one zlib stream (RFC 1950), an IDAT chunk each. How an image is cut
depends on its size alone, so that its bytes depend on the pixels, the chunks and the system's zlib,
and never on the machine's cores.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from klein_cli.output.row_filters import filtered

Chunk = tuple[bytes, bytes]
"""The four letters of its type, and its data."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Grey, grey with alpha, RGB, RGB with alpha, by the number of channels."""
_STRIP_BYTES = 3 * 2**16
"""64 rows of an image of 1024x1024: a few milliseconds of work, and 20 bytes more in the file."""
_MOST_THREADS = 8
"""More of them wait for each other: see docs/runs.md."""
_ZLIB_HEADER = b"\x78\x01"  # a window of 32 KB, the fastest level
_ADLER_BASE = 65521


class _Strip(NamedTuple):
    """A strip as its IDAT chunk, and what its filtered bytes add to the stream's checksum."""

    chunk: bytes
    adler: int
    length: int


def encode_png(
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    chunks: Iterable[Chunk] = (),
    *,
    threads: int | None = None,
) -> bytes:
    """A PNG of (H, W, C) pixels of 8 or 16 bits, of 1 to 4 channels: grey or RGB, then alpha.

    `chunks` stand between the header and the pixels, in their order. `threads`, as many as there
    are cores if left out, change the time and no byte.
    """
    height, width, channels = pixels.shape
    depth = 8 * pixels.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, _COLOUR_TYPES[channels], 0, 0, 0)
    strips = _strips(pixels, threads or _cores())
    return b"".join(
        (
            _SIGNATURE,
            _written(b"IHDR", header),
            *(_written(*chunk) for chunk in chunks),
            *(strip.chunk for strip in strips),
            _written(b"IDAT", _checksum(strips).to_bytes(4)),
            _written(b"IEND", b""),
        )
    )


def text_chunk(keyword: str, text: str) -> Chunk:
    """A text as PNG holds it: tEXt where Latin-1 has all its characters, else iTXt in UTF-8."""
    key = keyword.encode("latin-1")
    try:
        return b"tEXt", key + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        # Not compressed, of no language, without a translated keyword.
        return b"iTXt", key + b"\0\0\0\0\0" + text.encode("utf-8")


def _strips(pixels: NDArray[np.uint8] | NDArray[np.uint16], threads: int) -> list[_Strip]:
    height = pixels.shape[0]
    rows = max(1, _STRIP_BYTES // (pixels[0].size * pixels.dtype.itemsize))
    spans = [range(first, min(first + rows, height)) for first in range(0, height, rows)]
    strip = partial(_strip, pixels)
    try:
        with ThreadPoolExecutor(min(threads, _MOST_THREADS, len(spans))) as pool:
            return list(pool.map(strip, spans))
    except RuntimeError:  # no memory, or no right, for another thread
        return [strip(span) for span in spans]


def _strip(pixels: NDArray[np.uint8] | NDArray[np.uint16], span: range) -> _Strip:
    rows = filtered(_bytes_of(pixels, span), pixels.shape[2] * pixels.dtype.itemsize)
    # Repetitions are what the filters take out: run lengths find what is left as well as a search.
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_RLE)
    is_last = span.stop == pixels.shape[0]
    header = b"" if span.start else _ZLIB_HEADER
    data = header + deflate.compress(rows.data)
    data += deflate.flush(zlib.Z_FINISH if is_last else zlib.Z_FULL_FLUSH)
    return _Strip(_written(b"IDAT", data), zlib.adler32(rows.data), rows.size)


def _bytes_of(pixels: NDArray[np.uint8] | NDArray[np.uint16], span: range) -> NDArray[np.uint8]:
    """The rows of a span and the one above them, as bytes, the high one first."""
    above = max(span.start - 1, 0)
    rows = pixels[above : span.stop].astype(pixels.dtype.newbyteorder(">"), order="C")
    flat = rows.view(np.uint8).reshape(len(rows), -1)
    return flat if span.start else np.pad(flat, ((1, 0), (0, 0)))


def _checksum(strips: list[_Strip]) -> int:
    """Adler-32 of all strips after each other, from those of each (RFC 1950)."""
    low, high = 1, 0
    for strip in strips:
        high = (high + (strip.adler >> 16) + strip.length * (low - 1)) % _ADLER_BASE
        low = (low + (strip.adler & 0xFFFF) - 1) % _ADLER_BASE
    return high << 16 | low


def _written(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((len(data).to_bytes(4), kind, data, check.to_bytes(4)))


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
