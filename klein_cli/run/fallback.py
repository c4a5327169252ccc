"""Out of memory, step by step: half the batch, then the decoding in tiles, then an error.

A step, once taken, stands for the rest of the run, for images of that size and larger ones. It
is reported once and recorded on every image that it touches, because it may change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from klein_cli.errors import OutOfMemoryError
from klein_cli.recipe import PIXELS_PER_TOKEN, Recipe
from klein_cli.run.batching import Batch
from klein_cli.run.jobs import Job

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from torch import Tensor

    from klein_cli.images.store import ImageStore

    Pixels = NDArray[numpy.uint8]

_EIGHTHS = 8


class Renderer(Protocol):
    """What a run needs of a pipeline: see `klein_cli.pipeline.Pipeline.render`."""

    def render(
        self,
        recipes: Sequence[Recipe],
        *,
        callback: Callable[[int, float, Tensor], None] | None = None,
        on_event: Callable[[str], None] | None = None,
        seconds: dict[str, float] | None = None,
        tiled: bool = False,
        images: ImageStore | None = None,
    ) -> list[Pixels]: ...


class MemoryFallback:
    """What a run has learned about the memory it runs in."""

    def __init__(self) -> None:
        self._most: dict[int, int] = {}
        self._tiled_from: int | None = None

    def batches(self, jobs: tuple[Job, ...]) -> Iterator[Batch]:
        """The jobs of a batch in batches that may fit."""
        return self._cut(Batch(jobs=jobs, planned=len(jobs)))

    def step_down(self, failed: Batch, error: OutOfMemoryError) -> tuple[list[Batch], str | None]:
        """What to try instead, and what to say of it if it is new; nothing when all was tried."""
        recipe = failed.jobs[0].recipe
        size, pixels = _size(recipe), _pixels(recipe)
        count = len(failed.jobs)
        notice = None
        if count > 1:
            if count // 2 < self._at_once(_seen(recipe), count):
                self._most[_seen(recipe)] = count // 2
                beside = f" with {len(recipe.references)} references" if recipe.references else ""
                notice = f"{error.message}; from here on, images of {size}{beside} and larger are "
                notice += "made "
                notice += "one by one" if count == 2 else f"{count // 2} at a time"
        elif failed.tiled:
            return [], None
        elif not self._is_tiled(pixels):
            self._tiled_from = pixels
            notice = f"{error.message}; from here on, images of {size} and larger are decoded in "
            notice += "tiles, which may show faintly"
        return list(self._cut(failed)), notice

    def _cut(self, batch: Batch) -> Iterator[Batch]:
        recipe = batch.jobs[0].recipe
        most = self._at_once(_seen(recipe), len(batch.jobs))
        for at in range(0, len(batch.jobs), most):
            jobs = batch.jobs[at : at + most]
            planned = batch.planned if most < batch.planned else len(jobs)
            yield replace(batch, jobs=jobs, planned=planned, tiled=self._is_tiled(_pixels(recipe)))

    def _at_once(self, pixels: int, wanted: int) -> int:
        known = (most for least, most in self._most.items() if least <= pixels)
        return min([wanted, *known])

    def _is_tiled(self, pixels: int) -> bool:
        return self._tiled_from is not None and pixels >= self._tiled_from


def what_fits(renderer: Renderer, recipe: Recipe, images: ImageStore | None = None) -> str | None:
    """The largest size of this shape, in eighths, that can be drawn here, found by trying.

    One step is enough to know, since every step takes the same memory. None when nothing fits, and
    for a part of an image, whose size nobody can choose.
    """
    if recipe.mask is not None:
        return None
    fits, too_large, found = 0, _EIGHTHS, None
    while too_large - fits > 1:
        eighths = (fits + too_large) // 2
        width, height = (_part(side, eighths) for side in (recipe.width, recipe.height))
        smaller = replace(recipe, width=width, height=height, steps=1)
        try:
            renderer.render([smaller], tiled=True, images=images)
        except Exception:
            # Out of memory; and whatever else happens where there is hardly any left.
            too_large = eighths
        else:
            fits, found = eighths, _size(smaller)
    return found


def _part(side: int, eighths: int) -> int:
    return max(PIXELS_PER_TOKEN, side * eighths // _EIGHTHS // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN)


def _pixels(recipe: Recipe) -> int:
    return recipe.width * recipe.height


def _seen(recipe: Recipe) -> int:
    """The pixels that the transformer has before it: the image's, and those of its references."""
    return _pixels(recipe) + sum(given.width * given.height for given in recipe.references)


def _size(recipe: Recipe) -> str:
    return f"{recipe.width}x{recipe.height}"
