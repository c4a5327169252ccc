"""What each wrong encoder does to embeddings and pictures: the first tables of docs/numerics.md.

    python scripts/measure_wrong_encoders.py MODEL --size 256

Each is put in klein's place, as the tests put it, and compared with diffusers in float32 over the
prompts of `klein verify`, the worst of them. `seen` counts the prompts whose picture breaks
sglang's limits for this model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from injected import in_place
from wrong_encoders import WRONG

from klein_cli.check.metrics import (
    Pixels,
    mean_abs_diff,
    psnr,
    row_errors,
    ssim,
)
from klein_cli.check.official import reference
from klein_cli.check.prompts import PROMPTS
from klein_cli.checkpoints.resolve import Snapshot, resolve
from klein_cli.errors import ModelError
from klein_cli.pipeline import Pipeline, Trace, choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer

Drawn = list[tuple[Trace, Pixels]]
SSIM, PSNR, MEAN_ABS_DIFF = 0.91, 25.0, 5.0
"""sglang's limits for this model."""


def draw(snapshot: Snapshot, recipes: Sequence[Recipe], attention: str, wrong: str | None) -> Drawn:
    """Every recipe by itself; with lengths that others might have, in one batch."""
    with in_place(wrong):
        settings = Settings(device="cpu", dtype="float32", attention=attention)
        pipeline = Pipeline.load(snapshot, choose(settings, snapshot.preset))
        trace = Trace()
        pictures = pipeline.render(recipes, trace=trace)
    rows = trace.embeddings[0]
    return [(Trace(embeddings=[rows[n : n + 1]]), picture) for n, picture in enumerate(pictures)]


def row(name: str, ours: Drawn, theirs: Drawn, lengths: Sequence[int]) -> str:
    """One line of the table."""
    valid, padded, kin, levels, off, seen = 0.0, 0.0, 1.0, float("inf"), 0.0, 0
    for (trace, picture), (other, wanted), length in zip(ours, theirs, lengths, strict=True):
        errors = row_errors(trace.embeddings[0][0], other.embeddings[0][0])
        valid = max(valid, float(errors[:length].max()))
        if length < len(errors):
            padded = max(padded, float(errors[length:].max()))
        found = ssim(picture, wanted), psnr(picture, wanted), mean_abs_diff(picture, wanted)
        kin, levels, off = min(kin, found[0]), min(levels, found[1]), max(off, found[2])
        seen += found[0] < SSIM or found[1] < PSNR or found[2] > MEAN_ABS_DIFF
    return (
        f"| {name} | {valid:.2g} | {padded:.2g} | {kin:.4f} | {levels:.1f} | {off:.2g} "
        f"| {seen} of {len(ours)} |"
    )


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    snapshot = resolve(options.model)
    recipes = [
        Recipe(
            prompt=prompt,
            seed=seed,
            width=options.size,
            height=options.size,
            steps=options.steps,
            guidance=1.0,
            model=snapshot.preset.name,
        )
        for seed, prompt in enumerate(PROMPTS)
    ]
    tokenizer = PromptTokenizer.from_snapshot(snapshot.root)
    lengths = [tokenizer.tokenize(recipe.prompt).length for recipe in recipes]
    settings = choose(Settings(device="cpu", dtype="float32"), snapshot.preset)
    theirs = reference(snapshot.root, settings, recipes, lambda what: None)
    print(f"| {options.model} | valid rows | padded rows | ssim | psnr | mean_abs_diff | seen |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, attention, wrong in (
        ("right, sdpa", "sdpa", None),
        ("right, eager", "eager", None),
        *((name, "sdpa", name) for name in WRONG),
    ):
        try:
            ours = draw(snapshot, recipes, attention, wrong)
        except ModelError as error:
            print(f"| {name} | refused: {error.message} | | | | | |", flush=True)
            continue
        print(row(name, ours, theirs, lengths), flush=True)


if __name__ == "__main__":
    main()
