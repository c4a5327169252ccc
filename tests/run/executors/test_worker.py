"""A worker's own side: what it draws, and how its errors leave its process."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from klein_cli.errors import KleinError, ModelError, ModelTooLargeError, OutOfMemoryError
from klein_cli.recipe import Recipe
from klein_cli.run.executors.executor import WorkerDied
from klein_cli.run.executors.worker import DrawRequest, Failure, LoadRequest, Worker, WorkerInfo
from klein_cli.settings import Settings

RECIPE = Recipe(prompt="a cat", seed=1, width=64, height=64, steps=1, guidance=1.0, model="small")


def test_a_worker_draws_what_the_pipeline_draws(small_snapshot: Path) -> None:
    import torch

    from klein_cli.checkpoints.resolve import resolve
    from klein_cli.pipeline import Pipeline, choose

    worker, threads = Worker(), torch.get_num_threads()
    settings = Settings(device="cpu")
    ready = worker.load(LoadRequest(model=str(small_snapshot), settings=settings, threads=threads))
    assert isinstance(ready, WorkerInfo)
    assert ready.origin.settings.dtype == "float32"
    assert ready.origin.provenance["threads"] == str(threads)
    pipeline = Pipeline.load(resolve(str(small_snapshot)), choose(settings))
    drawn = worker.draw(DrawRequest(recipes=[RECIPE], tiled=False))
    assert drawn.failure is None
    assert numpy.array_equal(drawn.images[0], pipeline.render([RECIPE])[0])


def test_a_model_that_is_not_there_is_the_workers_answer(tmp_path: Path) -> None:
    answer = Worker().load(LoadRequest(model=str(tmp_path / "x"), settings=Settings(), threads=2))
    assert isinstance(answer, Failure)
    assert isinstance(answer.exception(), ModelError)


@pytest.mark.parametrize("kind", [OutOfMemoryError, ModelTooLargeError, KleinError])
def test_a_users_error_is_the_same_error_elsewhere(kind: type[KleinError]) -> None:
    """Its class decides the exit code, and whether less memory is tried."""
    error = Failure.of(kind("it did not fit", "use less")).exception()
    assert type(error) is kind
    assert (error.message, error.hint) == ("it did not fit", "use less")  # type: ignore[attr-defined]


def test_an_error_of_a_room_of_its_own_goes_by_the_nearest_that_is_known() -> None:
    error = Failure.of(WorkerDied(drawing=True)).exception()
    assert type(error) is KleinError


def test_a_bug_brings_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def render(self, *_: object, **__: object) -> None:
            raise ZeroDivisionError("oops")

    worker = Worker()
    monkeypatch.setattr(worker, "_pipeline", Broken())
    drawn = worker.draw(DrawRequest(recipes=[RECIPE], tiled=False))
    assert drawn.failure is not None
    error = drawn.failure.exception()
    assert (type(error), str(error)) == (RuntimeError, "ZeroDivisionError: oops")
    assert "in render" in error.__notes__[0]
