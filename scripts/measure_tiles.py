"""How far a picture decoded in tiles is from the same one decoded whole, in levels of 255.

    python scripts/measure_tiles.py --model tiny --size 256x256 384x384

The worst of some prompts: the mean of all differences, the level that 99 % of them stay under, and
the largest. With --peak on a GPU, also the memory that each way of decoding takes at most.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from measure_run import prompts

from klein_cli.checkpoints.resolve import resolve
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

PROMPTS = 4


def differences(pipeline: Pipeline, recipe: Recipe) -> tuple[float, float, int]:
    """Mean, 99th percentile and largest difference of one picture."""
    whole, tiled = (pipeline.render([recipe], tiled=tiled)[0] for tiled in (False, True))
    apart = np.abs(whole.astype(int) - tiled.astype(int))
    return float(apart.mean()), float(np.quantile(apart, 0.99)), int(apart.max())


def peak_gib(pipeline: Pipeline, recipe: Recipe, *, tiled: bool) -> float:
    """GPU memory at most while a picture is drawn, weights and all, in GiB."""
    torch.cuda.reset_peak_memory_stats()
    pipeline.render([recipe], tiled=tiled)
    return float(torch.cuda.max_memory_allocated() / 2**30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", nargs="+", default=["256x256", "384x384"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak", action="store_true", help="GPU memory, too")
    options = parser.parse_args()
    snapshot = resolve(options.model)
    preset = snapshot.preset
    pipeline = Pipeline.load(snapshot, choose(Settings(device=options.device), preset))
    for size in options.size:
        width, height = map(int, size.split("x"))
        recipes = [
            Recipe(
                prompt=prompt,
                seed=seed,
                width=width,
                height=height,
                steps=preset.steps,
                guidance=preset.guidance,
                model=preset.name,
            )
            for seed, prompt in enumerate(islice(prompts(), 0, 9000, 9000 // PROMPTS))
        ]
        mean, most, largest = map(
            max, zip(*(differences(pipeline, recipe) for recipe in recipes[:PROMPTS]), strict=True)
        )
        line = f"{size}: mean {mean:.2f}, 99 % within {most:.0f}, largest {largest}"
        if options.peak:
            one = replace(recipes[0], steps=1)
            whole, tiled = (peak_gib(pipeline, one, tiled=tiled) for tiled in (False, True))
            line += f"; peak {whole:.2f} GiB whole, {tiled:.2f} in tiles"
        print(line, flush=True)


if __name__ == "__main__":
    main()
