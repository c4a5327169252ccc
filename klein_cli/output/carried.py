"""What the file of an edit says of its colours, and what it takes over from its source."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

EXIF_IFD = 0x8769
_COLOUR_SPACE, _SRGB, _UNCALIBRATED = 0xA001, 1, 0xFFFF
_COPYRIGHT = 0x8298
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _INCH = 0x011A, 0x011B, 0x0128, 2
_INCHES_A_METRE = 1 / 0.0254


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """`profile` is the ICC profile that the pixels are in, None for sRGB, which is then said.

    `dpi`, across and down, and `copyright` are the source's; its GPS position and all else is left
    behind. `lossless` has a WebP file keep every pixel, as PNG does.
    """

    profile: bytes | None = field(default=None, repr=False)
    dpi: tuple[float, float] | None = None
    copyright: str | None = None
    lossless: bool = False

    def without_words(self) -> Carried:
        """What the colours need, and nothing else."""
        return Carried(profile=self.profile, lossless=self.lossless)

    def chunks(self) -> list[tuple[bytes, bytes]]:
        """As the chunks of a PNG, to stand before its pixels."""
        if self.profile is None:
            chunks = [(b"sRGB", b"\0")]
        else:
            chunks = [(b"iCCP", b"icc\0\0" + zlib.compress(self.profile))]
        if self.dpi is not None:
            across, down = (round(each * _INCHES_A_METRE) for each in self.dpi)
            chunks.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
        return chunks

    def add_to(self, exif: Image.Exif) -> None:
        """As EXIF of a JPEG or a WebP file."""
        exif.get_ifd(EXIF_IFD)[_COLOUR_SPACE] = _UNCALIBRATED if self.profile else _SRGB
        if self.copyright is not None:
            exif[_COPYRIGHT] = self.copyright.encode()  # Pillow would write ASCII
        if self.dpi is not None:
            exif[_X_RESOLUTION], exif[_Y_RESOLUTION] = self.dpi
            exif[_RESOLUTION_UNIT] = _INCH

    def options(self, kind: str) -> dict[str, Any]:
        """What Pillow is told of a JPEG or a WebP file besides its EXIF."""
        options: dict[str, Any] = {} if self.profile is None else {"icc_profile": self.profile}
        if kind == "JPEG" and self.dpi is not None:
            options["dpi"] = self.dpi
        if kind == "WEBP" and self.lossless:
            # Colours under full transparency are kept too.
            options |= {"lossless": True, "exact": True}
        return options
