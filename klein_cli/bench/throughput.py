"""Many prompts of many lengths, every image as a PNG on disk: images a second."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from klein_cli.bench.contender import Contender
from klein_cli.bench.measure import Spread
from klein_cli.bench.processes import generate_command, lines
from klein_cli.bench.prompts import of_all_lengths
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.errors import KleinError
from klein_cli.pipeline import Pipeline
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

_WARM_UPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """`per_second`: images, over the whole stretch; `interval`: seconds from one to the next."""

    per_second: float
    interval: Spread
    pictures: int


def of_klein(
    snapshot: Snapshot,
    settings: Settings,
    recipe: Recipe,
    pictures: int,
    batch_size: int | None,
    folder: Path,
    given: Sequence[str] = (),
) -> Throughput:
    """`klein generate` as a process of its own, timed by its events once it is warm.

    `given` are the options that name the recipe's references. In batches, whole batches are warmed
    up with and counted. Raises KleinError when it fails.
    """
    size = batch_size or Pipeline.default_batch_size
    warm, counted = (size * math.ceil(count / size) for count in (_WARM_UPS, pictures))
    prompts = folder / "prompts.jsonl"
    rows = (json.dumps({"prompt": prompt}) for prompt in of_all_lengths(warm + counted))
    prompts.write_text("\n".join(rows) + "\n", encoding="utf-8")
    more = ["--prompts-file", str(prompts), "-o", f"{folder}/klein/", "--json", "-q", *given]
    if batch_size is not None:
        more += ["--batch-size", str(batch_size)]
    command = generate_command(snapshot.root, settings, recipe, *more)
    moments = [when for when, line in lines(command) if json.loads(line)["event"] == "picture"]
    if len(moments) != warm + counted:
        raise KleinError(
            f"klein made {len(moments)} of {warm + counted} images", "see what klein verify says"
        )
    return _throughput(moments[warm - 1 :])


def of_contender(contender: Contender, recipe: Recipe, pictures: int, folder: Path) -> Throughput:
    """A loop in this process, one image after another, as a script would have it."""
    (folder / contender.name).mkdir(exist_ok=True)
    prompts = of_all_lengths(_WARM_UPS + pictures)
    moments = list(_drawn(contender, recipe, prompts, folder / contender.name))
    return _throughput(moments[_WARM_UPS - 1 :])


def _drawn(
    contender: Contender, recipe: Recipe, prompts: Sequence[str], folder: Path
) -> Iterator[float]:
    for number, prompt in enumerate(prompts):
        one = replace(recipe, prompt=prompt, seed=number)
        data = contender.png(contender.draw(one), one)
        (folder / f"{number:04d}.png").write_bytes(data)
        yield time.perf_counter()


def _throughput(moments: Sequence[float]) -> Throughput:
    """`moments`: when each image was on disk, the first of them the start of the stretch."""
    pictures = len(moments) - 1
    return Throughput(
        per_second=pictures / (moments[-1] - moments[0]),
        interval=Spread.of([after - before for before, after in pairwise(moments)]),
        pictures=pictures,
    )
