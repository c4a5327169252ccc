"""The images that recipes name -> what a batch is conditioned on, and what its mask keeps.

Each is encoded once, whatever number of prompts and seeds use it: the last ones are remembered, by
the digest of the file and by what of it the model sees, and so is what the engine made of several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klein_cli.engines.engine import Engine
from klein_cli.images.masks import MaskedSource
from klein_cli.images.store import ImageStore
from klein_cli.recipe import PIXELS_PER_TOKEN, Recipe
from klein_cli.sampling.encode import from_pixels
from klein_cli.sampling.latents import position_ids
from klein_cli.sampling.loop import Blend
from klein_cli.sampling.masks import Kept

_ENCODED_BYTES = 2**26
"""Latents of about thirty references at 1024x1024."""
_REFERRED_BYTES = 2**31
"""Keys and values of one reference of the 9B, or the latents of any number."""


class _Seen(NamedTuple):
    """What of a file the model sees; `box` and `expand` are those of a mask's source."""

    sha256: str
    size: tuple[int, int]
    box: tuple[int, ...] | None = None
    expand: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What a batch is given besides words; the defaults are of one that is given nothing.

    `references` (B or 1, ...) are as `Engine.refer` leaves them, `grids` (h, w) of each in tokens.
    With a mask, `sources` are what the recipes paint over, one each, and `latents` (B or 1, N, C)
    float32 theirs.
    """

    references: Tensor | None = None
    grids: tuple[tuple[int, int], ...] = ()
    sources: tuple[MaskedSource, ...] = ()
    latents: Tensor | None = None

    def blend(self, noise: Tensor) -> Blend | None:
        """What is put back after each step of images that began as `noise` (B, N, C)."""
        if self.latents is None:
            return None
        tokens = np.stack([source.tokens() for source in self.sources])
        painted = torch.tensor(tokens, device=noise.device)[:, :, None]
        return Kept(source=self.latents, noise=noise, painted=painted)

    def finished(
        self, recipes: Sequence[Recipe], painted: Sequence[NDArray[np.uint8]]
    ) -> list[NDArray[Any]]:
        """What was painted, laid over the sources where there are any, in their bits a channel."""
        if not self.sources:
            return list(painted)
        return [
            source.composite(pixels, blur=recipe.mask.blur, keep=recipe.mask.keep)
            for source, pixels, recipe in zip(self.sources, painted, recipes, strict=True)
            if recipe.mask is not None
        ]


NOTHING = Given()


class References:
    """The references of one engine's recipes, on its device."""

    def __init__(self, engine: Engine[Any]) -> None:
        self._engine = engine
        self._encoded = Remembered(_ENCODED_BYTES)
        self._referred = Remembered(_REFERRED_BYTES)

    def clear(self) -> None:
        """Give back the memory."""
        self._encoded.clear()
        self._referred.clear()

    def forget_referred(self) -> None:
        """The transformer's weights are others now."""
        self._referred.clear()

    def given(self, recipes: Sequence[Recipe], images: ImageStore) -> Given:
        """What recipes of one shape, with references, are given.

        Raises UsageError for a file that has gone or changed, or is not what a recipe says.
        """
        seen = [_Images(recipe, images) for recipe in recipes]
        references = _one_or_all([self._refer(each) for each in seen])
        given = Given(references, tuple(_grids(recipes[0])))
        if not recipes[0].shape.masked:
            return given
        latents = _one_or_all([self._latents(each, 0) for each in seen])
        return replace(given, sources=tuple(each.source for each in seen), latents=latents)

    def _refer(self, seen: _Images) -> Tensor:
        def refer() -> Tensor:
            numbers = range(len(seen.recipe.references))
            each = [self._latents(seen, number) for number in numbers]
            latents = torch.cat(each, dim=1)
            ids = position_ids(0, (0, 0), latents.device, _grids(seen.recipe))
            return self._engine.refer(latents, ids)

        return self._referred.get(seen.keys, refer)

    def _latents(self, seen: _Images, number: int) -> Tensor:
        """(1, h * w, C) float32."""

        def encode() -> Tensor:
            return self._engine.encode(from_pixels(seen.pixels(number)))[None]

        return self._encoded.get(seen.keys[number], encode)


class _Images:
    """What the model sees of one recipe's references."""

    def __init__(self, recipe: Recipe, images: ImageStore) -> None:
        self.recipe = recipe
        self._images = images
        self.keys = _seen(recipe)

    @cached_property
    def source(self) -> MaskedSource:
        """Of a recipe with a mask."""
        return self._images.masked(self.recipe)

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """(h, w, 3) of one reference."""
        if self.recipe.mask is not None and number == 0:
            return self.source.pixels()
        return self._images.reference(self.recipe.references[number])


class Remembered:
    """The tensors that were made last, by what they were made of.

    They take at most `most` bytes, the newest aside. Room is made before the next one, on the
    guess that it will be as large as the newest.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: dict[object, Tensor] = {}

    def get(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, made now if it is not remembered."""
        tensor = self._made.pop(key, None)
        if tensor is None:
            self._make_room()
            tensor = make()
        self._made[key] = tensor
        return tensor

    def clear(self) -> None:
        """Forget all."""
        self._made.clear()

    def _make_room(self) -> None:
        sizes = [each.nbytes for each in self._made.values()]
        expected = sizes[-1] if sizes else 0
        for key, size in zip(list(self._made), list(sizes), strict=True):
            if sum(sizes) + expected <= self._most:
                return
            del self._made[key]
            sizes.remove(size)


def _grids(recipe: Recipe) -> list[tuple[int, int]]:
    """(h, w) of each reference, in tokens."""
    return [
        (each.height // PIXELS_PER_TOKEN, each.width // PIXELS_PER_TOKEN)
        for each in recipe.references
    ]


def _seen(recipe: Recipe) -> tuple[_Seen, ...]:
    seen = [_Seen(each.sha256, (each.width, each.height)) for each in recipe.references]
    if recipe.mask is not None:
        seen[0] = seen[0]._replace(box=recipe.mask.box, expand=recipe.mask.expand)
    return tuple(seen)


def _one_or_all(each: Sequence[Tensor]) -> Tensor:
    """(1, ...) tensors as one, itself where all are the same object."""
    return each[0] if all(one is each[0] for one in each) else torch.cat(list(each))
