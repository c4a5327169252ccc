"""An image file -> pixels that a model can be given: the way of every image that a user names.

In this order, whatever the file: size from the header, EXIF orientation, 8 bits a channel, sRGB,
alpha over white. For untagged RGB files it is what diffusers' `load_image` gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from klein_cli.images.colour import Colours, to_srgb
from klein_cli.images.depth import Channels, channels
from klein_cli.images.files import Source, file_bytes, name_of, opened
from klein_cli.images.levels import over

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

    from klein_cli.images.levels import Level

_ORIENTATION = 0x0112
_COPYRIGHT = 0x8298
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_ON_ITS_SIDE = 5
"""From this value of EXIF's orientation on, width and height are swapped."""
_MIRRORED_DOWN = (3, 4, 7, 8)
_MIRRORED_ACROSS = (2, 3, 6, 7)
"""Once they are swapped back."""
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"adobe.xmp")
_ARRAYS = ("rgb", "kept", "alpha", "kept_alpha")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")
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
    `alpha` (H, W) uint8 is None for an opaque image. `kept` (H, W, 3) and `kept_alpha` (H, W) are
    what a masked edit keeps: the levels as they are in the file, uint16 if it has 16 bits a
    channel, in `profile`, None for sRGB. `notes` are sentences to say once. `dpi` and `copyright`
    go into the result.
    """

    rgb: NDArray[numpy.uint8] = field(repr=False)
    kept: NDArray[Any] = field(repr=False)
    alpha: NDArray[numpy.uint8] | None = field(default=None, repr=False)
    kept_alpha: NDArray[Any] | None = field(default=None, repr=False)
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
        return sum(each.nbytes for each in self._arrays())

    def mapped(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Picture:
        """The picture with each of its arrays changed."""
        # What is one array stays one.
        changed = {id(each): change(each) for each in self._arrays()}
        fields: dict[str, Any] = {name: changed.get(id(getattr(self, name))) for name in _ARRAYS}
        return replace(self, **fields)

    def _arrays(self) -> Iterator[NDArray[Any]]:
        """Each that there is, once."""
        arrays = {id(each): each for each in (getattr(self, name) for name in _ARRAYS)}
        return (each for each in arrays.values() if each is not None)


def probe(source: Source, *, name: str | None = None) -> Probe:
    """What an image file says of itself, read but not decoded. Raises UsageError."""
    name = name_of(source, name)
    data = file_bytes(source, name)
    with opened(data, name) as image:
        width, height = _stored_size(image)
        if orientation(image, data) >= _ON_ITS_SIDE:
            width, height = height, width
    return Probe(sha256=digest(data), name=name, width=width, height=height)


def read(source: Source, *, name: str | None = None) -> Picture:
    """Read and decode an image file, or the bytes of one; `name` is what messages call it.

    Raises UsageError for what cannot be read, is no image of a known format, is damaged, or has
    sides that no model is given; the size is known before anything is decoded.
    """
    name = name_of(source, name)
    data = file_bytes(source, name)
    notes = []
    with opened(data, name) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes.append(f"{name} has several frames: only the first is used")
        found = channels(image, data, name)
        turn = orientation(image, data)
        colours = to_srgb(found.colours, image.info.get("icc_profile"), name)
        dpi, owner = _dpi(image), _owner(image)
    if found.wide is not None:
        notes.append(f"{name} has 16 bits a channel, of which the model sees 8")
    if colours.note:
        notes.append(colours.note)
    if found.alpha is not None:
        notes.append(f"{name} is transparent in places: the model sees it on white")
    picture = Picture(
        **_arrays(found, colours),
        profile=colours.profile,
        sha256=digest(data),
        name=name,
        notes=tuple(notes),
        dpi=dpi,
        copyright=owner,
    )
    return picture.mapped(lambda array: upright(array, turn))


def digest(data: bytes) -> str:
    """The identity of an image file: SHA-256 of its bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's orientation; 1, upright, where there is none or it makes no sense."""
    # Pillow decodes a whole PNG file to look for EXIF behind its pixels.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing
        return 1
    return value if value in range(1, 9) else 1


def upright(array: NDArray[Level], orientation: int) -> NDArray[Level]:
    """(H, W, ...) as EXIF's orientation, 1 to 8, says that it is to be seen."""
    import numpy

    if orientation >= _ON_ITS_SIDE:
        array = array.swapaxes(0, 1)
    if orientation in _MIRRORED_DOWN:
        array = array[::-1]
    if orientation in _MIRRORED_ACROSS:
        array = array[:, ::-1]
    return numpy.ascontiguousarray(array)


def _arrays(found: Channels, colours: Colours) -> dict[str, Any]:
    """The arrays of a picture, not upright yet."""
    import numpy

    kept = numpy.asarray(colours.kept)
    rgb = kept if colours.srgb is colours.kept else numpy.asarray(colours.srgb)
    alpha = None if found.alpha is None else numpy.asarray(found.alpha)
    if alpha is not None:
        rgb = over(rgb, alpha, white=True)
    if found.wide is None or colours.is_converted:
        return {"rgb": rgb, "kept": kept, "alpha": alpha, "kept_alpha": alpha}
    return {"rgb": rgb, "kept": found.wide, "alpha": alpha, "kept_alpha": found.wide_alpha}


def _stored_size(image: Any) -> tuple[int, int]:
    """Sides as the file holds its pixels; of a TIFF file Pillow may tell those of the upright."""
    if image.format == "TIFF":
        return image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
    return image.width, image.height


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
        value = image.getexif().get(_COPYRIGHT)
    except Exception:  # see `orientation`
        value = None
    if isinstance(value, str):
        with contextlib.suppress(UnicodeError):  # Pillow reads as Latin-1 what is mostly UTF-8
            value = value.encode("latin-1").decode()
    else:
        value = image.info.get("Copyright")
    words = _UNPRINTABLE.sub(" ", value).strip() if isinstance(value, str) else ""
    return words[:_LONGEST_COPYRIGHT].encode("utf-8", "replace").decode() or None
