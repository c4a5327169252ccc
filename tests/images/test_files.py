"""Files that are no images, or made to break a reader: one line, soon, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from image_files import chunk, encoded, png, tiff
from PIL import Image

from klein_cli.errors import UsageError
from klein_cli.images.files import MAX_FILE_BYTES
from klein_cli.images.masks import read_mask
from klein_cli.images.reading import probe, read

GRAY = numpy.random.default_rng(0).integers(0, 256, (70, 96), dtype=numpy.uint8)
COLOURS = numpy.random.default_rng(1).integers(0, 256, (70, 96, 3), dtype=numpy.uint8)
WRITTEN = {
    "PNG": encoded(COLOURS),
    "JPEG": encoded(COLOURS, "JPEG"),
    "progressive": encoded(COLOURS, "JPEG", progressive=True),
    "WEBP": encoded(COLOURS, "WEBP", lossless=True),
    "TIFF": encoded(COLOURS, "TIFF", compression="tiff_lzw"),
    "GIF": encoded(Image.fromarray(COLOURS).quantize(32), "GIF"),
    "wide PNG": png(COLOURS.astype(numpy.uint16) * 257),
    "wide TIFF": tiff(COLOURS.astype(numpy.uint16) * 257, order="<"),
}


def refused(source: Path | bytes) -> str:
    """The message with which all readers refuse a file."""
    messages = set()
    for reader in (read, probe, read_mask):
        with pytest.raises(UsageError) as error:
            reader(source, name=None if isinstance(source, Path) else "a.png")
        assert "\n" not in error.value.message
        assert len(error.value.message) < 250
        messages.add(error.value.message)
    assert len(messages) == 1
    return messages.pop()


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    """A pipe that nobody writes to would hang for ever; a folder would be a traceback."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert refused(tmp_path) == f"{tmp_path} is a folder"
    assert refused(tmp_path / "pipe.png").endswith("pipe.png is not a regular file")
    assert refused(tmp_path / "empty.png") == "empty.png is empty"
    assert "No such file" in refused(tmp_path / "missing.png")
    assert "cannot read" in refused(tmp_path / "loop.png")
    assert "cannot read" in refused(tmp_path / "a\0b.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.touch(mode=0)
    assert "Permission denied" in refused(path)


def test_a_file_that_is_too_large_is_refused_without_reading_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.touch()
    os.truncate(path, MAX_FILE_BYTES + 1)
    assert refused(path) == "large.png is larger than 512 MB"


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_that_ends_early_is_refused(kind: str) -> None:
    """Pillow's own readers stop anywhere, some with errors that are no OSError."""
    data = WRITTEN[kind]
    read(data)
    for share in (0.01, 0.3, 0.6, 0.9):
        with pytest.raises(UsageError, match="a is damaged or incomplete"):
            read(data[: max(int(len(data) * share), 12)], name="a")


@pytest.mark.parametrize("kind", WRITTEN)
def test_bytes_that_are_overwritten_never_end_in_a_traceback(kind: str) -> None:
    """A stranger's file: whatever Pillow raises for it, the user hears of the file."""
    random = numpy.random.default_rng(len(kind))
    for _ in range(25):
        data = bytearray(WRITTEN[kind])
        for at in random.integers(0, len(data), 6):
            data[at] = random.integers(0, 256)
        for reader in (read, probe, read_mask):
            with contextlib.suppress(UsageError):
                reader(bytes(data), name="a")


def test_a_damaged_tiff_prints_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff writes its complaints to the standard error by itself."""
    data = bytearray(WRITTEN["TIFF"])
    at = data.index(struct.pack("<HHI", 257, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 700)
    with pytest.raises(UsageError):
        read(bytes(data), name="a.tif")
    assert capfd.readouterr() == ("", "")


def test_the_kind_of_a_file_is_told_by_its_bytes(tmp_path: Path) -> None:
    """A JPEG that is called .png, as browsers save them, is an image like any other."""
    (tmp_path / "photo.png").write_bytes(WRITTEN["JPEG"])
    assert (read(tmp_path / "photo.png").rgb == read(WRITTEN["JPEG"]).rgb).all()
    (tmp_path / "words.png").write_text("a red fox, " * 20)
    assert refused(tmp_path / "words.png") == "words.png is not an image that klein reads"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(COLOURS, "BMP"), "a BMP image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    ],
)
def test_other_kinds_are_refused_by_name(data: bytes, kind: str) -> None:
    assert refused(data) == f"a.png is {kind}, which klein does not read"


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone's photograph: the user has to hear what to do."""
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    data = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"mif1", 0, b"mif1", b"heic") + b"\0" * 100
    with pytest.raises(UsageError) as error:
        read(data, name="IMG_0001.HEIC")
    assert "HEIC" in error.value.message
    assert "klein-cli[heic]" in error.value.hint
    assert "JPEG" in error.value.hint


def test_heic_is_read_where_its_package_is() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    smooth = numpy.tile(numpy.arange(96, dtype=numpy.uint8), (70, 1))
    picture = read(encoded(smooth, "HEIF", quality=95))
    assert numpy.abs(picture.rgb[:, :, 0].astype(int) - smooth).max() <= 4


def test_an_avif_image_is_read_where_pillow_can() -> None:
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = read(encoded(GRAY.repeat(2, 0), "AVIF", quality=100))
    assert (picture.width, picture.height) == (96, 140)


@pytest.mark.parametrize("side", [13_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13000 x 13000 pixels in 20 KB would take half a gigabyte, and is no bomb to Pillow."""
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    data = png(GRAY[:, :, None], size=(side, side))
    assert len(data) < 20_000
    assert "pixels" in refused(data)


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_the_size_that_other_headers_tell_is_believed_too(kind: str) -> None:
    data = bytearray(WRITTEN["GIF"])
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", 15_000, 15_000)
    else:
        bits = (16_383 - 1) | (16_383 - 1) << 14
        data = bytearray(
            b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f" + struct.pack("<I", bits) + b"\0" * 20
        )
    assert refused(bytes(data)).startswith("a.png")


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (63, 100, "too small"),
        (100, 63, "too small"),
        (900, 100, "too narrow"),
        (100, 900, "narrow"),
    ],
)
def test_sides_that_no_model_is_given_are_refused(width: int, height: int, said: str) -> None:
    data = encoded(Image.new("RGB", (width, height)))
    assert said in refused(data)
    assert f"{width}x{height}" in refused(data)


def test_sides_at_the_limits_are_read() -> None:
    assert read(encoded(Image.new("RGB", (64, 512)))).height == 512


def test_a_tile_far_larger_than_its_tiff_is_refused() -> None:
    """libtiff allocates a whole tile, whatever the image's own size."""
    data = bytearray(encoded(COLOURS, "TIFF", compression="tiff_deflate"))
    (tags,) = struct.unpack("<I", data[4:8])
    for stored, tag in ((278, 322), (284, 323)):  # entries that it can do without
        at = data.index(struct.pack("<HH", stored, 3), tags)
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 60_000)
    assert refused(bytes(data)) == "a.png has tiles of 60000x60000"


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_chunks_that_inflate_to_gigabytes_are_refused(kind: bytes) -> None:
    """A megabyte of zeros a kilobyte: only so much of it may be inflated."""
    bomb = zlib.compress(bytes(50_000_000))
    body = {
        b"iCCP": b"icc\0\0" + bomb,
        b"zTXt": b"Comment\0\0" + bomb,
        b"iTXt": b"Comment\0\1\0\0\0" + bomb,
    }[kind]
    assert "Decompressed data too large" in refused(png(COLOURS, chunks=chunk(kind, body)))
