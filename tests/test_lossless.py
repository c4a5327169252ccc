"""Lossless on a GPU: every stage is as near to float32 as diffusers is in the same precision.

Measured on whole images of random weights with the true model's heads and dtype, so that the
kernels, the graphs and the attention are those of a real run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from klein_cli.check.metrics import mean_abs_diff, relative_error
from klein_cli.check.official import reference
from klein_cli.checkpoints.resolve import resolve
from klein_cli.errors import OutOfMemoryError
from klein_cli.optimize.graphs import direct
from klein_cli.pipeline import Pipeline, Trace, choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

DEVICE = "cuda"
PROMPTS = ("a cat", "a lighthouse on a cliff in a storm, waves breaking " * 8, "", "far " * 600)
RECIPES = tuple(
    Recipe(prompt=p, seed=s, width=512, height=384, steps=4, guidance=1.0, model="medium")
    for s, p in enumerate(PROMPTS)
)
STAGES = ("embeddings", "one step", "four steps", "picture")
Made = list[tuple[Trace, NDArray[np.uint8]]]


def settings(**changes: str) -> Settings:
    return choose(Settings(device=DEVICE, **{"attention": "sdpa", **changes}))


def made(root: Path, chosen: Settings, recipes: Sequence[Recipe] = RECIPES) -> Made:
    """Each recipe drawn alone, as at the default batch size."""
    pipeline = Pipeline.load(resolve(str(root)), chosen)
    drawn = []
    for recipe in recipes:
        trace = Trace()
        (picture,) = pipeline.render([recipe], trace=trace)
        drawn.append((trace, picture))
    return drawn


@cache
def exact(root: Path) -> Made:
    """In float32, by plain torch."""
    return made(root, settings(dtype="float32", kernels="torch"))


def errors(found: Made, wanted: Made) -> dict[str, float]:
    """How far each stage is off, on average over the images."""
    pairs = list(zip(found, wanted, strict=True))
    traces = [(a, b) for (a, _), (b, _) in pairs]
    return {
        "embeddings": mean(relative_error(a.embeddings[0], b.embeddings[0]) for a, b in traces),
        "one step": mean(relative_error(a.latents[0], b.latents[0]) for a, b in traces),
        "four steps": mean(relative_error(a.latents[3], b.latents[3]) for a, b in traces),
        "picture": mean(mean_abs_diff(a, b) for (_, a), (_, b) in pairs),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_stage_is_no_further_from_float32_than_diffusers(
    medium_snapshot: Path, dtype: str, record_property: Callable[[str, object], None]
) -> None:
    """A twentieth is what the average of four images leaves to chance."""
    chosen = settings(dtype=dtype)
    diffusers = reference(medium_snapshot, chosen, RECIPES, lambda event: None)
    theirs = errors(diffusers, exact(medium_snapshot))
    for kernels in ("auto", "torch"):
        ours = errors(
            made(medium_snapshot, settings(dtype=dtype, kernels=kernels)), exact(medium_snapshot)
        )
        for stage in STAGES:
            record_property(f"{dtype} {kernels} {stage}", f"{ours[stage]:.3g} {theirs[stage]:.3g}")
        assert all(ours[stage] <= 1.05 * theirs[stage] for stage in STAGES), (ours, theirs)


@pytest.mark.gpu
def test_float32_is_float32_with_kernels_too(medium_snapshot: Path) -> None:
    found = errors(made(medium_snapshot, settings(dtype="float32")), exact(medium_snapshot))
    assert found["embeddings"] < 2e-5
    assert found["four steps"] < 5e-5
    assert found["picture"] < 0.05


@pytest.mark.gpu
def test_fp8_says_how_far_it_is(
    medium_snapshot: Path, record_property: Callable[[str, object], None]
) -> None:
    """Further than bfloat16, and near enough to be the same image."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 on this GPU")
    found = errors(made(medium_snapshot, settings(quantize="fp8")), exact(medium_snapshot))
    plain = errors(made(medium_snapshot, settings()), exact(medium_snapshot))
    for stage in STAGES:
        record_property(f"fp8 {stage}", f"{found[stage]:.3g}")
    assert found["embeddings"] == plain["embeddings"]
    assert plain["one step"] < found["one step"] < 0.1
    assert found["four steps"] < 0.12


@contextmanager
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr("klein_cli.optimize.backend.Graphs", lambda device: direct)
        yield


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"kernels": "torch"}, {"quantize": "fp8"}], ids=str)
def test_graphs_change_no_bit(
    medium_snapshot: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    """Of any stage of any image, whether a graph was new to it or not."""
    if "quantize" in changes and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 on this GPU")
    other_size = Recipe(
        prompt="a cat", seed=9, width=256, height=320, steps=2, guidance=1.0, model="medium"
    )
    recipes = (RECIPES[0], other_size, *RECIPES[1:], other_size, RECIPES[0])
    with without_graphs(monkeypatch):
        wanted = made(medium_snapshot, settings(**changes), recipes)
    for (trace, picture), (expected, pixels) in zip(
        made(medium_snapshot, settings(**changes), recipes), wanted, strict=True
    ):
        assert torch.equal(trace.embeddings[0], expected.embeddings[0])
        assert all(map(torch.equal, trace.latents, expected.latents))
        assert np.array_equal(picture, pixels)


@pytest.mark.gpu
def test_guidance_goes_through_graphs_too(
    small_base_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two texts take turns in one graph."""
    plain = Recipe(
        prompt="a cat", seed=1, width=64, height=48, steps=3, guidance=3.0, model="small"
    )
    recipes = [plain, replace(plain, negative_prompt="blurry")]
    with without_graphs(monkeypatch):
        wanted = made(small_base_snapshot, settings(), recipes)
    found = made(small_base_snapshot, settings(), recipes)
    assert not np.array_equal(found[0][1], found[1][1])
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(found, wanted, strict=True))


@pytest.mark.gpu
def test_after_running_out_of_memory_a_smaller_picture_is_as_ever(medium_snapshot: Path) -> None:
    pipeline = Pipeline.load(resolve(str(medium_snapshot)), settings())
    large = Recipe(
        prompt="a cat", seed=1, width=2048, height=2048, steps=1, guidance=1.0, model="medium"
    )
    (before,) = pipeline.render([RECIPES[0]])
    _, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + 2**28
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    try:
        with pytest.raises(OutOfMemoryError):
            pipeline.render([large])
        torch.cuda.empty_cache()
        (after,) = pipeline.render([RECIPES[0]])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.array_equal(before, after)


MEMORY = """
import sys, json, torch
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings
from klein_cli.checkpoints.resolve import resolve
pipeline = Pipeline.load(resolve(sys.argv[1]), choose(Settings(quantize=sys.argv[2])))
for seed in range(3):
    pipeline.render([Recipe(prompt=f"a cat {seed}", seed=seed, width=1024, height=1024, steps=4,
                            guidance=1.0, model="4b")])
print(json.dumps([torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]))
"""


@pytest.mark.process
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(("quantize", "most"), [("none", 18e9), ("fp8", 18e9)])
def test_the_true_sizes_fit(
    full_size_snapshot: Path,
    quantize: str,
    most: float,
    record_property: Callable[[str, object], None],
) -> None:
    """All parts resident, at 1024 x 1024: what torch takes, caches and graphs included."""
    if quantize == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 on this GPU")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(full_size_snapshot), quantize],
        capture_output=True,
        text=True,
        check=True,
    )
    allocated, reserved = json.loads(done.stdout.splitlines()[-1])
    record_property(f"{quantize} allocated, reserved", [allocated, reserved])
    assert allocated <= reserved <= most
