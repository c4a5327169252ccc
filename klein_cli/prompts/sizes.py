"""--size and --aspect, --width and --height -> pixels."""

from __future__ import annotations

import math
import re

from klein_cli.errors import UsageError
from klein_cli.presets import Preset
from klein_cli.recipe import PIXELS_PER_TOKEN


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
    width, height = (
        max(PIXELS_PER_TOKEN, round(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)
        for side in (math.sqrt(pixels * ratio), math.sqrt(pixels / ratio))
    )
    if min(width, height) < preset.min_side or max(width, height) > preset.max_side:
        raise UsageError(
            f"that aspect makes {width}x{height}, out of range for {preset.name}",
            f"sides go from {preset.min_side} to {preset.max_side}: use --size",
        )
    return width, height
