"""Arithmetic on levels of 8 or 16 bits that rounds to the nearest, a few rows at a time.

So that a large image takes the memory of its bytes, not eight times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Level = TypeVar("Level", numpy.uint8, numpy.uint16)

_ROWS = 256


def strips(height: int) -> Iterator[slice]:
    """The rows of an image of this height, a strip at a time."""
    for start in range(0, height, _ROWS):
        yield slice(start, min(start + _ROWS, height))


def narrowed(levels: NDArray[numpy.uint8] | NDArray[numpy.uint16]) -> NDArray[numpy.uint8]:
    """16 bits -> 8: v/257, rounded, so that 65535 is 255; 8 bits stay as they are."""
    import numpy

    if levels.dtype == numpy.uint8:
        return levels.astype(numpy.uint8, copy=False)
    result = numpy.empty(levels.shape, dtype=numpy.uint8)
    for rows in strips(len(levels)):
        result[rows] = (levels[rows].astype(numpy.uint32) + 128) // 257
    return result


def over(pixels: NDArray[Level], alpha: NDArray[Level], *, white: bool) -> NDArray[Level]:
    """(H, W, C) of `alpha` (H, W), of one dtype, laid over white, or else black."""
    import numpy

    full = numpy.iinfo(pixels.dtype).max
    result = numpy.empty_like(pixels)
    for rows in strips(len(pixels)):
        share = alpha[rows, :, None].astype(numpy.uint32)  # the square of 65535 is less than 2**32
        mixed = pixels[rows] * share + (full * (full - share) if white else 0)
        result[rows] = (mixed + full // 2) // full
    return result


def blended(
    ground: NDArray[Level], laid: NDArray[numpy.uint8], weights: NDArray[numpy.float32]
) -> NDArray[Level]:
    """`laid` (H, W, 3) over `ground` (H, W, 3 or 4) of 8 or 16 bits, by `weights` (H, W), 0 to 1.

    In float64. Where the weight is 0, exactly the ground; an alpha is straight, and what is laid
    over it is opaque.
    """
    import numpy

    result = numpy.empty_like(ground)
    for rows in strips(len(ground)):
        result[rows] = numpy.rint(_mixed(ground[rows], laid[rows], weights[rows]))
    return result


def _mixed(
    ground: NDArray[Level], laid: NDArray[numpy.uint8], weights: NDArray[numpy.float32]
) -> NDArray[numpy.float64]:
    import numpy

    full = numpy.iinfo(ground.dtype).max
    share = weights.astype(numpy.float64)[:, :, None]
    painted = laid * (share * (full // 255))
    if ground.shape[2] == 3:
        mixed: NDArray[numpy.float64] = ground * (1 - share) + painted
        return mixed
    below = (1 - share) * (ground[:, :, 3:] / full)
    alpha = below + share
    colours = (ground[:, :, :3] * below + painted) / numpy.where(alpha > 0, alpha, 1)
    colours = numpy.where(share > 0, colours, ground[:, :, :3])
    both: NDArray[numpy.float64] = numpy.concatenate([colours, alpha * full], axis=2)
    return both
