"""What of the image that was edited goes into the file of its result: alpha, profile, origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from klein_cli.errors import KleinError
from klein_cli.output.extras import NOTHING_ELSE, Extras
from klein_cli.output.png import has_alpha, is_lossless
from klein_cli.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from klein_cli.images.reading import Picture
    from klein_cli.images.store import ImageStore

    Pixels = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carry:
    """How a run's results take after what they were made of.

    An `edit` of an image has its resolution, its copyright and, unless `opaque`, its alpha; an
    image that was only drawn after others has nothing of them. What a mask keeps stays in any case
    as it was: in its own profile, depth and alpha.
    """

    edit: bool = False
    opaque: bool = False

    def of(
        self, recipe: Recipe, pixels: Pixels, images: ImageStore | None, extension: str
    ) -> tuple[Pixels, Extras]:
        """The pixels, (H, W, 3 or 4) of 8 or 16 bits, as a file of this ending can hold them, and
        what goes beside them. Raises KleinError when it cannot.
        """
        mask = recipe.mask
        if images is None or not recipe.references or not (mask or self.edit):
            return pixels, NOTHING_ELSE
        source = images.picture(recipe.references[0].sha256)
        transparent = has_alpha(extension) and not self.opaque
        if mask is None and transparent:
            pixels = _with_alpha(pixels, source)
        return _held(pixels, extension, transparent, mask is not None and mask.keep), Extras(
            profile=source.profile if mask else None,
            says_srgb=mask is None,
            lossless=mask is not None and mask.keep,
            dpi=source.dpi if self.edit else None,
            copyright=source.copyright if self.edit else None,
        )


DRAWN = Carry()
"""Images of words, and after others."""


def _with_alpha(pixels: Pixels, source: Picture) -> Pixels:
    import numpy

    from klein_cli.images.references import prepare_alpha

    height, width = pixels.shape[:2]
    alpha = prepare_alpha(source, width, height)
    return pixels if alpha is None else numpy.dstack([pixels, alpha])


def _held(pixels: Pixels, extension: str, transparent: bool, keep: bool) -> Pixels:
    from klein_cli.images.levels import narrowed, over

    if pixels.shape[2] == 4 and not transparent:
        pixels = over(pixels[:, :, :3], pixels[:, :, 3], white=True)
    if pixels.dtype.itemsize > 1 and extension.lower() != ".png":
        if keep and is_lossless(extension):
            raise KleinError(
                "only PNG keeps the 16 bits a channel of this image", "write .png, or --no-keep"
            )
        pixels = narrowed(pixels)
    return pixels
