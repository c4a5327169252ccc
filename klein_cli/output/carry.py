"""What of the image that was edited goes into the file of its result: alpha, profile, origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from klein_cli.images.levels import over
from klein_cli.images.references import prepare_alpha
from klein_cli.output.extras import NOTHING_ELSE, Extras
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
    as it was: in its own profile, depth and, unless `opaque`, alpha.
    """

    edit: bool = False
    opaque: bool = False

    def of(
        self, recipe: Recipe, pixels: Pixels, images: ImageStore | None
    ) -> tuple[Pixels, Extras]:
        """The pixels, (H, W, 3 or 4) of 8 or 16 bits, and what goes beside them in the file."""
        mask = recipe.mask
        if images is None or not recipe.references:
            return pixels, NOTHING_ELSE
        if mask is None and not self.edit:
            return pixels, Extras(says_srgb=True)
        source = images.picture(recipe.references[0].sha256)
        if self.opaque and pixels.shape[2] == 4:
            pixels = over(pixels[:, :, :3], pixels[:, :, 3], white=True)
        if mask is None and not self.opaque:
            pixels = _with_alpha(pixels, source)
        return pixels, Extras(
            profile=source.profile if mask else None,
            says_srgb=True,
            lossless=mask is not None and mask.keep,
            dpi=source.dpi if self.edit else None,
            copyright=source.copyright if self.edit else None,
        )


DRAWN = Carry()
"""Images of words, and after others."""


def _with_alpha(pixels: Pixels, source: Picture) -> Pixels:
    import numpy

    height, width = pixels.shape[:2]
    alpha = prepare_alpha(source, width, height)
    return pixels if alpha is None else numpy.dstack([pixels, alpha])
