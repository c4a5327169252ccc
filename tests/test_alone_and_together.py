"""Every image its own: the same bits alone, in any batch, in any order, by any way to ask.

On the CPU at every batch size, for an equal number of threads; on CUDA at the default batch size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from listening import Heard
from numpy.typing import NDArray
from PIL import Image

from klein_cli.check.metrics import mean_abs_diff, psnr, ssim
from klein_cli.checkpoints.resolve import resolve
from klein_cli.cli.app import main
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Recipe
from klein_cli.run.events import Saved
from klein_cli.run.executors.local import LocalExecutor
from klein_cli.run.jobs import Job
from klein_cli.run.runner import Run
from klein_cli.settings import CHOICES, Settings

pytestmark = pytest.mark.lengthy

PROMPTS = (
    "a cat",
    "",
    "a lighthouse on a cliff in a storm, waves breaking, dramatic clouds " * 4,
    "typed <|endoftext|> tokens <think> in the middle",
    "a cat",
    "far too long " * 300,
)
RECIPES = tuple(
    Recipe(prompt=p, seed=40 + s, width=48, height=32, steps=2, guidance=1.0, model="small")
    for s, p in enumerate(PROMPTS)
)
OTHER_SHAPES = (
    Recipe(prompt="a dog", seed=1, width=32, height=48, steps=2, guidance=1.0, model="small"),
    Recipe(prompt="a cat", seed=40, width=48, height=32, steps=3, guidance=1.0, model="small"),
)
Picture = NDArray[np.uint8]


@cache
def pipeline(root: Path, **settings: str) -> Pipeline:
    return Pipeline.load(resolve(str(root)), choose(Settings(**settings)))


@cache
def alone(pipe: Pipeline) -> dict[Recipe, Picture]:
    return {recipe: pipe.render([recipe])[0] for recipe in (*RECIPES, *OTHER_SHAPES)}


def grouped(recipes: Sequence[Recipe], size: int) -> Iterator[Sequence[Recipe]]:
    yield from (recipes[at : at + size] for at in range(0, len(recipes), size))


def test_the_pictures_are_not_all_one(small_snapshot: Path) -> None:
    drawn = alone(pipeline(small_snapshot, device="cpu", dtype="float32"))
    assert len({picture.tobytes() for picture in drawn.values()}) == len(drawn)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", CHOICES["engine"].words)
def test_in_every_batch_and_order(small_snapshot: Path, engine: str, dtype: str) -> None:
    pipe = pipeline(small_snapshot, device="cpu", dtype=dtype, engine=engine)

    @settings(derandomize=True, deadline=None, max_examples=4)
    @given(
        recipes=st.permutations(RECIPES),
        size=st.integers(2, len(RECIPES)),
    )
    def check(recipes: list[Recipe], size: int) -> None:
        for batch in grouped(recipes, size):
            for recipe, picture in zip(batch, pipe.render(batch), strict=True):
                assert np.array_equal(picture, alone(pipe)[recipe])

    check()


@pytest.mark.parametrize("threads", [3, 5, 6])
def test_whatever_the_number_of_threads(threads: int) -> None:
    """A batch that is shared out among threads changes where a thread's share ends within a row:
    with 2, 4 or 8 threads it does not, and no smaller image shows it.
    """
    drawn = [
        replace(recipe, width=256, height=256, steps=1, model="tiny") for recipe in RECIPES[:3]
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pipe = pipeline(resolve("tiny").root, device="cpu", dtype="float32")
        single = [pipe.render([recipe])[0] for recipe in drawn]
        for size in (2, 3):
            together = [picture for batch in grouped(drawn, size) for picture in pipe.render(batch)]
            assert all(map(np.array_equal, together, single))
    finally:
        torch.set_num_threads(before)


def run(pipe: Pipeline, recipes: Sequence[Recipe], folder: Path, batch_size: int) -> None:
    """A run of the runner: each image in a file named after its recipe's place in RECIPES."""
    everything = (*RECIPES, *OTHER_SHAPES)
    jobs = [
        Job(index=n, recipe=r, path=folder / f"{everything.index(r)}.png", exact=True)
        for n, r in enumerate(recipes, start=1)
    ]

    run = Run(
        executor=LocalExecutor(pipe, pipe.origin, Heard(), {}),
        batch_size=batch_size,
        overwrite=False,
        stdout=io.BytesIO(),
    )
    assert all(isinstance(event, Saved) for event in run.events(jobs))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
def test_through_the_runner(small_snapshot: Path, tmp_path: Path, batch_size: int) -> None:
    """Whole files, of several shapes, shuffled: each batch holds other company."""
    pipe = pipeline(small_snapshot, device="cpu", dtype="float32")
    recipes = [*RECIPES, *OTHER_SHAPES]
    run(pipe, recipes, tmp_path / "alone", 1)
    Random(batch_size).shuffle(recipes)
    run(pipe, recipes, tmp_path / "together", batch_size)
    assert len(files(tmp_path / "alone")) == len(recipes)
    assert files(tmp_path / "together") == files(tmp_path / "alone")


def test_through_the_command_line(small_snapshot: Path, tmp_path: Path) -> None:
    """Rows that name their seeds, forwards one at a time and backwards in batches of four."""
    asked = [recipe for recipe in RECIPES if recipe.prompt]
    rows = [
        json.dumps({"prompt": recipe.prompt, "seed": recipe.seed, "output": f"{recipe.seed}.png"})
        for recipe in asked
    ]
    common = ["-m", str(small_snapshot), "--size", "48x32", "--steps", "2", "--device", "cpu", "-q"]
    for name, lines, size in (("alone", rows, "1"), ("together", rows[::-1], "4")):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        command = ["generate", "--prompts-file", str(tmp_path / f"{name}.jsonl"), *common]
        assert main([*command, "-o", f"{tmp_path / name}/", "--batch-size", size]) == 0
    assert len(files(tmp_path / "alone")) == len(asked)
    assert files(tmp_path / "together") == files(tmp_path / "alone")
    drawn = alone(pipeline(small_snapshot, device="cpu", dtype="float32"))
    for recipe in asked:
        with Image.open(tmp_path / "together" / f"{recipe.seed}.png") as image:
            assert np.array_equal(np.asarray(image), drawn[recipe])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", CHOICES["engine"].words)
def test_at_the_default_batch_size_on_a_gpu(
    small_snapshot: Path, tmp_path: Path, engine: str, dtype: str
) -> None:
    pipe = pipeline(small_snapshot, device="cuda", dtype=dtype, engine=engine)
    recipes = [*RECIPES, *OTHER_SHAPES]
    run(pipe, recipes, tmp_path / "one", pipe.default_batch_size)
    Random(7).shuffle(recipes)
    run(pipe, recipes, tmp_path / "other", pipe.default_batch_size)
    assert files(tmp_path / "one") == files(tmp_path / "other")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_larger_batch_changes_on_a_gpu(
    dtype: str, record_property: Callable[[str, object], None]
) -> None:
    """Matrix products round by their shape. Measured with `tiny`, and held to a bound."""
    pipe = Pipeline.load(resolve("tiny"), choose(Settings(device="cuda", dtype=dtype)))
    recipes = [
        Recipe(prompt=p, seed=s, width=256, height=256, steps=4, guidance=1.0, model="tiny")
        for s, p in enumerate(PROMPTS[:4])
    ]
    single = [pipe.render([recipe])[0] for recipe in recipes]
    pairs = list(zip(pipe.render(recipes), single, strict=True))
    worst = {
        "ssim": min(ssim(*pair) for pair in pairs),
        "psnr": min(psnr(*pair) for pair in pairs),
        "mean_abs_diff": max(mean_abs_diff(*pair) for pair in pairs),
        "pixels changed": float(np.mean([np.mean(a != b) for a, b in pairs])),
    }
    for name, value in worst.items():
        record_property(name, value)  # in --junit-xml
    print(dtype, worst)  # noqa: T201 (seen with -s)
    assert worst["ssim"] > (0.9999 if dtype == "float32" else 0.97)
    assert worst["mean_abs_diff"] < (0.02 if dtype == "float32" else 2.5)
