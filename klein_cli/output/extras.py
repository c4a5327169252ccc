"""What a file says besides its pixels and its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The ICC `profile` of the pixels, None for sRGB; their resolution, and whose they are.

    A `lossless` image keeps every pixel, where its format can.
    """

    profile: bytes | None = field(default=None, repr=False)
    lossless: bool = False
    dpi: tuple[float, float] | None = None
    copyright: str | None = None


NOTHING_ELSE = Extras()
