"""Time edits on this machine, with what is remembered of references and without it.

    python scripts/measure_edits.py FOLDER [--size 1024x1024] [--references 0 1 2] [--kv]

FOLDER is a snapshot, such as `scripts/make_snapshot.py` writes. Medians of seconds an image, from
words and files to the host's memory, one at a time, and the peak of the GPU's memory:

    new references    others for every image: each is decoded and encoded
    the same          one image after another of the same references, with other seeds
    --kv: as a model that keeps its references' keys and values too ("kept"). `keys anew` makes
    them for every image of the same references.

The images of `the same` and `keys anew` are compared: they must be equal to the bit. For diffusers
beside it: `klein bench -m FOLDER --references N --peer --only warm`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klein_cli.bench.measure import Memory, Spread, timed
from klein_cli.bench.references import references_like, references_of_size
from klein_cli.checkpoints.resolve import Snapshot, resolve
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Pipeline, choose
from klein_cli.prompts.sizes import parse_size
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

WARM_UPS = 3


def measured(
    pipe: Pipeline,
    recipes: Iterator[Recipe],
    images: ImageStore,
    rounds: int,
    before: Callable[[], None],
) -> tuple[str, list[np.ndarray[Any, Any]]]:
    """Seconds and memory in words, and the images that were timed."""
    device = torch.device(pipe.settings.device)
    memory = Memory(device)
    samples, made = [], []
    with memory.watch() as peak:
        for number in range(WARM_UPS + rounds):
            recipe = next(recipes)
            before()
            (pixels,), seconds = timed(device, pipe.render, [recipe], images=images)
            if number >= WARM_UPS:
                samples.append(seconds)
                made.append(pixels)
    spread = Spread.of(samples)
    words = f"{spread.median:8.4f} [{spread.low:.4f}, {spread.high:.4f}] s"
    return words + (f"  {peak[0] / 1e9:6.2f} GB above the weights" if peak else ""), made


def new(recipe: Recipe, images: ImageStore) -> Iterator[Recipe]:
    """Other seeds, and other references."""
    for number in count(1):
        yield replace(recipe, seed=number, references=references_like(recipe, images, number))


def same(recipe: Recipe) -> Iterator[Recipe]:
    """Other seeds."""
    for number in count(1):
        yield replace(recipe, seed=number)


def rows(
    snapshot: Snapshot, settings: Settings, recipe: Recipe, rounds: int, *, kv: bool
) -> Iterator[str]:
    """A line for each case of so many references."""
    images = ImageStore()
    count_of = len(recipe.references)
    recipe = replace(
        recipe, references=references_of_size(count_of, recipe.width, recipe.height, images)
    )
    preset = replace(snapshot.preset, kv_cache=kv)
    pipe = Pipeline.load(replace(snapshot, preset=preset), settings)
    name = f"{count_of} references" + (", kept" if kv else "")

    def nothing() -> None:
        pass

    words, drawn = measured(pipe, same(recipe), images, rounds, nothing)
    yield f"{name:<24} {'the same':<16} {words}"
    if not count_of:
        return
    words, _ = measured(pipe, new(recipe, images), images, rounds, nothing)
    yield f"{name:<24} {'new references':<16} {words}"
    if kv:
        words, anew = measured(pipe, same(recipe), images, rounds, pipe._references._referred.clear)
        equal = all(map(np.array_equal, drawn, anew))
        yield f"{name:<24} {'keys anew':<16} {words}  {'the same bits' if equal else 'OTHER BITS'}"


def main() -> None:
    """Read the command line and print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=parse_size, default=(1024, 1024))
    parser.add_argument("--references", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv", action="store_true")
    options = parser.parse_args()
    snapshot = resolve(str(options.folder))
    settings = choose(Settings(device=options.device, dtype=options.dtype), snapshot.preset)
    width, height = options.size
    recipe = Recipe(
        prompt="a lighthouse on a cliff",
        seed=0,
        width=width,
        height=height,
        steps=options.steps,
        guidance=1.0,
        model=snapshot.preset.name,
    )
    for number in options.references:
        given = references_of_size(number, width, height, ImageStore())
        asked = replace(recipe, references=given)
        for kv in (True, False) if options.kv and number else (False,):
            for row in rows(snapshot, settings, asked, options.rounds, kv=kv):
                print(row, flush=True)


if __name__ == "__main__":
    main()
