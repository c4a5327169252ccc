"""Who is timed: klein, through its pipeline's public face, and what every contender offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from klein_cli.bench.measure import Memory
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.images.store import ImageStore
from klein_cli.output.metadata import parameters
from klein_cli.output.png import encode
from klein_cli.pipeline import Pipeline
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

KLEIN = "klein"


class Contender(Protocol):
    """One way from a recipe to an image, its model loaded on the device."""

    name: str
    memory: Memory

    def draw(self, recipe: Recipe) -> Image.Image:
        """The whole way of one image, from its words to the host's memory."""

    def stages(self, recipe: Recipe) -> dict[str, float]:
        """Draw an image and say how many seconds encode, denoise and decode took."""

    def png(self, image: Image.Image, recipe: Recipe) -> bytes:
        """An image as the bytes of its file."""


class Klein:
    """Our pipeline. Its stages are those that it times itself."""

    name = KLEIN

    def __init__(
        self, pipeline: Pipeline, memory: Memory, images: ImageStore | None = None
    ) -> None:
        self.memory = memory
        self._images = images
        self._pipeline = pipeline

    @classmethod
    def load(
        cls,
        snapshot: Snapshot,
        settings: Settings,
        on_event: Callable[[str], None],
        images: ImageStore | None = None,
    ) -> Klein:
        """The pipeline of a snapshot; `settings` come from `choose`, and `images` are those that
        recipes will name. Raises as Pipeline.load.
        """
        memory = Memory(torch.device(settings.device))
        with memory.watch():
            pipeline = Pipeline.load(snapshot, settings, on_event=on_event)
        return cls(pipeline, memory, images)

    def draw(self, recipe: Recipe) -> Image.Image:
        return Image.fromarray(self._pipeline.render([recipe], images=self._images)[0])

    def stages(self, recipe: Recipe) -> dict[str, float]:
        spent: dict[str, float] = {}
        self._pipeline.render([recipe], images=self._images, seconds=spent)
        return {name: spent[name] for name in ("encode", "denoise", "decode")}

    def png(self, image: Image.Image, recipe: Recipe) -> bytes:
        record = self._pipeline.origin.record(recipe)
        return encode(np.asarray(image), ".png", record, parameters(recipe))
