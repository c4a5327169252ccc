"""Image files -> small WebP images, for a page that needs no other file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from klein_cli.errors import UsageError
from klein_cli.images.reading import read
from klein_cli.output.reading import FORMATS

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_SIDE = 256
SOURCE_SIDE = 512
"""Pixels a side of an image that an edit was made from: the page holds no larger one of it."""

_QUALITY = 72
_ON_ITS_SIDE = 5
"""From this value of EXIF's orientation on, width and height are swapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is seen of an image: sides of the file in pixels, time in seconds, a WebP file."""

    width: int
    height: int
    modified: float
    thumbnail: bytes


def view_of(path: Path) -> View | None:
    """An image made small, over white; None for a file that holds none."""
    from PIL import ExifTags, Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) >= _ON_ITS_SIDE:
                width, height = height, width
            small = image if image.mode in ("RGB", "L", "RGBA") else image.convert("RGB")
            small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2.0)
            small = ImageOps.exif_transpose(small)
            if small.mode == "RGBA":
                small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
            small = small.convert("RGB")
        modified = path.stat().st_mtime
    except Exception:  # on a file made to break it, Pillow raises nearly anything
        return None
    return View(width=width, height=height, modified=modified, thumbnail=_webp(small))


def source_thumbnail(path: Path) -> bytes | None:
    """An image that was given, made small, as a WebP file; None for one that cannot be read."""
    from PIL import Image

    try:
        small = Image.fromarray(read(path).rgb)
    except UsageError:
        return None
    small.thumbnail((SOURCE_SIDE, SOURCE_SIDE), reducing_gap=2.0)
    return _webp(small)


def _webp(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "WEBP", quality=_QUALITY)
    return data.getvalue()
