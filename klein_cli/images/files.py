"""A path, or bytes -> the bytes of an image file, and the file opened, checked before decoding.

The file may be a stranger's: its kind is told by its bytes and not by its name, its size is
bounded before anything is decoded, and whatever Pillow raises becomes one line.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klein_cli.errors import KleinError, UsageError, first_line

if TYPE_CHECKING:
    from PIL import Image

Source = Path | bytes
"""A file, or what was read from one (standard input)."""

MAX_FILE_BYTES = 512_000_000
MAX_PIXELS = 100_000_000
MIN_SIDE = 64
MAX_ASPECT = 8
STDIN_NAME = "standard input"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TILE_SIDES = (0x0142, 0x0143)
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF")
_CONVERT = "convert it to PNG or JPEG"
_SAVE_AGAIN = "save it again as PNG or JPEG"


def name_of(source: Source, name: str | None) -> str:
    """What an image is called in a line: the bare name of its file, unless `name` is given."""
    if name is not None:
        return name
    return STDIN_NAME if isinstance(source, bytes) else without_controls(source.name)


def without_controls(name: str) -> str:
    """A file's name that breaks no line: control characters are underscores."""
    return _CONTROL.sub("_", name)


def file_bytes(source: Source, name: str) -> bytes:
    """All bytes of a regular file of at most MAX_FILE_BYTES. Raises UsageError."""
    try:
        data = source if isinstance(source, bytes) else _regular_bytes(source, name)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(
            f"cannot read the image {source!s}: {reason}", "give the path of an image file"
        ) from None
    _check_bytes(len(data), name)
    return data


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """An image whose header is read and whose size is allowed; nothing is decoded yet.

    What goes wrong inside the `with` becomes a UsageError too: decoding belongs there.
    """
    from PIL import Image, UnidentifiedImageError

    _ignore_pillows_warnings()
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data, name)) as image:
            check_size(image.width, image.height, name)
            if image.format == "TIFF":
                _check_tiles(image, name)
                _silence_libtiff()
            yield image
    except KleinError:
        raise
    except UnidentifiedImageError:
        if data.startswith(_BEGINNINGS) or _brands(data):
            raise UsageError(f"{name} is damaged or incomplete", _SAVE_AGAIN) from None
        raise UsageError(
            f"{name} is not an image that klein reads", "use PNG, JPEG, WebP or TIFF"
        ) from None
    except Image.DecompressionBombError:
        raise UsageError(f"{name} has more than {MAX_PIXELS:,} pixels", "make it smaller") from None
    except MemoryError:
        raise UsageError(f"{name} does not fit into memory", "make it smaller") from None
    except Exception as error:  # on a file made to break it, Pillow raises nearly anything
        raise UsageError(
            f"{name} is damaged or incomplete: {first_line(error)}", _SAVE_AGAIN
        ) from None


def check_size(width: int, height: int, name: str) -> None:
    """Raise UsageError for sides that no model is given."""
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"{name} is {width}x{height}, more than {MAX_PIXELS // 1_000_000} megapixels",
            "make it smaller",
        )
    if min(width, height) < MIN_SIDE:
        raise UsageError(
            f"{name} is {width}x{height}, and too small",
            f"use an image of at least {MIN_SIDE} pixels a side",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UsageError(
            f"{name} is {width}x{height}, and too narrow",
            f"crop it: the long side may be {MAX_ASPECT} times the short one",
        )


def _ignore_pillows_warnings() -> None:
    """Say nothing of how a stranger's file was made.

    Not by a context: those of several threads would restore each other's filters.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_tiles(image: Any, name: str) -> None:
    """Raise UsageError for a TIFF file whose tiles are far larger than itself."""
    width, height = (image.tag_v2.get(tag, 0) for tag in _TILE_SIDES)
    if width * height > MAX_PIXELS:
        raise UsageError(f"{name} has tiles of {width}x{height}", _SAVE_AGAIN)


def _silence_libtiff() -> None:
    """Have libtiff not print of its own what Pillow raises; where it is linked in, it may."""
    from PIL import _imaging

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


def _regular_bytes(path: Path, name: str) -> bytes:
    """The bytes of a file that is one, and not too large. Raises OSError or UsageError."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{path} is a folder", "give the path of an image file")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        raise UsageError(f"{path} is not a regular file", "give the path of an image file")
    _check_bytes(status.st_size, name)
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _check_bytes(size: int, name: str) -> None:
    if not size:
        raise UsageError(f"{name} is empty", "give an image file")
    if size > MAX_FILE_BYTES:
        raise UsageError(
            f"{name} is larger than {MAX_FILE_BYTES // 1_000_000} MB", "give a smaller image"
        )


def _formats(data: bytes, name: str) -> tuple[str, ...]:
    """What Pillow may take the file for. Raises UsageError for a kind that is not read."""
    brands = _brands(data)
    if brands & {b"avif", b"avis"}:
        return _avif(name)
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return _heif(name)
    for beginning, kind in _REFUSED.items():
        if data.startswith(beginning):
            raise UsageError(f"{name} is {kind}, which klein does not read", _CONVERT)
    return _FORMATS


_REFUSED = {
    b"BM": "a BMP image",
    b"8BPS": "a Photoshop document",
    b"%PDF": "a PDF document",
    b"<svg": "an SVG drawing",
    b"<?xml": "an SVG drawing or other XML",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\0\0\1\0": "an icon",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
}


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file's `ftyp` box, none for another file."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def _avif(name: str) -> tuple[str, ...]:
    from PIL import features

    if features.check("avif"):
        return ("AVIF",)
    raise UsageError(f"{name} is an AVIF image, which this Pillow does not read", _CONVERT)


def _heif(name: str) -> tuple[str, ...]:
    try:
        import pillow_heif
    except ImportError:
        raise UsageError(
            f"{name} is a HEIC image, and the package pillow-heif is not installed",
            f"pip install 'klein-cli[heic]', or {_CONVERT}",
        ) from None
    pillow_heif.register_heif_opener()
    return ("HEIF",)
