"""Acceptance: edits on a random snapshot are those of diffusers' pipelines, to single bits of noise.

The snapshot is made to show mistakes (`edit_models`): references swapped move the latents by 3e-3
of their norm, a second one dropped by 1e-2; what may differ is 1e-5.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_models import images as drawn
from PIL import Image
from small_models import distance
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.images.references import processed_size
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Pipeline, Trace, choose
from klein_cli.recipe import Recipe, Reference
from klein_cli.settings import Settings

STORE = ImageStore()
SIZE = (144, 112)
STEPS = 2
PROMPT = "a cat"


def put(image: Image.Image, name: str) -> Reference:
    """An image in the store, as a recipe names it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    found = STORE.add(file.getvalue(), name=name)
    width, height = processed_size(found.width, found.height)
    return Reference(sha256=found.sha256, name=name, width=width, height=height)


IMAGES = drawn()
FIRST, SECOND = REFERENCES = tuple(map(put, IMAGES, ("first.png", "second.png")))
RECIPE = Recipe(
    prompt=PROMPT,
    seed=7,
    width=SIZE[0],
    height=SIZE[1],
    steps=STEPS,
    guidance=1.0,
    model="edit",
    references=REFERENCES,
)


def pipeline(root: Path, engine: str = "native") -> Pipeline:
    return Pipeline.load(
        resolve(str(root)), choose(Settings(device="cpu", dtype="float32", engine=engine))
    )


def official_of(root: Path) -> Any:
    from diffusers import Flux2KleinPipeline

    pipe = Flux2KleinPipeline.from_pretrained(root, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(edit_snapshot: Path) -> Pipeline:
    return pipeline(edit_snapshot)


@pytest.fixture(scope="module")
def official(edit_snapshot: Path) -> Any:
    return official_of(edit_snapshot)


def edited(pipe: Pipeline, recipes: Sequence[Recipe]) -> tuple[list[np.ndarray[Any, Any]], Tensor]:
    """The images of recipes, and their last latents (B, N, C)."""
    trace = Trace()
    made = pipe.render(recipes, images=STORE, trace=trace)
    return made, trace.latents[-1]


def wanted(pipe: Any, recipe: Recipe, **more: Any) -> tuple[np.ndarray[Any, Any], Tensor]:
    """What one of diffusers' pipelines makes of a recipe: its image and its last latents."""
    last: list[Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last.append(tensors["latents"])
        return {}

    image = pipe(
        prompt=recipe.prompt,
        num_inference_steps=recipe.steps,
        generator=torch.Generator().manual_seed(recipe.seed),
        callback_on_step_end=keep,
        **more,
    ).images[0]
    return np.asarray(image), last[-1]


def editing(pipe: Any, recipe: Recipe, given: Sequence[Image.Image], **more: Any) -> Any:
    size = {"width": recipe.width, "height": recipe.height}
    return wanted(pipe, recipe, image=list(given) or None, **size, **more)


def assert_same(found: Any, expected: Any, *, row: int = 0) -> None:
    (made, latents), (image, last) = found, expected
    assert distance(latents[row], last[0]) < 1e-5
    assert image.std() > 20
    assert np.abs(made[row].astype(int) - image).max() <= 1


ASKED = {
    "none": (),
    "one": (FIRST,),
    "two": (FIRST, SECOND),
    "swapped": (SECOND, FIRST),
    "the same twice": (FIRST, FIRST),
}


@pytest.mark.parametrize("asked", ASKED)
def test_references(ours: Pipeline, official: Any, asked: str) -> None:
    references = ASKED[asked]
    recipe = replace(RECIPE, references=references)
    given = [IMAGES[REFERENCES.index(each)] for each in references]
    expected = editing(official, recipe, given, guidance_scale=1.0)
    assert_same(edited(ours, [recipe]), expected)
