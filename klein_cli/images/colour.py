"""Colours of any profile -> sRGB for the model, and back to the profile of the source's file.

By littlecms, which Pillow brings: relative colorimetric, with black point compensation.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from klein_cli.errors import first_line

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

MAX_PROFILE_BYTES = 8_000_000
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
"""What ICC calls the colours of Pillow's modes."""
_GRID = range(0, 256, 17)
_SAME = 1
"""A profile that moves no colour of the grid by more is sRGB, and nothing is converted."""
_LONGEST_NAME = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """An image of mode RGB twice: for the model (`srgb`), and in `profile` (`kept`).

    `profile` is None where `kept` is sRGB, or of an unknown space that is taken for it;
    `is_converted` says that `kept` has not the levels of the file, `note` what was done.
    """

    srgb: Image.Image
    kept: Image.Image
    profile: bytes | None = None
    is_converted: bool = False
    note: str | None = None


def to_srgb(image: Image.Image, profile: bytes | None, name: str) -> Colours:
    """The colours of `image`, of mode L, RGB, CMYK or LAB, by the profile of its file, if any.

    A profile that is broken, too large or of another kind of colours is left out, and said.
    """
    if profile:
        try:
            return _by_profile(image, profile, name)
        except _errors() as error:
            plain = _plain(image, name)
            note = f"the colour profile of {name} is not used: {first_line(error)}"
            return replace(plain, note=note)
    return _plain(image, name)


def from_srgb(pixels: NDArray[numpy.uint8], profile: bytes) -> NDArray[numpy.uint8]:
    """(H, W, 3) uint8 in sRGB -> the same in an RGB `profile` that `to_srgb` returned."""
    import numpy
    from PIL import Image, ImageCms

    if _is_srgb(profile):
        return pixels
    converted = ImageCms.applyTransform(Image.fromarray(pixels), _from_srgb(profile))
    return numpy.asarray(converted)


def _by_profile(image: Image.Image, profile: bytes, name: str) -> Colours:
    """Raises one of `_errors()` for a profile that cannot be used."""
    from PIL import ImageCms

    if len(profile) > MAX_PROFILE_BYTES:
        raise ValueError(f"it has {len(profile):,} bytes")
    opened = _opened(profile)
    space = opened.profile.xcolor_space.strip()
    if image.mode == "L" and space == "RGB":
        image = image.convert("RGB")
    if space != _SPACES[image.mode]:
        raise ValueError(f"it is one of {space} colours")
    if space == "RGB" and _is_srgb(profile):
        return Colours(srgb=image, kept=image, profile=profile)
    transform = _transform(opened, ImageCms.createProfile("sRGB"), image.mode, "RGB")
    srgb = ImageCms.applyTransform(image, transform)
    assert srgb is not None
    said = " ".join(ImageCms.getProfileDescription(opened).split())[:_LONGEST_NAME]
    note = f"the colours of {name} are converted from {said or 'its profile'} to sRGB"
    if space == "RGB" and _goes_back(profile):
        return Colours(srgb=srgb, kept=image, profile=profile, note=f"{note} for the model")
    return Colours(srgb=srgb, kept=srgb, is_converted=True, note=note)


def _plain(image: Image.Image, name: str) -> Colours:
    """The colours of an image that has no profile."""
    from PIL import ImageCms

    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        rgb = ImageCms.applyTransform(
            image, _transform(lab, ImageCms.createProfile("sRGB"), "LAB", "RGB")
        )
        assert rgb is not None
        note = f"the colours of {name} are converted to sRGB"
        return Colours(srgb=rgb, kept=rgb, is_converted=True, note=note)
    if image.mode == "CMYK":
        rgb = image.convert("RGB")
        note = f"{name} is CMYK without a profile: its colours in sRGB are approximate"
        return Colours(srgb=rgb, kept=rgb, is_converted=True, note=note)
    rgb = image.convert("RGB")
    return Colours(srgb=rgb, kept=rgb)


def _opened(profile: bytes) -> Any:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _transform(source: Any, target: Any, source_mode: str, target_mode: str) -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        source,
        target,
        source_mode,
        target_mode,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _from_srgb(profile: bytes) -> Any:
    from PIL import ImageCms

    return _transform(ImageCms.createProfile("sRGB"), _opened(profile), "RGB", "RGB")


@lru_cache(maxsize=8)
def _is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile is sRGB by another maker: tried on a grid of colours."""
    import numpy
    from PIL import Image, ImageCms

    levels = numpy.array(_GRID, dtype=numpy.uint8)
    grid = numpy.stack(numpy.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    transform = _transform(_opened(profile), ImageCms.createProfile("sRGB"), "RGB", "RGB")
    converted = numpy.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
    return int(numpy.abs(converted.astype(int) - grid).max()) <= _SAME


def _goes_back(profile: bytes) -> bool:
    """Whether colours can be converted into the profile: one of a scanner may not tell how."""
    try:
        _from_srgb(profile)
    except _errors():
        return False
    return True


def _errors() -> tuple[type[Exception], ...]:
    """What a stranger's profile may raise."""
    from PIL import ImageCms

    return (ImageCms.PyCMSError, OSError, ValueError, TypeError, SyntaxError, RuntimeError)
