"""References to time edits with, made by rule."""

from __future__ import annotations

from pathlib import Path

from klein_cli.images.patterns import pattern, put
from klein_cli.images.references import processed_size
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Recipe, Reference

_MOST = 10
"""More references than a recipe has: those of two numbers differ."""


def references_of_size(
    count: int, width: int, height: int, images: ImageStore, number: int = 0
) -> tuple[Reference, ...]:
    """So many references of an image's own size, at most 1 MP, put into `images`."""
    width, height = processed_size(width, height)
    return tuple(
        put(images, pattern(_MOST * number + k, width, height), f"reference-{number}-{k}.png")
        for k in range(count)
    )


def references_like(recipe: Recipe, images: ImageStore, number: int) -> tuple[Reference, ...]:
    """Others for a recipe, of as many and of the same sizes; another `number`, other images."""
    return references_of_size(len(recipe.references), recipe.width, recipe.height, images, number)


def as_options(recipe: Recipe, images: ImageStore, folder: Path) -> list[str]:
    """The files of a recipe's references, written into a folder, as `klein generate` takes them."""
    options = []
    for each in recipe.references:
        source = images.source(each.sha256)
        assert isinstance(source, bytes)
        path = folder / each.name
        path.write_bytes(source)
        options += ["-i", str(path)]
    return options
