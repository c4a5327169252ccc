"""--size and --aspect, --width and --height -> pixels."""

from __future__ import annotations

import math
import re

from klein_cli.errors import UsageError
from klein_cli.presets import Preset
from klein_cli.recipe import SIZE_MULTIPLE


def picture_size(
    preset: Preset,
    *,
    width: int | None,
    height: int | None,
    size: str | None,
    aspect: str | None,
) -> tuple[int, int]:
    """(width, height) in pixels; what is not asked for comes from the preset. Raises UsageError."""
    by_side = width is not None or height is not None
    if by_side + (size is not None) + (aspect is not None) > 1:
        raise UsageError(
            "the size is given in more than one way", "use -W and -H, or --size, or --aspect"
        )
    if size is not None:
        return parse_size(size)
    if aspect is not None:
        return fit_aspect(parse_aspect(aspect), preset)
    return (
        preset.width if width is None else width,
        preset.height if height is None else height,
    )


def parse_size(text: str) -> tuple[int, int]:
    """ "1024x768" -> (1024, 768). Raises UsageError."""
    found = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text, re.ASCII)
    if not found:
        raise UsageError(f"--size {text} is no size", "write it as WIDTHxHEIGHT: 1024x768")
    return int(found[1]), int(found[2])


def parse_aspect(text: str) -> float:
    """ "16:9", "16/9" or "1.78" -> width over height. Raises UsageError."""
    number = r"(\d{1,6}(?:\.\d{1,6})?)"
    found = re.fullmatch(rf"\s*{number}(?:\s*[:/xX]\s*{number})?\s*", text, re.ASCII)
    below = float(found[2] or 1) if found else 0.0
    if not found or not float(found[1]) or not below:
        raise UsageError(f"--aspect {text} is no aspect", "write it as WIDTH:HEIGHT: 16:9")
    return float(found[1]) / below


def fit_aspect(ratio: float, preset: Preset) -> tuple[int, int]:
    """The size of this ratio with about the preset's pixel count. Raises UsageError."""
    pixels = preset.width * preset.height
    width, height = (
        max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)
        for side in (math.sqrt(pixels * ratio), math.sqrt(pixels / ratio))
    )
    if min(width, height) < preset.min_side or max(width, height) > preset.max_side:
        raise UsageError(
            f"that aspect makes {width}x{height}, out of range for {preset.name}",
            f"sides go from {preset.min_side} to {preset.max_side}: use --size",
        )
    return width, height
