"""klein at work for the judge of `tiny`: words, and pictures, to pictures, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tiny_world as world
from PIL import Image
from tiny_models import unpack
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.images.inputs import references
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings


@dataclass(frozen=True)
class Painter:
    """Draws and edits pictures of one size, (width, height), and number of steps by a pipeline."""

    pipeline: Pipeline
    size: tuple[int, int]
    steps: int
    batch: int

    @classmethod
    def open(
        cls, model: str, settings: Settings, size: tuple[int, int], steps: int, batch: int
    ) -> Painter:
        """With the model of a name or folder, as for klein generate."""
        snapshot = resolve(model)
        pipeline = Pipeline.load(snapshot, choose(settings, snapshot.preset))
        return cls(pipeline, size, steps, batch)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens down and across."""
        return self.size[1] // 16, self.size[0] // 16

    def paint(
        self, texts: Sequence[str], seed: int, before: Sequence[np.ndarray] = ()
    ) -> list[np.ndarray]:
        """(H, W, 3) uint8 pictures of the texts, or the ones `before` after what the texts ask.

        Picture k has the seed `seed` + k.
        """
        images = ImageStore()
        given = [references(images, [Image.fromarray(each)]) for each in before]
        recipes = [
            Recipe(
                prompt=text, seed=seed + k, width=self.size[0], height=self.size[1],
                steps=self.steps, guidance=1.0, model=self.pipeline.snapshot.name,
                references=given[k] if given else (),
            )
            for k, text in enumerate(texts)
        ]  # fmt: skip
        painted: list[np.ndarray] = []
        for first in range(0, len(recipes), self.batch):
            painted += self.pipeline.render(recipes[first : first + self.batch], images=images)
        return painted

    def layout_means(self, count: int, seed: int) -> Tensor:
        """(count, 2): what of the noise of `paint` decides where things lie."""
        seeds = range(seed, seed + count)
        noise = self.pipeline.noise(seeds, width=self.size[0], height=self.size[1])
        return world.layout_means(unpack(noise.packed, noise.grid).cpu())
