"""An image in memory, and what it knows of itself: what the library hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klein_cli.errors import UsageError
from klein_cli.output.carry import DRAWN
from klein_cli.output.extras import NOTHING_ELSE
from klein_cli.output.metadata import parameters
from klein_cli.output.png import EXTENSIONS, encode, save
from klein_cli.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PillowImage

    from klein_cli.images.store import ImageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """`pixels` (H, W, 3) uint8 RGB, and the `recipe` that draws them again.

    Of an edit with a mask they have the source's profile, its bits a channel, and its alpha if it
    has one. `record` is what a saved file says of itself, `images` has those that the recipe
    names. All are None for an image that no recipe describes, such as one of latents of your own.
    """

    pixels: NDArray[Any] = field(repr=False)
    recipe: Recipe | None = None
    record: Mapping[str, Any] | None = field(default=None, repr=False)
    images: ImageStore | None = field(default=None, repr=False, compare=False)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a PNG, JPEG or WebP file, as the name ends, with the record inside.

        The file is whole or not there at all; missing folders are made. Returns its path. Raises
        UsageError for another ending, FileExistsError unless `overwrite`, OSError when the disk
        refuses, KleinError for a format that cannot hold what a mask has kept.
        """
        path = Path(path)
        if path.suffix.lower() not in EXTENSIONS:
            known = ", ".join(EXTENSIONS)
            raise UsageError(f"{path} has no image file extension", f"use {known}")
        pixels, text, extras = self.pixels, "", NOTHING_ELSE
        if self.recipe is not None:
            text = parameters(self.recipe)
            pixels, extras = DRAWN.of(self.recipe, pixels, self.images, path.suffix)
        save(encode(pixels, path.suffix, self.record, text, extras), path, overwrite=overwrite)
        return path

    def to_pil(self) -> PillowImage:
        """The image as Pillow knows it, of 8 bits a channel."""
        from PIL import Image as pillow

        from klein_cli.images.levels import narrowed

        pixels = narrowed(self.pixels) if self.pixels.dtype.itemsize > 1 else self.pixels
        return pillow.fromarray(pixels)
