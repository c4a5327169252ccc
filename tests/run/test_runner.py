"""Jobs -> images on disk: each event tells the truth, and no failure spreads."""

from __future__ import annotations

import io
import json
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from listening import Heard
from numpy.typing import NDArray
from PIL import Image

import klein_cli.run.runner
from klein_cli.errors import KleinError, ModelError, OutOfMemoryError
from klein_cli.images.store import ImageStore
from klein_cli.output.metadata import Origin
from klein_cli.recipe import Model, Recipe
from klein_cli.run.batching import Batch
from klein_cli.run.events import Event, Failed, Notice, Saved, Stopped
from klein_cli.run.executors.executor import BatchResult, WorkerDied
from klein_cli.run.executors.local import LocalExecutor
from klein_cli.run.jobs import Job
from klein_cli.run.runner import Run
from klein_cli.settings import Settings


class Painter:
    """Paints each image in the grey of its seed; fails on the seeds and sizes it is told to."""

    def __init__(self, *, bad: Sequence[int] = (), most: int = 99, error: Exception | None = None):
        self.bad = bad
        self.most = most
        self.error = error or RuntimeError("a bug")
        self.batches: list[list[int]] = []

    def render(
        self,
        recipes: Sequence[Recipe],
        *,
        callback: Callable[..., None] | None = None,
        tiled: bool = False,
        **told: Any,
    ) -> list[NDArray[numpy.uint8]]:
        self.batches.append([recipe.seed for recipe in recipes])
        if len(recipes) > self.most:
            raise OutOfMemoryError("the GPU is full", "use a smaller --batch-size")
        if any(recipe.seed in self.bad for recipe in recipes):
            raise self.error
        if callback is not None:
            for step in (1, 2):
                callback(step, 0.5, None)
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


ORIGIN = Origin(model=Model(name="tiny", weights="00"), settings=Settings(), provenance={})


def run(painter: Painter, todo: Sequence[Job], **changes: Any) -> list[Event]:
    heard = changes.pop("listener", Heard())
    values: dict[str, Any] = {"batch_size": 2, "overwrite": False, "stdout": io.BytesIO()}
    executor = LocalExecutor(painter, ORIGIN, heard, {})
    return list(Run(executor=executor, **(values | changes)).events(todo))


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
        assert written(path)["recipe"]["seed"] == seed
        assert "step_down" not in written(path)


def test_progress_is_counted_in_pictures(tmp_path: Path) -> None:
    heard = Heard()
    run(Painter(), jobs(tmp_path, 3), listener=heard)
    assert heard.reached == [1.0, 2.0, 0.5, 1.0]


def test_a_failed_picture_does_not_take_its_batch_along(tmp_path: Path) -> None:
    events = run(Painter(bad=[2]), jobs(tmp_path, 3))
    kinds = [type(event) for event in events]
    assert kinds == [Notice, Saved, Failed, Saved]
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
    assert [type(event) for event in events] == [Notice, Saved, Saved]
    assert written(tmp_path / "1.png")["step_down"] == "out of memory: made 1 at a time, not 2"


def test_the_memory_that_ran_out_is_let_go_before_the_second_try(tmp_path: Path) -> None:
    import gc

    class Tensor:
        pass

    class Hungry(Painter):
        def render(self, recipes: Sequence[Recipe], **options: Any) -> list[NDArray[numpy.uint8]]:
            if len(recipes) > 1:
                tensor = Tensor()
                self.held = weakref.ref(tensor)
                raise OutOfMemoryError("the GPU is full", "use a smaller --batch-size")
            assert self.held() is None, "the first try's frames are still alive"
            return super().render(recipes, **options)

    gc.disable()
    try:
        events = run(Hungry(), jobs(tmp_path, 2))
    finally:
        gc.enable()
    assert [type(event) for event in events] == [Notice, Saved, Saved]


def test_a_picture_that_does_not_fit_alone_fails_with_its_own_error(tmp_path: Path) -> None:
    stepped, failed = run(Painter(most=0), jobs(tmp_path, 1))
    assert isinstance(stepped, Notice)
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


def test_equal_prompts_of_a_window_follow_each_other(tmp_path: Path) -> None:
    """So that each is encoded once, wherever they stand in the file."""
    painter = Painter()
    todo = [
        replace(job, recipe=replace(job.recipe, prompt=prompt))
        for job, prompt in zip(jobs(tmp_path, 6), "abcabc", strict=True)
    ]
    run(painter, todo, batch_size=1)
    assert painter.batches == [[1], [4], [2], [5], [3], [6]]


def test_pictures_are_written_while_the_next_is_drawn(tmp_path: Path) -> None:
    drawn: list[int] = []

    class Waiting(Painter):
        def render(self, recipes: Sequence[Recipe], **options: Any) -> list[NDArray[numpy.uint8]]:
            drawn.append(recipes[0].seed)
            if recipes[0].seed == 2:
                # Written by another thread, or it would never come.
                assert wait_until((tmp_path / "1.png").exists)
            return super().render(recipes, **options)

    events = run(Waiting(), jobs(tmp_path, 3), batch_size=1, threads=2)
    assert [type(event) for event in events] == [Saved, Saved, Saved]
    assert [event.job.index for event in events if isinstance(event, Saved)] == [1, 2, 3]


@pytest.mark.parametrize("threads", [0, 1])
def test_only_what_holds_up_the_drawing_counts_as_writing(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second that is spent in a thread, while the next is drawn, is no second of the run's."""

    class Slow(Painter):
        def render(self, recipes: Sequence[Recipe], **options: Any) -> list[NDArray[numpy.uint8]]:
            time.sleep(0.2)
            return super().render(recipes, **options)

    def save(*_: object, **__: object) -> None:
        time.sleep(0.1)

    monkeypatch.setattr(klein_cli.run.runner, "save", save)
    making = Run(
        executor=LocalExecutor(Slow(), ORIGIN, Heard(), {}),
        batch_size=1,
        overwrite=False,
        stdout=io.BytesIO(),
        threads=threads,
    )
    assert len(list(making.events(jobs(tmp_path, 3)))) == 3
    # With a thread, only the last image's writing is waited for: a busy machine may take longer.
    assert making.writing < 0.28 if threads else making.writing > 0.28


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    ends = time.monotonic() + seconds
    while not true() and time.monotonic() < ends:
        time.sleep(0.01)
    return true()


def test_a_model_that_is_broken_stops_the_run_and_fails_no_picture(tmp_path: Path) -> None:
    """Weights may arrive while the first images are drawn: 10,000 rows must not fail of them."""
    painter = Painter(bad=[3], error=ModelError("a file is damaged", "download it again"))
    events = run(painter, jobs(tmp_path, 9), batch_size=1)
    assert [type(event) for event in events] == [Saved, Saved, Stopped]
    assert painter.batches == [[1], [2], [3]]


def test_an_interrupt_writes_what_was_drawn_and_tells_of_it(tmp_path: Path) -> None:
    painter = Painter(bad=[5])
    painter.error = KeyboardInterrupt()  # type: ignore[assignment]
    making = Run(
        executor=LocalExecutor(painter, ORIGIN, Heard(), {}),
        batch_size=1,
        overwrite=False,
        stdout=io.BytesIO(),
        threads=2,
    )
    told: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        told.extend(making.events(jobs(tmp_path, 9)))
    told += making.rest()
    assert [event.job.index for event in told if isinstance(event, Saved)] == [1, 2, 3, 4]
    assert sorted(os.listdir(tmp_path)) == ["1.png", "2.png", "3.png", "4.png"]


def test_no_memory_hangs_on_a_failed_picture_while_the_next_is_drawn(tmp_path: Path) -> None:
    class Tensor:
        pass

    class Leaking(Painter):
        def render(self, recipes: Sequence[Recipe], **options: Any) -> list[NDArray[numpy.uint8]]:
            if recipes[0].seed == 1:
                tensor = Tensor()
                self.held = weakref.ref(tensor)
                raise RuntimeError("a bug")
            assert self.held() is None, "the failed image's frames are still alive"
            return super().render(recipes, **options)

    events = run(Leaking(), jobs(tmp_path, 2), batch_size=1)
    assert [type(event) for event in events] == [Failed, Saved]


def test_a_picture_that_fits_in_no_way_says_what_would(tmp_path: Path) -> None:
    class Small(Painter):
        def render(self, recipes: Sequence[Recipe], **options: Any) -> list[NDArray[numpy.uint8]]:
            if recipes[0].width > 80:
                raise OutOfMemoryError("the GPU is full", "use a smaller --size")
            return super().render(recipes, **options)

    (todo,) = jobs(tmp_path, 1)
    todo = replace(todo, recipe=replace(todo.recipe, width=160, height=320))
    stepped, failed = run(Small(), [todo])
    assert isinstance(stepped, Notice)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, OutOfMemoryError)
    assert failed.error.hint == "--size 80x160 fits here; or close what else uses the memory"


class Scripted:
    """An executor whose answers are written down beforehand."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = deque(answers)
        self.given: list[Batch] = []
        self.taken = 0

    def capacity(self) -> int:
        return 0 if self.busy() else 1

    def busy(self) -> bool:
        return self.taken < len(self.given)

    def submit(self, batch: Batch) -> None:
        self.given.append(batch)

    def next(self) -> BatchResult | None:
        answer = self.answers.popleft() if self.answers else None
        if isinstance(answer, KleinError) and not isinstance(answer, WorkerDied):
            raise answer
        batch = self.given[self.taken]
        self.taken += 1
        images = [numpy.zeros((16, 16, 3), numpy.uint8) for _ in batch.jobs]
        return BatchResult(
            batch=batch,
            images=[] if answer else images,
            error=answer,
            seconds=1.0,
            origin=ORIGIN,
        )

    def notices(self) -> Iterator[str]:
        return iter(())

    def close(self) -> None:
        pass

    def run(self, todo: Sequence[Job], batch_size: int = 2) -> list[Event]:
        making = Run(executor=self, batch_size=batch_size, overwrite=False, stdout=io.BytesIO())
        return list(making.events(todo))


def dead(*, drawing: bool) -> WorkerDied:
    return WorkerDied(drawing=drawing)


def test_a_dead_workers_jobs_are_given_again(tmp_path: Path) -> None:
    executor = Scripted(dead(drawing=True), dead(drawing=True))
    events = executor.run(jobs(tmp_path, 2))
    assert [type(event) for event in events] == [Saved, Saved]
    assert [len(batch.jobs) for batch in executor.given] == [2, 2, 2]
    # Nothing about the picture is different for that.
    assert "step_down" not in written(tmp_path / "1.png")


def test_jobs_that_workers_die_over_are_given_up_one_by_one(tmp_path: Path) -> None:
    deaths = [dead(drawing=True)] * 3
    executor = Scripted(*deaths, None, dead(drawing=True))
    events = executor.run(jobs(tmp_path, 2))
    assert [type(event) for event in events] == [Notice, Saved, Failed]
    assert [len(batch.jobs) for batch in executor.given] == [2, 2, 2, 1, 1]
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert str(failed.error) == "the worker that drew it died"


def test_jobs_that_only_lay_in_line_are_not_blamed(tmp_path: Path) -> None:
    executor = Scripted(*[dead(drawing=False)] * 9)
    assert [type(event) for event in executor.run(jobs(tmp_path, 1))] == [Saved]


def test_nobody_left_to_draw_stops_the_run_with_what_is_done(tmp_path: Path) -> None:
    executor = Scripted(None, KleinError("all workers died", "look"))
    saved, stopped = executor.run(jobs(tmp_path, 3), batch_size=1)
    assert isinstance(saved, Saved)
    assert isinstance(stopped, Stopped)
    assert stopped.error.message == "all workers died"


def test_the_images_of_the_next_batch_are_read_while_one_is_drawn(tmp_path: Path) -> None:
    told: list[str] = []

    class Telling(Painter):
        def render(self, recipes: Sequence[Recipe], **options: Any) -> list[NDArray[numpy.uint8]]:
            told.append(f"drawn {[recipe.seed for recipe in recipes]}")
            return super().render(recipes, **options)

    class Store(ImageStore):
        def read_ahead(self, recipes: Iterable[Recipe]) -> None:
            told.append(f"read {[recipe.seed for recipe in recipes]}")

    made = Run(
        executor=LocalExecutor(Telling(), ORIGIN, Heard(), {}),
        batch_size=2,
        overwrite=False,
        stdout=io.BytesIO(),
        images=Store(),
        reads_ahead=True,
    )
    assert len(list(made.events(jobs(tmp_path, 5)))) == 5
    assert told == [
        *("read [3, 4]", "drawn [1, 2]"),
        *("read [5]", "drawn [3, 4]"),
        *("read []", "drawn [5]"),
    ]
