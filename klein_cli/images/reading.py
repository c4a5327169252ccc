"""An image file -> pixels that a model can be given: the way of every image that a user names.

In this order, whatever the file: size from the header, EXIF orientation, 8 bits a channel, sRGB,
alpha over white. For untagged RGB files it is what diffusers' `load_image` gives.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from klein_cli.images.colour import to_srgb
from klein_cli.images.depth import channels
from klein_cli.images.files import Source, file_bytes, name_of, opened
from klein_cli.images.levels import over

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

_ORIENTATION = 0x0112
_COPYRIGHT = 0x8298
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_TURNED = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF's orientations, and what of Pillow's `Transpose` sets each upright."""
_ON_ITS_SIDE = 5
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"adobe.xmp")
_LONGEST_COPYRIGHT = 500
_MOST_DPI = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An image file that was not decoded: sides in pixels, upright; digest of the file's bytes."""

    sha256: str
    name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """An image file, read. Arrays are upright and may not be written to.

    `rgb` (H, W, 3) uint8 is what a model sees: sRGB, over white where the file is transparent.
    `kept` (H, W, 3) uint8 holds the colours as they are in the file, in `profile`, None for sRGB:
    what a masked edit keeps. `alpha` (H, W) uint8 is None for an opaque image. `notes` are
    sentences to say once. `dpi` and `copyright` go into the result.
    """

    rgb: NDArray[numpy.uint8] = field(repr=False)
    kept: NDArray[numpy.uint8] = field(repr=False)
    alpha: NDArray[numpy.uint8] | None = field(default=None, repr=False)
    profile: bytes | None = field(default=None, repr=False)
    sha256: str
    name: str
    notes: tuple[str, ...] = ()
    dpi: tuple[float, float] | None = None
    copyright: str | None = None

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.rgb.shape[0])

    @property
    def nbytes(self) -> int:
        """What it takes of memory."""
        arrays = {id(each): each.nbytes for each in (self.rgb, self.kept)}
        return sum(arrays.values()) + (0 if self.alpha is None else self.alpha.nbytes)


def probe(source: Source, *, name: str | None = None) -> Probe:
    """What an image file says of itself, read but not decoded. Raises UsageError."""
    name = name_of(source, name)
    data = file_bytes(source, name)
    with opened(data, name) as image:
        width, height = _stored_size(image)
        if _orientation(image, data) >= _ON_ITS_SIDE:
            width, height = height, width
    return Probe(sha256=digest(data), name=name, width=width, height=height)


def read(source: Source, *, name: str | None = None) -> Picture:
    """Read and decode an image file, or the bytes of one; `name` is what messages call it.

    Raises UsageError for what cannot be read, is no image of a known format, is damaged, or has
    sides that no model is given; the size is known before anything is decoded.
    """
    import numpy

    name = name_of(source, name)
    data = file_bytes(source, name)
    notes = []
    with opened(data, name) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes.append(f"{name} has several frames: only the first is used")
        found = channels(image, data, name)
        turn = _TURNED.get(_orientation(image, data))
        profile = image.info.get("icc_profile")
        colours = to_srgb(_turned(found.colours, turn), profile, name)
        alpha = None if found.alpha is None else numpy.asarray(_turned(found.alpha, turn))
        dpi, owner = _dpi(image), _owner(image)
    kept = numpy.asarray(colours.kept)
    rgb = kept if colours.srgb is colours.kept else numpy.asarray(colours.srgb)
    if found.was_wide:
        notes.append(f"{name} has 16 bits a channel, of which 8 are used and kept")
    if colours.note:
        notes.append(colours.note)
    if alpha is not None:
        notes.append(f"{name} is transparent in places: the model sees it on white")
        rgb = over(rgb, alpha, 255)
    return Picture(
        rgb=rgb,
        kept=kept,
        alpha=alpha,
        profile=colours.profile,
        sha256=digest(data),
        name=name,
        notes=tuple(notes),
        dpi=dpi,
        copyright=owner,
    )


def digest(data: bytes) -> str:
    """The identity of an image file: SHA-256 of its bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def upright(image: Image.Image, decoded: Image.Image, data: bytes) -> Image.Image:
    """`decoded`, a channel of the file `image`, turned as the file's EXIF says."""
    return _turned(decoded, _TURNED.get(_orientation(image, data)))


def _turned(image: Image.Image, turn: str | None) -> Image.Image:
    from PIL import Image as pillow

    return image if turn is None else image.transpose(pillow.Transpose[turn])


def _stored_size(image: Any) -> tuple[int, int]:
    """Sides as the file holds its pixels; of a TIFF file Pillow may tell those of the upright."""
    if image.format == "TIFF":
        return image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
    return image.width, image.height


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's orientation; 1, upright, where there is none or it makes no sense."""
    # Pillow decodes a whole PNG file to look for EXIF behind its pixels.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing
        return 1
    return value if value in _TURNED else 1


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Pixels an inch across and down; what Pillow says of a TIFF file without them is 1."""
    try:
        across, down = map(float, image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    known = all(math.isfinite(each) and 1 < each <= _MOST_DPI for each in (across, down))
    return (across, down) if known else None


def _owner(image: Image.Image) -> str | None:
    """Who has the copyright, as EXIF or a PNG's text says: a line of printable characters."""
    try:
        value = image.getexif().get(_COPYRIGHT) or image.info.get("Copyright")
    except Exception:  # see `_orientation`
        return None
    if not isinstance(value, str):
        return None
    words = re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", value).strip()
    return words[:_LONGEST_COPYRIGHT].encode("utf-8", "replace").decode() or None
