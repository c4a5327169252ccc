"""What a model painted -> the pixels of an image's file, and what the file carries.

Between the decoder and the file: for a recipe of words alone nothing happens here; what was painted
under a mask is laid over its source, and a transparent image gets its transparency back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from klein_cli.images.masks import MaskedSource
from klein_cli.images.reading import Picture
from klein_cli.images.references import prepare_alpha
from klein_cli.images.store import ImageStore
from klein_cli.output.carried import Carried
from klein_cli.output.png import EXTENSIONS
from klein_cli.recipe import Mask, Recipe

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

WEBP_SIDE = 16_383
"""Pixels a side of the largest image that a WebP file holds."""


def finished(
    recipe: Recipe, painted: NDArray[numpy.uint8], store: ImageStore, *, opaque: bool = True
) -> tuple[NDArray[numpy.uint8] | NDArray[numpy.uint16], Carried | None]:
    """The pixels of the file of `recipe`, and what it carries; None for words alone.

    `painted` (h, w, 3) uint8 has the recipe's sides. With a mask the result has the source's,
    expanded; its bits a channel; and its colours' profile. Unless `opaque`, a transparent source's
    alpha comes back as a fourth channel. Raises UsageError when an image has gone or has changed.
    """
    if not recipe.references:
        return painted, None
    source = store.picture(recipe.references[0].sha256)
    if recipe.mask is not None:
        return _over_source(store.masked(recipe), recipe.mask, painted, opaque=opaque)
    return _with_alpha(painted, source, opaque=opaque), _carried(source, profile=None)


def what_is_lost(picture: Picture, extension: str) -> str | None:
    """Why a file of this ending does not hold the kept pixels of `picture` bit for bit, if so."""
    kind = EXTENSIONS[extension.lower()]
    if kind == "JPEG":
        return "a JPEG file holds no pixel exactly"
    if kind == "WEBP" and picture.kept.dtype.itemsize > 1:
        return f"a WebP file holds 8 of the 16 bits a channel of {picture.name}"
    if kind == "WEBP" and max(picture.width, picture.height) > WEBP_SIDE:
        return f"a WebP file is at most {WEBP_SIDE} pixels wide and high"
    return None


def _over_source(
    masked: MaskedSource, mask: Mask, painted: NDArray[numpy.uint8], *, opaque: bool
) -> tuple[NDArray[numpy.uint8] | NDArray[numpy.uint16], Carried]:
    pixels = masked.composite(painted, blur=mask.blur, keep=mask.keep, opaque=opaque)
    source = masked.picture
    return pixels, _carried(source, profile=source.profile, lossless=mask.keep)


def _with_alpha(
    painted: NDArray[numpy.uint8], source: Picture, *, opaque: bool
) -> NDArray[numpy.uint8]:
    import numpy

    height, width = painted.shape[:2]
    alpha = None if opaque else prepare_alpha(source, width, height)
    return painted if alpha is None else numpy.dstack([painted, alpha])


def _carried(source: Picture, *, profile: bytes | None, lossless: bool = False) -> Carried:
    return Carried(profile=profile, dpi=source.dpi, copyright=source.copyright, lossless=lossless)
