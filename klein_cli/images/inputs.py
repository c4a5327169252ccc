"""Files, bytes and Pillow's images -> what a recipe says of them: digests and sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from klein_cli.errors import UsageError
from klein_cli.images.masks import Expand, masked_source
from klein_cli.images.references import processed_size
from klein_cli.recipe import ALPHA, Mask, Reference

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from klein_cli.images.reading import Probe
    from klein_cli.images.store import ImageStore

ImageSource: TypeAlias = "str | Path | bytes | PillowImage"
"""A path, the bytes of a file, or an image of Pillow's."""


def references(images: ImageStore, given: Sequence[ImageSource]) -> tuple[Reference, ...]:
    """Take images into a store; how a recipe names them. Raises UsageError.

    Each is a path, the bytes of a file, or an image of Pillow's, which is taken as a PNG file.
    """
    return tuple(reference(_taken(images, each)) for each in given)


def masked(
    images: ImageStore,
    source: Reference,
    mask: ImageSource | None,
    *,
    expand: Expand | None = None,
    blur: int = 0,
    keep: bool = True,
) -> tuple[Reference, Mask]:
    """The source of a mask as its recipe has it, and the mask, taken into the store.

    `mask` is a file, or ALPHA, or None for an expansion alone; `expand` are pixels at the left,
    top, right and bottom, painted too. Raises UsageError as `masks.masked_source` does.
    """
    alpha = isinstance(mask, str) and mask == ALPHA
    file = None if alpha or mask is None else _taken(images, mask)
    painted = masked_source(
        images.picture(source.sha256),
        None if file is None else images.mask(file.sha256),
        alpha=alpha,
        expand=expand,
    )
    width, height = painted.painted_size
    return Reference(sha256=source.sha256, name=source.name, width=width, height=height), Mask(
        sha256=None if file is None else file.sha256,
        name=None if file is None else told_name(file),
        alpha=alpha,
        expand=expand,
        box=painted.box,
        blur=blur,
        keep=keep,
    )


def reference(found: Probe) -> Reference:
    """How a recipe names an image that was found."""
    width, height = processed_size(found.width, found.height)
    return Reference(sha256=found.sha256, name=told_name(found), width=width, height=height)


def told_name(found: Probe) -> str:
    """A file's name as a record can hold it: valid Unicode, and nothing that could be a path."""
    return found.name.encode("utf-8", "replace").decode().replace("\\", "_")


def _taken(images: ImageStore, given: ImageSource) -> Probe:
    if isinstance(given, (str, Path)):
        return images.add(Path(given))
    if isinstance(given, bytes):
        return images.add(given, name="image")
    file = io.BytesIO()
    try:
        given.save(file, "PNG", compress_level=1)
    except (AttributeError, OSError):
        what = getattr(given, "mode", type(given).__name__)
        raise UsageError(
            f"{what} is not a kind of image that can be edited",
            "give a path, the bytes of a file, or an RGB image of Pillow's",
        ) from None
    return images.add(file.getvalue(), name="image.png")
