"""What a recipe was given besides words, as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator

from klein_cli.recipe import Mask, Recipe

_DIGITS = 12
"""Of a digest: enough to tell files apart at a glance."""


def given(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """A name and what there is to say of it: each image, the mask, each adapter."""
    for image in recipe.references:
        seen = f"seen at {image.width}x{image.height}"
        yield "image", f"{image.name}, {seen} (sha256 {image.sha256[:_DIGITS]})"
    if recipe.mask is not None:
        yield "mask", ", ".join(_of_mask(recipe.mask))
    for adapter in recipe.adapters:
        weight = f"weight {adapter.weight:g}"
        yield "adapter", f"{adapter.name}, {weight} (sha256 {adapter.sha256[:_DIGITS]})"


def _of_mask(mask: Mask) -> Iterator[str]:
    if mask.sha256 is not None:
        yield f"{mask.name} (sha256 {mask.sha256[:_DIGITS]})"
    if mask.alpha:
        yield "what is transparent"
    if mask.expand is not None:
        left, top, right, bottom = mask.expand
        yield f"expanded by {left} left, {top} top, {right} right, {bottom} bottom"
    left, top, right, bottom = mask.box
    yield f"painted in {right - left}x{bottom - top} at {left},{top}"
    if mask.blur:
        yield f"blur {mask.blur}"
    yield "all else kept" if mask.keep else "nothing kept"
