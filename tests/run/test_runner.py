"""Jobs -> pictures on disk: each event tells the truth, and no failure spreads."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image

from klein_cli.errors import KleinError, OutOfMemoryError
from klein_cli.recipe import Recipe
from klein_cli.run.plan import Job
from klein_cli.run.runner import Event, Failed, Run, Saved, SteppedDown


class Painter:
    """Paints each picture in the grey of its seed; fails on the seeds and sizes it is told to."""

    def __init__(self, *, bad: Sequence[int] = (), most: int = 99, error: Exception | None = None):
        self.bad = bad
        self.most = most
        self.error = error or RuntimeError("a bug")
        self.batches: list[list[int]] = []

    def render(
        self, recipes: Sequence[Recipe], *, on_step: Callable[[int, int], None] | None = None
    ) -> list[NDArray[numpy.uint8]]:
        self.batches.append([recipe.seed for recipe in recipes])
        if len(recipes) > self.most:
            raise OutOfMemoryError("the GPU is full", "use a smaller --batch-size")
        if any(recipe.seed in self.bad for recipe in recipes):
            raise self.error
        if on_step:
            on_step(1, 2)
            on_step(2, 2)
        return [numpy.full((16, 16, 3), recipe.seed, numpy.uint8) for recipe in recipes]


def jobs(folder: Path, count: int) -> list[Job]:
    return [
        Job(
            index=seed,
            recipe=Recipe(
                prompt="a", seed=seed, width=16, height=16, steps=2, guidance=1.0, model="tiny"
            ),
            path=folder / f"{seed}.png",
            exact=False,
        )
        for seed in range(1, count + 1)
    ]


def describe(recipe: Recipe, step_down: str | None) -> dict[str, Any]:
    return {"seed": recipe.seed, "step_down": step_down}


def run(painter: Painter, todo: Sequence[Job], **changes: Any) -> list[Event]:
    values: dict[str, Any] = {
        "renderer": painter,
        "describe": describe,
        "batch_size": 2,
        "overwrite": False,
        "stdout": io.BytesIO(),
        "on_progress": lambda part: None,
    }
    return list(Run(**(values | changes)).events(todo))


def grey(path: Path) -> int:
    return int(numpy.asarray(Image.open(path)).max())


def written(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text["klein"])  # type: ignore[no-any-return]


def test_every_picture_lands_under_its_own_name(tmp_path: Path) -> None:
    painter = Painter()
    events = run(painter, jobs(tmp_path, 3))
    assert painter.batches == [[1, 2], [3]]
    assert all(isinstance(event, Saved) for event in events)
    for seed in (1, 2, 3):
        path = tmp_path / f"{seed}.png"
        assert grey(path) == seed
        assert written(path) == {"seed": seed, "step_down": None}


def test_progress_is_counted_in_pictures(tmp_path: Path) -> None:
    heard: list[float] = []
    run(Painter(), jobs(tmp_path, 3), on_progress=heard.append)
    assert heard == [1.0, 2.0, 0.5, 1.0]


def test_a_failed_picture_does_not_take_its_batch_along(tmp_path: Path) -> None:
    events = run(Painter(bad=[2]), jobs(tmp_path, 3))
    kinds = [type(event) for event in events]
    assert kinds == [SteppedDown, Saved, Failed, Saved]
    failed = events[2]
    assert isinstance(failed, Failed)
    assert (failed.job.index, str(failed.error)) == (2, "a bug")
    assert sorted(os.listdir(tmp_path)) == ["1.png", "3.png"]


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    (failed,) = run(Painter(bad=[1]), jobs(tmp_path, 1))
    assert isinstance(failed, Failed)
    trace = failed.error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_code.co_name == "render"


def test_out_of_memory_steps_down_and_is_recorded_on_the_picture(tmp_path: Path) -> None:
    painter = Painter(most=1)
    events = run(painter, jobs(tmp_path, 2))
    assert painter.batches == [[1, 2], [1], [2]]
    assert [type(event) for event in events] == [SteppedDown, Saved, Saved]
    assert written(tmp_path / "1.png")["step_down"] == (
        "made alone: a batch of 2 failed: the GPU is full"
    )


def test_the_memory_that_ran_out_is_let_go_before_the_second_try(tmp_path: Path) -> None:
    import gc
    import weakref

    class Tensor:
        pass

    class Hungry(Painter):
        def render(
            self, recipes: Sequence[Recipe], *, on_step: Callable[[int, int], None] | None = None
        ) -> list[NDArray[numpy.uint8]]:
            if len(recipes) > 1:
                tensor = Tensor()
                self.held = weakref.ref(tensor)
                raise OutOfMemoryError("the GPU is full", "use a smaller --batch-size")
            assert self.held() is None, "the first try's frames are still alive"
            return super().render(recipes, on_step=on_step)

    gc.disable()
    try:
        events = run(Hungry(), jobs(tmp_path, 2))
    finally:
        gc.enable()
    assert [type(event) for event in events] == [SteppedDown, Saved, Saved]


def test_a_picture_that_does_not_fit_alone_fails_with_its_own_error(tmp_path: Path) -> None:
    events = run(Painter(most=0), jobs(tmp_path, 1))
    (failed,) = events
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, OutOfMemoryError)


def test_an_interrupt_passes_through_and_keeps_what_was_made(tmp_path: Path) -> None:
    painter = Painter(bad=[3])
    painter.error = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        run(painter, jobs(tmp_path, 4))
    assert sorted(os.listdir(tmp_path)) == ["1.png", "2.png"]


def test_a_name_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"theirs")
    (tmp_path / "1-2.png").write_bytes(b"theirs")
    (saved,) = run(Painter(), jobs(tmp_path, 1))
    assert isinstance(saved, Saved)
    assert saved.path == tmp_path / "1-3.png"
    assert (tmp_path / "1.png").read_bytes() == b"theirs"


def test_an_exact_name_taken_meanwhile_fails(tmp_path: Path) -> None:
    (todo,) = jobs(tmp_path, 1)
    todo = Job(index=1, recipe=todo.recipe, path=todo.path, exact=True)
    (tmp_path / "1.png").write_bytes(b"theirs")
    (failed,) = run(Painter(), [todo])
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, KleinError)
    assert "File exists" in failed.error.message
    assert os.listdir(tmp_path) == ["1.png"]


def test_a_disk_that_refuses_fails_that_picture_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    todo = jobs(tmp_path, 2)
    todo[0] = Job(index=1, recipe=todo[0].recipe, path=tmp_path / "file" / "1.png", exact=False)
    failed, saved = run(Painter(), todo)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, KleinError)
    assert "cannot write" in failed.error.message
    assert "Not a directory" in failed.error.message
    assert isinstance(saved, Saved)


def test_overwrite_replaces(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"old")
    run(Painter(), jobs(tmp_path, 1), overwrite=True)
    assert grey(tmp_path / "1.png") == 1
    assert os.listdir(tmp_path) == ["1.png"]


def test_a_job_without_a_path_is_one_png_on_stdout(tmp_path: Path) -> None:
    (todo,) = jobs(tmp_path, 1)
    stdout = io.BytesIO()
    (saved,) = run(
        Painter(), [Job(index=1, recipe=todo.recipe, path=None, exact=True)], stdout=stdout
    )
    assert isinstance(saved, Saved)
    assert saved.path is None
    with Image.open(stdout) as image:
        assert (image.format, image.size) == ("PNG", (16, 16))
    assert os.listdir(tmp_path) == []
