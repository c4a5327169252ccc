"""What a file says besides its pixels and its recipe: colours, resolution, whose it is."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

_INCH = 0.0254
_MOST = 2**31 - 1
_PERCEPTUAL = b"\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The ICC `profile` of the pixels; without one they are sRGB, which a PNG says if `says_srgb`.

    `lossless` keeps every pixel where the format can. `dpi` are pixels an inch across and down;
    `copyright` is a line of text.
    """

    profile: bytes | None = field(default=None, repr=False)
    says_srgb: bool = False
    lossless: bool = False
    dpi: tuple[float, float] | None = None
    copyright: str | None = None

    def png_chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """Type and data of each chunk that stands before a PNG's pixels."""
        if self.profile is not None:
            yield b"iCCP", b"ICC profile\0\0" + zlib.compress(self.profile)
        elif self.says_srgb:
            yield b"sRGB", _PERCEPTUAL
        if self.dpi is not None:
            across, down = (min(round(each / _INCH), _MOST) for each in self.dpi)
            yield b"pHYs", struct.pack(">IIB", across, down, 1)


NOTHING_ELSE = Extras()
