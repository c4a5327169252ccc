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

    `wide` and `wide_alpha` are the same before they were narrowed, (H, W, 3) and (H, W) uint16, of
    a gray or RGB file of 16 bits a channel.
    """

    colours: Image.Image
    alpha: Image.Image | None = None
    wide: NDArray[numpy.uint16] | None = None
    wide_alpha: NDArray[numpy.uint16] | None = None


def channels(image: Image.Image, data: bytes, name: str) -> Channels:
    """Decode `image`, opened from `data`. Raises UsageError, and whatever Pillow raises."""
    if image.mode in ("I", "F") or image.mode.endswith("S"):
        raise UsageError(
            f"the pixels of {name} are 32-bit or floating-point numbers",
            "save it with 8 or 16 bits a channel",
        )
    wide = _wide(image, data)
    return _eight_bit(image) if wide is None else _narrow(wide, image)


def _eight_bit(image: Image.Image) -> Channels:
    if image.mode in _ALPHA or "transparency" in image.info:
        straight = image.convert("RGBA")
        alpha = straight.getchannel("A")
        colours = straight.getchannel("R") if image.mode in _GRAY else straight.convert("RGB")
        return Channels(colours=colours, alpha=_unless_opaque(alpha))
    image.load()
    if image.mode in _EIGHT_BIT:
        return Channels(colours=image)
    return Channels(colours=image.convert("L" if image.mode == "1" else "RGB"))


def _wide(image: Image.Image, data: bytes) -> NDArray[numpy.uint16] | None:
    """(H, W, 1 to 4) of an image of 16 bits a channel, None for another."""
    import numpy

    if image.mode.startswith("I;16"):
        return numpy.asarray(image).astype(numpy.uint16)[:, :, None]
    kind = _raw_mode(image)
    if kind == _GRAY_ALPHA:
        # Four bytes a pixel, read as if they were four channels.
        both = _decoded(image, "RGBA")
        return _joined(both[:, :, 0::2], both[:, :, 1::2])
    match = _WIDE.fullmatch(kind)
    if match is None:
        return None
    # Of two bytes Pillow keeps the upper; in the other order of bytes that is the lower.
    mode, order = match.groups()
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(order, order)
    again = _opened_again(image, data)
    upper = _decoded(image, f"{mode};16{order}")
    return _joined(upper, _decoded(again, f"{mode};16{'B' if order == 'L' else 'L'}"))


def _joined(upper: NDArray[numpy.uint8], lower: NDArray[numpy.uint8]) -> NDArray[numpy.uint16]:
    import numpy

    wide = upper.astype(numpy.uint16)
    wide <<= 8
    wide |= lower
    return wide


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


def _narrow(wide: NDArray[numpy.uint16], image: Image.Image) -> Channels:
    """16 bits a channel as 8; a colour that is declared transparent becomes alpha."""
    import numpy
    from PIL import Image as pillow

    if image.mode == "CMYK":
        size = (wide.shape[1], wide.shape[0])
        return Channels(colours=pillow.frombytes("CMYK", size, narrowed(wide).tobytes()))
    depth = wide.shape[2]
    count = 1 if depth < 3 else 3
    transparency = wide[:, :, count] if depth > count else _keyed(wide, image)
    wide = wide[:, :, :count]
    narrow = narrowed(wide)
    colours = pillow.fromarray(narrow[:, :, 0] if count == 1 else narrow)
    wide = numpy.broadcast_to(wide, (*wide.shape[:2], 3))
    if transparency is None or transparency.min() == _OPAQUE * 257:
        return Channels(colours=colours, wide=wide)
    alpha = pillow.fromarray(narrowed(transparency))
    return Channels(colours=colours, alpha=alpha, wide=wide, wide_alpha=transparency)


def _keyed(wide: NDArray[numpy.uint16], image: Image.Image) -> NDArray[numpy.uint16] | None:
    """(H, W): transparent where a pixel has the very colour that a PNG declares to be so."""
    import numpy

    key = image.info.get("transparency")
    if key is None:
        return None
    return numpy.where((wide == numpy.asarray(key)).all(2), 0, 65535).astype(numpy.uint16)


def _unless_opaque(alpha: Image.Image) -> Image.Image | None:
    return None if alpha.getextrema()[0] == _OPAQUE else alpha
