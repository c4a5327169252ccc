"""The edits that `klein verify` draws, of images made by rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from klein_cli.images.files import MIN_SIDE
from klein_cli.images.patterns import pattern, put
from klein_cli.images.references import MAX_AREA
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Mask, Recipe, Reference


def edits(recipe: Recipe, images: ImageStore, *, masks: bool) -> list[Recipe]:
    """`recipe`, of words alone, with one reference, with two, and with a mask; seeds count on.

    The references are put into `images`. One is a little larger than the recipe's image, so that it
    is shrunk where that is of 1 MP, and one smaller; their sides are no multiples of 16. Without
    `masks`, for a model whose official code has none, the last one is left out.
    """
    width, height = recipe.width, recipe.height
    first = put(images, pattern(0, width + 5, height + 9), "first.png")
    second = put(images, pattern(1, width * 3 // 4 + 5, height * 5 // 8 + 3), "second.png")
    made = [replace(recipe, references=each) for each in ((first,), (first, second))]
    if masks:
        made.append(_masked(recipe, images, second))
    return [replace(one, seed=recipe.seed + n) for n, one in enumerate(made, start=1)]


def _masked(recipe: Recipe, images: ImageStore, more: Reference) -> Recipe:
    """Painted whole, within whole tokens: where klein's mask is that of diffusers."""
    width, height = recipe.width, recipe.height
    if width * height > MAX_AREA:
        width, height = 1024, 1024
    width, height = max(width, MIN_SIDE), max(height, MIN_SIDE)
    white = np.zeros((height, width), np.uint8)
    white[height // 64 * 16 : -16, width // 64 * 16 : -32] = 255
    source, mask = put(images, pattern(2, width, height), "source.png"), put(images, white, "mask")
    hole = Mask(sha256=mask.sha256, name=mask.name, box=(0, 0, width, height), keep=False)
    return replace(recipe, width=width, height=height, references=(source, more), mask=hole)
