"""Images made by rule, the same on every machine: what klein is checked and timed with."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from klein_cli.images.files import MIN_SIDE
from klein_cli.images.inputs import reference
from klein_cli.recipe import Reference

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from klein_cli.images.store import ImageStore


def pattern(number: int, width: int, height: int) -> NDArray[numpy.uint8]:
    """(height, width, 3) uint8: colours that run into each other, with a grain.

    Another `number`, another image. No side is shorter than an image's may be.
    """
    import numpy

    width, height = max(width, MIN_SIDE), max(height, MIN_SIDE)
    across = numpy.linspace(0, 1, width, dtype=numpy.float32)
    down = numpy.linspace(0, 1, height, dtype=numpy.float32)[:, None]
    waves = [numpy.sin(number + 7 * (c + 1) * across + 5 * (3 - c) * down) for c in range(3)]
    grain = numpy.random.default_rng(number).integers(0, 16, (height, width, 1))
    return (120 + 100 * numpy.stack(waves, axis=-1) + grain).astype(numpy.uint8)


def put(images: ImageStore, pixels: NDArray[numpy.uint8], name: str) -> Reference:
    """Take pixels (H, W) or (H, W, 3) into a store as a PNG file; how a recipe names them."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return reference(images.add(file.getvalue(), name=name))
