"""A picture -> the reference that a model sees: at most 1 MP, sides multiples of 16.

As diffusers' Flux2KleinPipeline prepares its images, to the bit: never enlarged, shrunk by LANCZOS,
and cropped at the centre.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from klein_cli.recipe import PIXELS_PER_TOKEN

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

    from klein_cli.images.reading import Picture

MAX_AREA = 1024 * 1024


def capped_size(width: int, height: int) -> tuple[int, int]:
    """Sides of an image of at most MAX_AREA pixels.

    Truncated in double precision, in this order, as diffusers computes it: a square of 1040 becomes
    one of 1023, where integers would give 1024.
    """
    if width * height <= MAX_AREA:
        return width, height
    scale = math.sqrt(MAX_AREA / (width * height))
    return int(width * scale), int(height * scale)


def floored(side: int) -> int:
    """The largest multiple of a token's side that is no longer than `side`, one token at least."""
    return max(side // PIXELS_PER_TOKEN, 1) * PIXELS_PER_TOKEN


def processed_size(width: int, height: int) -> tuple[int, int]:
    """Sides in pixels of the reference that an image of these sides becomes."""
    width, height = capped_size(width, height)
    return floored(width), floored(height)


def prepare(picture: Picture) -> NDArray[numpy.uint8]:
    """(h, w, 3) uint8: `picture.rgb` as a model sees it, of `processed_size`."""
    import numpy
    from PIL import Image

    return numpy.asarray(_prepared(Image.fromarray(picture.rgb)))


def prepare_alpha(picture: Picture, width: int, height: int) -> NDArray[numpy.uint8] | None:
    """(height, width) uint8: the alpha of an edit of `picture` that has these sides."""
    import numpy
    from PIL import Image

    if picture.alpha is None:
        return None
    alpha = _prepared(Image.fromarray(picture.alpha))
    if alpha.size != (width, height):
        alpha = alpha.resize((width, height), Image.Resampling.LANCZOS)
    return numpy.asarray(alpha)


def _prepared(image: Image.Image) -> Image.Image:
    from PIL import Image as pillow

    width, height = capped_size(image.width, image.height)
    if (width, height) != image.size:
        image = image.resize((width, height), pillow.Resampling.LANCZOS)
    wide, high = floored(width), floored(height)
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))
