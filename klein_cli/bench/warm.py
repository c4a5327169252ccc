"""One image at a time, everything loaded: each contender in turn, round after round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from klein_cli.bench.contender import Contender
from klein_cli.bench.measure import Spread, timed
from klein_cli.bench.prompts import alike
from klein_cli.bench.references import references_like
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Recipe

_WARM_UPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """Seconds of one contender at one size.

    `first`: the first image of this size, with whatever is prepared or compiled for it.
    `picture`: the whole, from the words to the host's memory. `step`: what one more step costs, or
    None where the model takes a single one. `encode`, `denoise` and `decode` are taken from
    images of their own; `png` is the file's bytes. `peak` and `held`: bytes of the device at
    most and between images, `reserved` what its allocator took; None on a CPU.
    """

    first: float
    picture: Spread
    encode: Spread
    denoise: Spread
    decode: Spread
    png: Spread
    step: Spread | None = None
    peak: int | None
    held: int | None
    reserved: int | None


class Recipes:
    """Recipes of one shape, no two with the same prompt or the same references: what is equal is
    encoded only once. New references are put into `images`.
    """

    def __init__(self, first: Recipe, images: ImageStore) -> None:
        self._first = first
        self._images = images
        self._made = 0

    def next(self, steps: int | None = None) -> Recipe:
        """One that was not there before."""
        self._made += 1
        steps = self._first.steps if steps is None else steps
        references = references_like(self._first, self._images, self._made)
        one = replace(self._first, prompt=alike(self._made), references=references)
        return replace(one, seed=self._made, steps=steps)


def warm(
    contenders: Sequence[Contender],
    recipe: Recipe,
    rounds: int,
    device: torch.device,
    on_event: Callable[[str], None],
    images: ImageStore | None = None,
) -> dict[str, Warm]:
    """Every contender by name, in the shape of `recipe`, `rounds` times in changing order.

    `images` is where they look for references, if the recipe has any.
    """
    recipes, size = Recipes(recipe, images or ImageStore()), f"{recipe.width}x{recipe.height}"
    before: dict[str, tuple[float, int | None]] = {}
    for contender in contenders:
        on_event(f"{size}: the first images of {contender.name}")
        before[contender.name] = _prepare(contender, recipes, recipe.steps, device)
    samples: dict[str, dict[str, list[float]]] = {contender.name: {} for contender in contenders}
    for number in range(rounds):
        on_event(f"{size}: round {number + 1} of {rounds}")
        for contender, kind, seconds in _round(contenders, recipes, recipe.steps, number, device):
            samples[contender.name].setdefault(kind, []).append(seconds)
    return {
        contender.name: _summary(contender, *before[contender.name], samples[contender.name])
        for contender in contenders
    }


def _prepare(
    contender: Contender, recipes: Recipes, steps: int, device: torch.device
) -> tuple[float, int | None]:
    """Draw a contender's first images of a size: (seconds of the very first, peak of memory)."""
    with contender.memory.watch() as peak:
        _, first = timed(device, contender.draw, recipes.next())
        for _ in range(_WARM_UPS):
            contender.draw(recipes.next())
    for _ in range(_WARM_UPS if steps > 1 else 0):
        contender.draw(recipes.next(steps=1))
    contender.stages(recipes.next())
    return first, peak[0] if peak else None


def _round(
    contenders: Sequence[Contender], recipes: Recipes, steps: int, number: int, device: torch.device
) -> Iterator[tuple[Contender, str, float]]:
    """One sample of everything: each kind for all contenders before the next kind."""
    order = contenders if number % 2 == 0 else contenders[::-1]
    drawn: dict[str, tuple[Image.Image, float]] = {}
    for contender in order:
        drawn[contender.name] = timed(device, contender.draw, recipes.next())
        yield contender, "picture", drawn[contender.name][1]
    for contender in order if steps > 1 else ():
        _, seconds = timed(device, contender.draw, recipes.next(steps=1))
        yield contender, "step", (drawn[contender.name][1] - seconds) / (steps - 1)
    for contender in order:
        for stage, seconds in contender.stages(recipes.next()).items():
            yield contender, stage, seconds
    for contender in order:
        _, seconds = timed(device, contender.png, drawn[contender.name][0], recipes.next())
        yield contender, "png", seconds


def _summary(
    contender: Contender, first: float, peak: int | None, samples: dict[str, list[float]]
) -> Warm:
    spreads: dict[str, Any] = {kind: Spread.of(found) for kind, found in samples.items()}
    known = contender.memory.known
    return Warm(
        **spreads,
        first=first,
        peak=peak,
        held=contender.memory.held if known else None,
        reserved=contender.memory.reserved if known else None,
    )
