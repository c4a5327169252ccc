"""The edits that `klein verify` draws, of images made here: the same on every machine."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from klein_cli.images.references import MAX_AREA, processed_size
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Mask, Recipe, Reference

_SMALLEST = 64


def edits(recipe: Recipe, images: ImageStore, *, masks: bool) -> list[Recipe]:
    """`recipe`, of words alone, with one reference, with two, and with a mask; seeds count on.

    The references are put into `images`. They are of the size of the recipe's image and smaller,
    not square, no multiples of 16, and one is over the cap where the image is of 1 MP. Without
    `masks`, of a model whose official code has none, the last one is left out.
    """
    width, height = recipe.width, recipe.height
    first = _put(images, _drawn(0, width + 5, height + 9), "first.png")
    second = _put(images, _drawn(1, width * 3 // 4 + 5, height * 5 // 8 + 3), "second.png")
    made = [replace(recipe, references=each) for each in ((first,), (first, second))]
    if masks:
        made.append(_masked(recipe, images, second))
    return [replace(one, seed=recipe.seed + n) for n, one in enumerate(made, start=1)]


def _masked(recipe: Recipe, images: ImageStore, more: Reference) -> Recipe:
    """Painted whole, into nothing but whole tokens: where klein's mask is that of diffusers."""
    width, height = recipe.width, recipe.height
    if width * height > MAX_AREA:
        width, height = 1024, 1024
    width, height = max(width, _SMALLEST), max(height, _SMALLEST)
    white = np.zeros((height, width, 3), np.uint8)
    white[height // 64 * 16 : -16, width // 64 * 16 : -32] = 255
    source = _put(images, _drawn(2, width, height), "source.png")
    mask = _put(images, white, "mask.png")
    hole = Mask(sha256=mask.sha256, name=mask.name, box=(0, 0, width, height), keep=False)
    return replace(recipe, width=width, height=height, references=(source, more), mask=hole)


def _drawn(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Colours that run into each other, with stripes and grain, (height, width, 3) uint8."""
    width, height = max(width, _SMALLEST), max(height, _SMALLEST)
    across, down = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    waves = [np.sin(number + 7 * (c + 1) * across + 5 * (3 - c) * down) for c in range(3)]
    grain = np.random.default_rng(number).normal(0, 0.1, (height, width, 3))
    return (127.5 + 100 * np.clip(np.stack(waves, axis=-1) + grain, -1.2, 1.2)).astype(np.uint8)


def _put(images: ImageStore, pixels: NDArray[np.uint8], name: str) -> Reference:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    found = images.add(file.getvalue(), name=name)
    width, height = processed_size(found.width, found.height)
    return Reference(sha256=found.sha256, name=name, width=width, height=height)
