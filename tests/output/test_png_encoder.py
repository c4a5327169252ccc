"""The PNG encoder: what other decoders read of it, and what its bytes may not depend on."""

from __future__ import annotations

import ctypes
import ctypes.util
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from klein_cli.output.png_encoder import encode_png, text_chunk

Pixels = NDArray[numpy.uint8]
TWO_STRIPS = (200, 400, 3)


def noise(shape: tuple[int, ...], high: int = 256) -> Pixels:
    return numpy.random.default_rng(0).integers(0, high, shape, dtype=numpy.uint8)


def smooth(side: int, grain: int) -> Pixels:
    """Colours that flow into each other, and grain as a sensor has it."""
    generator = numpy.random.default_rng(1)
    down, across = numpy.mgrid[:side, :side] / side
    waves = [numpy.sin(7 * down + 3 * across * k) + numpy.cos(9 * across) for k in (1, 2, 3)]
    grains = generator.integers(-grain, grain + 1, (side, side, 3))
    return (128 + 50 * numpy.stack(waves, -1) + grains).clip(0, 255).astype(numpy.uint8)


def shapes(side: int) -> Pixels:
    """Two flat colours with a sharp edge, as `tiny` draws."""
    down, across = numpy.mgrid[:side, :side]
    inside = (down - side / 2) ** 2 + (across - side / 2) ** 2 < (side / 3) ** 2
    return numpy.where(inside[..., None], (220, 40, 40), (250, 250, 250)).astype(numpy.uint8)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A PNG's chunks, each checksum compared."""
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (check,) = struct.unpack_from(">I", data, at + 8 + length)
        assert check == zlib.crc32(kind + body)
        yield kind, body
        at += 12 + length


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def by_pillow(pixels: Pixels) -> bytes:
    """What klein wrote before it had an encoder of its own."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


class PngImage(ctypes.Structure):
    """libpng's `png_image`, of its simplified interface."""

    _fields_ = (
        ("opaque", ctypes.c_void_p),
        *((name, ctypes.c_uint32) for name in ("version", "width", "height", "format")),
        *((name, ctypes.c_uint32) for name in ("flags", "colours", "fault")),
        ("message", ctypes.c_char * 64),
    )


def libpng() -> ctypes.CDLL:
    """The system's, or the one in Pillow's wheel, where it draws text."""
    bundled = Path(PIL.__file__).parents[1].glob("pillow.libs/libpng16*")
    name = ctypes.util.find_library("png16") or next(map(str, bundled), None)
    if name is None:
        pytest.skip("no libpng here")
    return ctypes.CDLL(name)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        ((1, 1, 3), "RGB"),
        ((1, 70_000, 3), "RGB"),  # a row that is longer than a strip
        ((70_000, 1, 3), "RGB"),
        (TWO_STRIPS, "RGB"),
        ((300, 400, 4), "RGBA"),
        ((9, 7, 1), "L"),
        ((9, 7, 2), "LA"),
    ],
)
@pytest.mark.parametrize("levels", [256, 3])
def test_pixels_are_read_back_as_they_were(shape: tuple[int, ...], mode: str, levels: int) -> None:
    pixels = noise(shape, levels)
    image = opened(encode_png(pixels))
    assert image.mode == mode
    assert numpy.array_equal(numpy.asarray(image).reshape(shape), pixels)


@pytest.mark.parametrize(("shape", "layout"), [(TWO_STRIPS, 2), ((300, 400, 4), 3)])
def test_libpng_reads_the_pixels_and_warns_of_nothing(shape: tuple[int, ...], layout: int) -> None:
    library, pixels = libpng(), noise(shape)
    data = encode_png(pixels, [text_chunk("parameters", "猫")])
    image = PngImage(version=1)
    assert library.png_image_begin_read_from_memory(
        ctypes.byref(image), data, ctypes.c_size_t(len(data))
    )
    image.format = layout
    read = numpy.empty_like(pixels)
    assert library.png_image_finish_read(
        ctypes.byref(image), None, ctypes.c_void_p(read.ctypes.data), ctypes.c_int32(0), None
    )
    assert (image.fault, image.message) == (0, b"")
    assert numpy.array_equal(read, pixels)


def test_16_bits_are_written_high_byte_first() -> None:
    pixels = numpy.random.default_rng(0).integers(0, 2**16, (300, 400, 1), dtype=numpy.uint16)
    image = opened(encode_png(pixels))
    assert image.mode == "I;16"
    assert numpy.array_equal(numpy.asarray(image), pixels[..., 0])


def test_16_bits_of_three_channels_are_two_bytes_each() -> None:
    # Pillow reads the high bytes alone: the distance to the left pixel and the order show there.
    pixels = numpy.random.default_rng(0).integers(0, 2**16, (30, 40, 3), dtype=numpy.uint16)
    image = opened(encode_png(pixels))
    assert numpy.array_equal(numpy.asarray(image), pixels >> 8)


def test_the_bytes_do_not_depend_on_the_threads() -> None:
    pixels = noise((700, 400, 3), 9)
    files = {encode_png(pixels, threads=threads) for threads in (1, 2, 3, 16)}
    assert files == {encode_png(pixels)}


def test_the_bytes_do_not_depend_on_how_the_pixels_lie() -> None:
    pixels = noise(TWO_STRIPS)
    transposed = numpy.ascontiguousarray(pixels.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert encode_png(transposed) == encode_png(pixels)


def test_without_another_thread_the_file_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(TWO_STRIPS)
    expected = encode_png(pixels)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert encode_png(pixels) == expected


def test_the_strips_are_one_zlib_stream_with_its_checksum() -> None:
    pixels = noise(TWO_STRIPS)
    pieces = [body for kind, body in chunks(encode_png(pixels)) if kind == b"IDAT"]
    assert len(pieces) == 3  # two strips and the checksum
    inflate = zlib.decompressobj()
    rows = inflate.decompress(b"".join(pieces))
    assert inflate.eof
    assert not inflate.unused_data
    assert len(rows) == 200 * (1 + 400 * 3)


def test_a_strip_looks_back_at_the_row_above_it() -> None:
    # One row over and over: were a strip's first row written as if it were the image's, its bytes
    # would be there again.
    pixels = numpy.repeat(noise((1, 1024, 3)), 640, axis=0)
    strips = [len(body) for kind, body in chunks(encode_png(pixels)) if kind == b"IDAT"]
    assert strips[0] > 1024 * 3
    assert max(strips[1:]) < 1024


def test_chunks_stand_before_the_pixels_in_their_order() -> None:
    given = [(b"sRGB", b"\0"), text_chunk("klein", "{}"), text_chunk("parameters", "猫")]
    written = list(chunks(encode_png(noise((4, 4, 3)), given)))
    assert written[1:4] == given
    kinds = [kind for kind, _ in written]
    assert kinds == [b"IHDR", b"sRGB", b"tEXt", b"iTXt", b"IDAT", b"IDAT", b"IEND"]


@pytest.mark.parametrize("text", ["plain", "café", "猫 and\ntwo lines"])
def test_texts_are_read_back(text: str) -> None:
    image = opened(encode_png(noise((4, 4, 3)), [text_chunk("parameters", text)]))
    assert image.text == {"parameters": text}


def test_files_are_no_larger_than_pillows() -> None:
    # With one fixed filter for all rows these are up to 1.3 times as large.
    images = [smooth(256, 0), smooth(256, 3), smooth(256, 12), shapes(256), noise((256, 256, 3))]
    sizes = [(len(encode_png(image)), len(by_pillow(image))) for image in images]
    assert all(ours <= 1.02 * theirs for ours, theirs in sizes)
