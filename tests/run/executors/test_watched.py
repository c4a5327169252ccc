"""Between the steps of a batch: who is told of them, and who can end it."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from klein_cli.errors import CancelledError
from klein_cli.recipe import Recipe
from klein_cli.run.executors.watched import WatchedSteps, shown_after
from klein_cli.run.executors.worker import DrawRequest
from klein_cli.sampling.latents import Latents

RECIPE = Recipe(prompt="a", seed=1, width=32, height=32, steps=4, guidance=1.0, model="m")


class Seen:
    """A pipeline whose noise is all ones, and whose images are the latents themselves."""

    class Image:
        def __init__(self, pixels: Any) -> None:
            self.pixels = pixels

    def noise(self, seeds: list[int], *, width: int, height: int) -> Latents:
        return Latents(torch.ones(len(seeds), 4, 1), (2, 2))

    def decode(self, latents: Latents) -> list[Image]:
        return [self.Image(one.numpy()) for one in latents.packed]


def watched(told: list[Any], *, previews: int = 0, cancelled: bool = False) -> WatchedSteps:
    request = DrawRequest(recipes=[RECIPE], tiled=False, number=1, watched=True, previews=previews)
    return WatchedSteps(
        request,
        Seen(),  # type: ignore[arg-type]
        lambda step, images: told.append((step, images)),
        lambda: cancelled,
    )


@pytest.mark.parametrize(
    ("steps", "previews", "after"),
    [(4, 0, set()), (4, 1, {2}), (4, 3, {1, 2, 3}), (4, 9, {1, 2, 3}), (1, 3, set())],
)
def test_the_last_step_is_never_a_preview(steps: int, previews: int, after: set[int]) -> None:
    assert shown_after(steps, previews) == after


def test_a_preview_is_where_the_last_velocity_leads() -> None:
    """Along v = noise - image, every step leads to the image itself: here to 3."""
    told: list[Any] = []
    steps = watched(told, previews=3)
    for step, sigma in enumerate((0.75, 0.5, 0.25, 0.0), start=1):
        steps(step, sigma, torch.full((1, 4, 1), 3 + sigma * (1 - 3.0)))
    assert [step for step, _ in told] == [1, 2, 3, 4]
    assert [len(images) for _, images in told] == [1, 1, 1, 0]
    for _, images in told[:3]:
        numpy.testing.assert_allclose(images[0], numpy.full((4, 1), 3.0), rtol=1e-5)


def test_a_batch_that_nobody_waits_for_ends_at_its_next_step() -> None:
    told: list[Any] = []
    with pytest.raises(CancelledError):
        watched(told, cancelled=True)(1, 0.75, torch.zeros(1, 4, 1))
    assert told == []
