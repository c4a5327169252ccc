"""What a file says besides its pixels and its recipe: colours, resolution, whose it is."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

EXIF_IFD = 0x8769
_COPYRIGHT = 0x8298
_COLOUR_SPACE, _SRGB, _OF_THE_PROFILE = 0xA001, 1, 0xFFFF
_ACROSS, _DOWN, _UNIT, _INCHES = 0x011A, 0x011B, 0x0128, 2
_INCH = 0.0254
_MOST = 2**31 - 1
_PERCEPTUAL = b"\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The ICC `profile` of the pixels; without one they are sRGB, which is said if `says_srgb`.

    `lossless` keeps every pixel where the format can. `dpi` are pixels an inch across and down;
    `copyright` is a line of text.
    """

    profile: bytes | None = field(default=None, repr=False)
    says_srgb: bool = False
    lossless: bool = False
    dpi: tuple[float, float] | None = None
    copyright: str | None = None

    def without_words(self) -> Extras:
        """What the colours need, and no more."""
        return replace(self, dpi=None, copyright=None)

    def png_chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """Type and data of each chunk that stands before a PNG's pixels."""
        if self.profile is not None:
            yield b"iCCP", b"ICC profile\0\0" + zlib.compress(self.profile)
        elif self.says_srgb:
            yield b"sRGB", _PERCEPTUAL
        if self.dpi is not None:
            across, down = (min(round(each / _INCH), _MOST) for each in self.dpi)
            yield b"pHYs", struct.pack(">IIB", across, down, 1)

    def add_to(self, exif: Image.Exif) -> None:
        """Tell it in the EXIF of a JPEG or WebP file."""
        if self.profile is not None or self.says_srgb:
            space = _SRGB if self.profile is None else _OF_THE_PROFILE
            exif.get_ifd(EXIF_IFD)[_COLOUR_SPACE] = space
        if self.copyright is not None:
            exif[_COPYRIGHT] = self.copyright.encode()  # Pillow would write ASCII
        if self.dpi is not None:
            exif[_ACROSS], exif[_DOWN] = self.dpi
            exif[_UNIT] = _INCHES

    def options(self, kind: str) -> dict[str, Any]:
        """What Pillow is told of a JPEG or WebP file besides."""
        told: dict[str, Any] = {} if self.profile is None else {"icc_profile": self.profile}
        if kind == "WEBP":
            # Exact: colours under full transparency are kept too.
            return told | {"lossless": self.lossless, "exact": self.lossless}
        return told if self.dpi is None else told | {"dpi": self.dpi}


NOTHING_ELSE = Extras()
