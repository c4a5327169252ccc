"""What of the image that was edited goes into the file of its result: alpha, profile, origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from klein_cli.output.extras import NOTHING_ELSE, Extras
from klein_cli.recipe import Recipe

if TYPE_CHECKING:
    from klein_cli.images.reading import Picture
    from klein_cli.images.store import ImageStore
    from klein_cli.run.fallback import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Carry:
    """How a run's results take after what they were made of.

    An `edit` of an image has its resolution, copyright and, unless `opaque`, its alpha; an image
    that was only drawn after others has nothing of them. What a mask keeps, it keeps in any case:
    in its own profile, and encoded without losses where the format can.
    """

    edit: bool = False
    opaque: bool = False

    def of(
        self, recipe: Recipe, pixels: Pixels, images: ImageStore | None, *, has_alpha: bool
    ) -> tuple[Pixels, Extras]:
        """(H, W, 3 or 4) uint8 pixels for a file that `has_alpha` or not, and what goes beside
        them.
        """
        from klein_cli.images.levels import over

        if images is None or not recipe.references:
            return pixels, NOTHING_ELSE
        masked = recipe.mask is not None
        if not (masked or self.edit):
            return pixels, NOTHING_ELSE
        source = images.picture(recipe.references[0].sha256)
        transparent = has_alpha and not self.opaque
        if pixels.shape[2] == 4 and not transparent:
            pixels = over(pixels[:, :, :3], pixels[:, :, 3], 255)
        elif not masked and transparent:
            pixels = _with_alpha(pixels, source)
        return pixels, Extras(
            profile=source.profile if masked else None,
            lossless=recipe.mask is not None and recipe.mask.keep,
            dpi=source.dpi if self.edit else None,
            copyright=source.copyright if self.edit else None,
        )


DRAWN = Carry()


def _with_alpha(pixels: Pixels, source: Picture) -> Pixels:
    import numpy

    from klein_cli.images.references import prepare_alpha

    height, width = pixels.shape[:2]
    alpha = prepare_alpha(source, width, height)
    return pixels if alpha is None else numpy.dstack([pixels, alpha])
