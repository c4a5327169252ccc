"""An image in memory, and what it knows of itself: what the library hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klein_cli.errors import UsageError
from klein_cli.images.levels import narrowed
from klein_cli.output.extras import NOTHING_ELSE, Extras
from klein_cli.output.metadata import parameters
from klein_cli.output.png import EXTENSIONS, encode, save
from klein_cli.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PillowImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """`pixels` (H, W, 3) uint8 RGB, and the `recipe` that draws them again.

    `record` is what a saved file says of itself. Both are None for an image that no recipe
    describes, such as one of latents of your own. An edit may have a fourth channel, alpha, and
    uint16 for pixels if it keeps those of a file of 16 bits a channel; `extras` is what its file
    says of its colours and takes over from its source.
    """

    pixels: NDArray[Any] = field(repr=False)
    recipe: Recipe | None = None
    record: Mapping[str, Any] | None = field(default=None, repr=False)
    extras: Extras = field(default=NOTHING_ELSE, repr=False)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a PNG, JPEG or WebP file, as the name ends, with the record inside.

        The file is whole or not there at all; missing folders are made. Returns its path. Raises
        UsageError for another ending, FileExistsError unless `overwrite`, OSError when the disk
        refuses.
        """
        path = Path(path)
        if path.suffix.lower() not in EXTENSIONS:
            known = ", ".join(EXTENSIONS)
            raise UsageError(f"{path} has no image file extension", f"use {known}")
        text = "" if self.recipe is None else parameters(self.recipe)
        data = encode(self.pixels, path.suffix, self.record, text, self.extras)
        save(data, path, overwrite=overwrite)
        return path

    def to_pil(self) -> PillowImage:
        """The image as Pillow knows it, of 8 bits a channel, with its profile if it has one."""
        from PIL import Image as pillow

        image = pillow.fromarray(narrowed(self.pixels))
        if self.extras.profile is not None:
            image.info["icc_profile"] = self.extras.profile
        return image
