"""What was painted, laid over the source: the kept pixels are the source's own, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from klein_cli.images.colour import from_srgb
from klein_cli.images.levels import blended
from klein_cli.images.reading import Picture

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


def composite(
    picture: Picture,
    painted: NDArray[numpy.uint8],
    white: NDArray[numpy.bool_],
    box: tuple[int, int, int, int],
    *,
    blur: int,
    keep: bool,
) -> NDArray[Any]:
    """See `masks.MaskedSource.composite`."""
    import numpy

    left, top, right, bottom = box
    laid = _fitted(painted, right - left, bottom - top, picture.profile)
    cut = white[top:bottom, left:right]
    weights = softened(cut, blur) if keep else numpy.ones(cut.shape, dtype=numpy.float32)
    result = _ground(picture)
    result[top:bottom, left:right] = blended(result[top:bottom, left:right], laid, weights)
    return result


def softened(white: NDArray[numpy.bool_], blur: int) -> NDArray[numpy.float32]:
    """(H, W) from 0 to 1: how much of what was painted is seen.

    0 outside the mask; inside, d/(blur + 1) at the d-th pixel from its edge (the 8 neighbours of a
    pixel are one away), and 1 from the one after `blur` on. The image's own edge is none.
    """
    import numpy

    depth = numpy.zeros(white.shape, dtype=numpy.uint16)
    inside = white
    for _ in range(blur + 1):
        depth += inside
        inside = _eroded(inside)
    return depth.astype(numpy.float32) / numpy.float32(blur + 1)


def _ground(picture: Picture) -> NDArray[Any]:
    """A copy of the source in its own profile and depth, with its alpha if it has one."""
    import numpy

    if picture.kept_alpha is None:
        return picture.kept.copy()
    return numpy.dstack([picture.kept, picture.kept_alpha])


def _fitted(
    painted: NDArray[numpy.uint8], width: int, height: int, profile: bytes | None
) -> NDArray[numpy.uint8]:
    """What was painted, in the source's profile and of the box's size."""
    import numpy
    from PIL import Image

    if profile is not None:
        painted = from_srgb(painted, profile)
    if painted.shape[:2] == (height, width):
        return painted
    image = Image.fromarray(painted)
    return numpy.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def _eroded(white: NDArray[numpy.bool_]) -> NDArray[numpy.bool_]:
    """Where all of 3 x 3 pixels are white; beyond the edges all are."""
    down = white.copy()
    down[1:] &= white[:-1]
    down[:-1] &= white[1:]
    both = down.copy()
    both[:, 1:] &= down[:, :-1]
    both[:, :-1] &= down[:, 1:]
    return both
