"""--size and --aspect, --width and --height, --expand and what is edited -> pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from klein_cli.errors import UsageError
from klein_cli.presets import Preset
from klein_cli.recipe import MAX_SOURCE_SIDE, PIXELS_PER_TOKEN

MOST_EDITED = 4300 * PIXELS_PER_TOKEN**2
"""About one megapixel: with more, the schedule is that of another regime (see
`klein_cli.sampling.schedule`), in which edits fall apart.
"""


def image_size(
    preset: Preset,
    *,
    width: int | None,
    height: int | None,
    size: str | None,
    aspect: str | None,
    like: tuple[int, int] | None = None,
) -> tuple[int | None, int | None]:
    """(width, height) in pixels, None for what is not asked for. Raises UsageError.

    An aspect gets as many pixels as an image has whose sides are `like` these, the preset's own
    if left out.
    """
    by_side = width is not None or height is not None
    if by_side + (size is not None) + (aspect is not None) > 1:
        raise UsageError(
            "the size is given in more than one way", "use -W and -H, or --size, or --aspect"
        )
    if size is not None:
        return parse_size(size)
    if aspect is not None:
        sides = (preset.width, preset.height) if like is None else like
        return fit_aspect(parse_aspect(aspect), preset, math.prod(sides))
    return width, height


def parse_size(text: str) -> tuple[int, int]:
    """ "1024x768" -> (1024, 768). Raises UsageError."""
    found = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text, re.ASCII)
    if not found:
        raise UsageError(f"--size {text} is not a valid size", "write it as WIDTHxHEIGHT: 1024x768")
    return int(found[1]), int(found[2])


def parse_aspect(text: str) -> float:
    """ "16:9", "16/9" or "1.78" -> width over height. Raises UsageError."""
    number = r"(\d{1,6}(?:\.\d{1,6})?)"
    found = re.fullmatch(rf"\s*{number}(?:\s*[:/xX]\s*{number})?\s*", text, re.ASCII)
    below = float(found[2] or 1) if found else 0.0
    if not found or not float(found[1]) or not below:
        raise UsageError(f"--aspect {text} is not a valid aspect", "write it as WIDTH:HEIGHT: 16:9")
    return float(found[1]) / below


def fit_aspect(ratio: float, preset: Preset, pixels: int) -> tuple[int, int]:
    """The size of this ratio with about so many pixels. Raises UsageError."""
    width, height = map(_whole_tokens, (math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)))
    if min(width, height) < preset.min_side or max(width, height) > preset.max_side:
        raise UsageError(
            f"that aspect makes {width}x{height}, out of range for {preset.name}",
            f"sides go from {preset.min_side} to {preset.max_side}: use --size",
        )
    return width, height


def edited_size(
    reference: tuple[int, int], preset: Preset, *, width: int | None, height: int | None
) -> tuple[int, int]:
    """(width, height) in pixels of an edit, from its first reference's as the model sees it.

    What is asked for is taken; one side alone gets the other by the reference's aspect; neither,
    the reference's own size, as near as the model makes it. Raises UsageError when one side alone
    makes more than about a megapixel, or no size of this shape is in the model's range.
    """
    if width is not None and height is not None:
        return width, height
    across, down = reference
    if width is None and height is None:
        return _in_range(across, down, preset)
    if width is not None:
        size = width, _whole_tokens(width * down / across)
    else:
        assert height is not None
        size = _whole_tokens(height * across / down), height
    if math.prod(size) > MOST_EDITED:
        raise UsageError(
            f"with the first image's aspect that makes {size[0]}x{size[1]}, more than a megapixel",
            f"--size {size[0]}x{size[1]} makes it all the same; edits are best at a megapixel",
        )
    return size


def _in_range(width: int, height: int, preset: Preset) -> tuple[int, int]:
    """The size itself, or the nearest of its shape that the model makes."""
    scale = min(1.0, preset.max_side / max(width, height))
    scale = max(scale, preset.min_side / min(width, height))
    if scale == 1.0:
        return width, height
    size = _whole_tokens(width * scale), _whole_tokens(height * scale)
    if max(size) > preset.max_side:
        raise UsageError(
            f"{preset.name} makes no image as long and narrow as {width}x{height}",
            f"sides go from {preset.min_side} to {preset.max_side}: use --size",
        )
    return size


def _whole_tokens(pixels: float) -> int:
    return max(PIXELS_PER_TOKEN, round(pixels / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)


def parse_expand(text: str) -> tuple[int, int, int, int]:
    """ "64" or "0,0,256,0" -> pixels to add at the left, top, right and bottom.

    Raises UsageError.
    """
    parts = text.split(",")
    if len(parts) in (1, 4) and all(
        re.fullmatch(r"\s*\d{1,5}\s*", part, re.ASCII) for part in parts
    ):
        sides = [int(part) for part in parts]
        return checked_expand(sides * 4 if len(sides) == 1 else sides)
    raise UsageError(
        f"--expand {text} is not valid",
        "write pixels for all edges, as in 64, or for LEFT,TOP,RIGHT,BOTTOM: 0,0,256,0",
    )


def checked_expand(sides: Sequence[int]) -> tuple[int, int, int, int]:
    """Pixels to add at each edge. Raises UsageError for what no image is expanded by."""
    left, top, right, bottom = sides
    if not any(sides) or not all(0 <= side <= MAX_SOURCE_SIDE for side in sides):
        raise UsageError(
            f"expand {','.join(map(str, sides))} is out of range",
            f"use up to {MAX_SOURCE_SIDE} pixels an edge, and some at one of them",
        )
    return left, top, right, bottom
