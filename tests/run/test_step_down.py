"""Memory that runs out inside the model: the images come all the same, and say at what price."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listening import Heard
from PIL import Image
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.device.memory import release_memory
from klein_cli.engines.native import NativeEngine
from klein_cli.errors import OutOfMemoryError
from klein_cli.models.vae import VaeDecoder
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Recipe
from klein_cli.run.events import Event, Failed, Notice, Saved
from klein_cli.run.executors.local import LocalExecutor
from klein_cli.run.jobs import Job
from klein_cli.run.runner import Run
from klein_cli.settings import Settings

RECIPE = Recipe(prompt="a cat", seed=1, width=96, height=64, steps=1, guidance=1.0, model="small")


@pytest.fixture(scope="module")
def pipeline(small_snapshot: Path) -> Pipeline:
    return load(small_snapshot, Settings(device="cpu", dtype="float32"))


def load(root: Path, settings: Settings) -> Pipeline:
    return Pipeline.load(resolve(str(root)), choose(settings))


class SmallMemory:
    """Memory for so many images to denoise, and so many latents to decode, in a block."""

    def __init__(self, *, batch: int = 99, latents: int = 10**6) -> None:
        self.batch = batch
        self.latents = latents
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        velocity, decode = NativeEngine.velocity, VaeDecoder.forward

        def narrow_velocity(engine: NativeEngine, latents: Tensor, *others: Any) -> Tensor:
            if len(latents) > self.batch:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return velocity(engine, latents, *others)

        def narrow_decode(decoder: VaeDecoder, latents: Tensor) -> Tensor:
            if latents.shape[2] * latents.shape[3] > self.latents:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
            return decode(decoder, latents)

        self._patch.setattr(NativeEngine, "velocity", narrow_velocity)
        self._patch.setattr(VaeDecoder, "forward", narrow_decode)

    def __exit__(self, *error: object) -> None:
        self._patch.undo()


def run(
    pipeline: Pipeline, folder: Path, recipes: Sequence[Recipe], batch_size: int
) -> list[Event]:
    todo = [
        Job(index=recipe.seed, recipe=recipe, path=folder / f"{recipe.seed}.png", exact=True)
        for recipe in recipes
    ]
    executor = LocalExecutor(pipeline, pipeline.origin, Heard(), {})
    making = Run(executor=executor, batch_size=batch_size, overwrite=False, stdout=io.BytesIO())
    return list(making.events(todo))


def recipes(count: int, **changes: Any) -> list[Recipe]:
    return [replace(RECIPE, seed=seed, **changes) for seed in range(1, count + 1)]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def step_down(path: Path) -> str | None:
    with Image.open(path) as image:
        return json.loads(image.text["klein"]).get("step_down")  # type: ignore[no-any-return]


def test_a_batch_that_does_not_fit_is_halved_and_said_once(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    with SmallMemory(batch=2):
        stepped, *saved = run(pipeline, tmp_path, recipes(8), 4)
    assert isinstance(stepped, Notice)
    assert stepped.text == (
        "4 images of 96x64 at once did not fit into the memory of cpu; from here on, images of "
        "96x64 and larger are made 2 at a time"
    )
    assert [type(event) for event in saved] == [Saved] * 8
    for recipe in recipes(8):
        path = tmp_path / f"{recipe.seed}.png"
        # On the CPU a batch changes no bit.
        assert np.array_equal(pixels(path), pipeline.render([recipe])[0])
        assert step_down(path) == "out of memory: made 2 at a time, not 4"


def test_a_picture_that_cannot_be_decoded_whole_is_decoded_in_tiles(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    with SmallMemory(latents=60):
        stepped, *saved = run(pipeline, tmp_path, recipes(2), 1)
    assert isinstance(stepped, Notice)
    assert "decoded in tiles" in stepped.text
    assert [type(event) for event in saved] == [Saved, Saved]
    for recipe in recipes(2):
        path = tmp_path / f"{recipe.seed}.png"
        assert np.array_equal(pixels(path), pipeline.render([recipe], tiled=True)[0])
        assert not np.array_equal(pixels(path), pipeline.render([recipe])[0])
        assert step_down(path) == "out of memory: decoded in tiles"


def test_every_step_in_turn_and_each_said_once(pipeline: Pipeline, tmp_path: Path) -> None:
    with SmallMemory(batch=2, latents=60):
        events = run(pipeline, tmp_path, recipes(6), 4)
    said = [event.text for event in events if isinstance(event, Notice)]
    assert [reason.rpartition("larger are ")[2] for reason in said] == [
        "made 2 at a time",
        "made one by one",
        "decoded in tiles, which may show faintly",
    ]
    assert sum(isinstance(event, Saved) for event in events) == 6
    # The last two were a batch of two from the beginning.
    assert step_down(tmp_path / "1.png") == (
        "out of memory: made 1 at a time, not 4; out of memory: decoded in tiles"
    )


def test_a_picture_that_fits_in_no_way_says_what_does_and_the_others_are_made(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    todo = [*recipes(1), replace(RECIPE, seed=2, width=256, height=512), *recipes(3)[2:]]
    with SmallMemory(latents=100):
        events = run(pipeline, tmp_path, todo, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "3.png"]
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert isinstance(failed.error, OutOfMemoryError)
    size = failed.error.hint.split()[1]
    width, height = map(int, size.split("x"))
    with SmallMemory(latents=100):
        pipeline.render([replace(RECIPE, width=width, height=height)], tiled=True)


@pytest.fixture
def capped() -> Iterator[Callable[[float], None]]:
    """Caps the GPU memory of this process, in bytes."""

    def cap(most: float) -> None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(most / total)

    yield cap
    torch.cuda.set_per_process_memory_fraction(1.0)
    release_memory()


SETTINGS = Settings(device="cuda", attention="eager")
"""Of which a batch takes the more memory the larger it is, even with small weights."""


def peak(root: Path, recipes: Sequence[Recipe], *, tiled: bool = False) -> int:
    """Bytes that the allocator wants from the GPU for a model and a batch, at most."""
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    pipeline = load(root, SETTINGS)
    pipeline.render(recipes, tiled=tiled)
    pipeline.render(recipes, tiled=tiled)
    most = torch.cuda.max_memory_reserved()
    del pipeline
    release_memory()
    return most


@pytest.mark.gpu
@pytest.mark.own_process
def test_a_batch_is_halved_on_a_gpu_that_is_full(
    small_snapshot: Path, tmp_path: Path, capped: Callable[[float], None]
) -> None:
    todo = [
        replace(recipe, prompt=f"cat {recipe.seed}")
        for recipe in recipes(64, width=128, height=128)
    ]
    one, all_ = peak(small_snapshot, todo[:1]), peak(small_snapshot, todo)
    assert all_ > 1.5 * one, "the batch makes no difference: nothing to test"
    capped((one + all_) / 2)
    events = run(load(small_snapshot, SETTINGS), tmp_path, todo, 64)
    said = [event for event in events if isinstance(event, Notice)]
    assert said
    assert "tiles" not in said[-1].text
    assert sum(isinstance(event, Saved) for event in events) == 64
    assert "at a time, not 64" in (step_down(tmp_path / "1.png") or "")


@pytest.mark.gpu
@pytest.mark.own_process
def test_decoding_is_tiled_on_a_gpu_that_is_full(
    small_snapshot: Path, tmp_path: Path, capped: Callable[[float], None]
) -> None:
    todo = recipes(2, width=1024, height=1024)
    whole, tiled = (peak(small_snapshot, todo[:1], tiled=tiled) for tiled in (False, True))
    assert whole > 1.2 * tiled, "tiles make no difference: nothing to test"
    capped((whole + tiled) / 2)
    events = run(load(small_snapshot, SETTINGS), tmp_path, todo, 1)
    assert [type(event) for event in events] == [Notice, Saved, Saved]
    assert step_down(tmp_path / "2.png") == "out of memory: decoded in tiles"


@pytest.mark.gpu
@pytest.mark.own_process
def test_a_picture_too_large_for_the_gpu_says_what_fits(
    small_snapshot: Path, tmp_path: Path, capped: Callable[[float], None]
) -> None:
    capped(peak(small_snapshot, recipes(1, width=512, height=512), tiled=True) * 1.1)
    todo = recipes(1, width=4096, height=4096)
    events = run(load(small_snapshot, SETTINGS), tmp_path, todo, 1)
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, OutOfMemoryError)
    assert failed.error.hint.startswith("--size ")
