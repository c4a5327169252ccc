"""An opened image of any mode -> 8 bits a channel, and its alpha.

Pillow keeps the upper 8 of 16 bits a channel, and saturates 16-bit gray when it is converted; here
v of 65535 becomes v/257, rounded. Numbers that have no known white (32 bits, floating point) are
refused.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from klein_cli.errors import UsageError
from klein_cli.images.levels import narrowed

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

_EIGHT_BIT = ("L", "RGB", "CMYK", "LAB")
_ALPHA = ("LA", "RGBA", "PA", "La", "RGBa")
_GRAY = ("1", "L", "LA", "La")
_OPAQUE = 255
_WIDE = re.compile(r"(RGB|RGBA|RGBX|CMYK);16([BLN])")
_GRAY_ALPHA = "LA;16B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """`colours`, an image of mode L, RGB, CMYK or LAB, and its `alpha` of mode L, None if opaque.

    `was_wide` says that the file had 16 bits a channel.
    """

    colours: Image.Image
    alpha: Image.Image | None
    was_wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Halves:
    """The upper and the lower 8 of 16 bits, (H, W, channels) each."""

    upper: NDArray[numpy.uint8]
    lower: NDArray[numpy.uint8]


def channels(image: Image.Image, data: bytes, name: str) -> Channels:
    """Decode `image`, opened from `data`. Raises UsageError, and whatever Pillow raises."""
    if image.mode in ("I", "F") or image.mode.endswith("S"):
        raise UsageError(
            f"the pixels of {name} are 32-bit or floating-point numbers",
            "save it with 8 or 16 bits a channel",
        )
    halves = _halves(image, data)
    return _eight_bit(image) if halves is None else _narrow(halves, image)


def _eight_bit(image: Image.Image) -> Channels:
    if image.mode in _ALPHA or "transparency" in image.info:
        straight = image.convert("RGBA")
        alpha = straight.getchannel("A")
        colours = straight.getchannel("R") if image.mode in _GRAY else straight.convert("RGB")
        return Channels(colours=colours, alpha=_unless_opaque(alpha))
    image.load()
    if image.mode in _EIGHT_BIT:
        return Channels(colours=image, alpha=None)
    return Channels(colours=image.convert("L" if image.mode == "1" else "RGB"), alpha=None)


def _halves(image: Image.Image, data: bytes) -> _Halves | None:
    """The pixels of an image of 16 bits a channel, None for another."""
    import numpy

    if image.mode.startswith("I;16"):
        values = numpy.asarray(image)[:, :, None]
        upper, lower = values >> 8, values & 255
        return _Halves(upper=upper.astype(numpy.uint8), lower=lower.astype(numpy.uint8))
    kind = _raw_mode(image)
    if kind == _GRAY_ALPHA:
        # Four bytes a pixel, read as if they were four channels.
        both = _decoded(image, "RGBA")
        return _Halves(upper=both[:, :, 0::2], lower=both[:, :, 1::2])
    match = _WIDE.fullmatch(kind)
    if match is None:
        return None
    # Of two bytes Pillow keeps the upper; in the other order of bytes that is the lower.
    mode, order = match.groups()
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(order, order)
    again = _opened_again(image, data)
    return _Halves(
        upper=_decoded(image, f"{mode};16{order}"),
        lower=_decoded(again, f"{mode};16{'B' if order == 'L' else 'L'}"),
    )


def _raw_mode(image: Image.Image) -> str:
    """How the file holds its pixels, in Pillow's terms; "" where Pillow does not say."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    if isinstance(arguments, tuple) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def _decoded(image: Any, raw_mode: str) -> NDArray[numpy.uint8]:
    """(H, W, channels) of a file read as if it held its pixels in `raw_mode`."""
    import numpy

    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    image.load()
    return numpy.asarray(image)


def _opened_again(image: Image.Image, data: bytes) -> Image.Image:
    from PIL import Image as pillow

    return pillow.open(io.BytesIO(data), formats=[image.format or ""])


def _narrow(halves: _Halves, image: Image.Image) -> Channels:
    """16 bits a channel as 8; a colour that is declared transparent becomes alpha."""
    from PIL import Image as pillow

    pixels = narrowed(halves.upper, halves.lower)
    height, width, depth = pixels.shape
    if image.mode == "CMYK":
        colours = pillow.frombytes("CMYK", (width, height), pixels.tobytes())
        return Channels(colours=colours, alpha=None, was_wide=True)
    count = 1 if depth < 3 else 3
    alpha = pixels[:, :, count] if depth > count else _keyed(halves, image)
    colours = pillow.fromarray(pixels[:, :, 0] if count == 1 else pixels[:, :, :3])
    return Channels(
        colours=colours,
        alpha=None if alpha is None else _unless_opaque(pillow.fromarray(alpha)),
        was_wide=True,
    )


def _keyed(halves: _Halves, image: Image.Image) -> NDArray[numpy.uint8] | None:
    """(H, W) uint8: transparent where all 16 bits are the colour that a PNG declares to be so."""
    import numpy

    key = image.info.get("transparency")
    if key is None:
        return None
    upper, lower = numpy.atleast_1d(key) >> 8, numpy.atleast_1d(key) & 255
    same = (halves.upper == upper).all(2) & (halves.lower == lower).all(2)
    return numpy.where(same, 0, _OPAQUE).astype(numpy.uint8)


def _unless_opaque(alpha: Image.Image) -> Image.Image | None:
    return None if alpha.getextrema()[0] == _OPAQUE else alpha
