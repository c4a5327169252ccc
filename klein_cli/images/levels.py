"""Arithmetic on 8-bit levels that rounds to the nearest, a few rows of an image at a time.

So that a large image takes the memory of its bytes, not eight times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_ROWS = 256


def strips(height: int) -> Iterator[slice]:
    """The rows of an image of this height, a strip at a time."""
    for start in range(0, height, _ROWS):
        yield slice(start, min(start + _ROWS, height))


def narrowed(upper: NDArray[numpy.uint8], lower: NDArray[numpy.uint8]) -> NDArray[numpy.uint8]:
    """16 bits -> 8: (256 upper + lower) / 257, rounded. Arrays of one shape, rows first."""
    import numpy

    # v / 257 = upper + (lower - upper) / 257, and the fraction rounds to -1, 0 or 1.
    result = upper.copy()
    for rows in strips(len(upper)):
        apart = lower[rows].astype(numpy.int16) - upper[rows]
        result[rows] += apart > 128
        result[rows] -= apart < -128
    return result


def over(
    pixels: NDArray[numpy.uint8], alpha: NDArray[numpy.uint8], ground: int
) -> NDArray[numpy.uint8]:
    """(H, W, C) uint8 of `alpha` (H, W) uint8 laid over a `ground` of one level."""
    import numpy

    result = numpy.empty_like(pixels)
    for rows in strips(len(pixels)):
        share = alpha[rows, :, None].astype(numpy.uint32)
        mixed = pixels[rows] * share + ground * (255 - share)
        result[rows] = (mixed + 127) // 255
    return result


def blended(
    ground: NDArray[numpy.uint8], laid: NDArray[numpy.uint8], weights: NDArray[numpy.float32]
) -> NDArray[numpy.uint8]:
    """`laid` (H, W, 3) over `ground` (H, W, 3 or 4) uint8 by `weights` (H, W) from 0 to 1.

    In float64. Where the weight is 0, exactly the ground; an alpha is straight, and what is laid
    over it is opaque.
    """
    import numpy

    result = numpy.empty_like(ground)
    for rows in strips(len(ground)):
        result[rows] = numpy.rint(_mixed(ground[rows], laid[rows], weights[rows]))
    return result


def _mixed(
    ground: NDArray[numpy.uint8], laid: NDArray[numpy.uint8], weights: NDArray[numpy.float32]
) -> NDArray[numpy.float64]:
    import numpy

    share = weights.astype(numpy.float64)[:, :, None]
    below = numpy.broadcast_to(1 - share, share.shape)
    if ground.shape[2] == 3:
        mixed: NDArray[numpy.float64] = ground * below + laid * share
        return mixed
    below = below * (ground[:, :, 3:] / 255)
    alpha = below + share
    colours = (ground[:, :, :3] * below + laid * share) / numpy.where(alpha > 0, alpha, 1)
    colours = numpy.where(share > 0, colours, ground[:, :, :3])
    both: NDArray[numpy.float64] = numpy.concatenate([colours, alpha * 255], axis=2)
    return both
