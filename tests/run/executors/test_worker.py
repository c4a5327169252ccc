"""A worker's own side: what it draws, and how its errors leave its process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from given_images import photo

from klein_cli.errors import (
    KleinError,
    ModelError,
    ModelTooLargeError,
    OutOfMemoryError,
    UsageError,
)
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Recipe, Reference
from klein_cli.run.executors.executor import WorkerDied
from klein_cli.run.executors.files import files_of
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


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("by_path", [True, False])
def test_a_worker_edits_what_it_is_sent_and_lets_it_go(by_path: bool) -> None:
    """Kept bytes of every image of a long run would fill its memory."""
    store = ImageStore()
    probe = store.add(photo("a.png"))
    given = Reference(sha256=probe.sha256, name=probe.name, width=96, height=64)
    recipe = replace(RECIPE, references=(given,))

    class Seeing:
        def render(self, recipes: object, *, images: ImageStore, **_: object) -> list[object]:
            return [images.picture(probe.sha256).rgb]

    worker = Worker()
    worker._pipeline = Seeing()  # type: ignore[assignment]
    files = files_of([recipe, recipe], store, by_path=by_path)
    assert [file.path is not None for file in files] == [by_path]
    drawn = worker.draw(DrawRequest(recipes=[recipe], tiled=False, files=files))
    assert numpy.array_equal(drawn.images[0], store.picture(probe.sha256).rgb)
    with pytest.raises(KeyError):
        worker._store.source(probe.sha256)


@pytest.mark.usefixtures("empty_folder")
def test_a_file_that_has_changed_since_the_plan_is_not_edited() -> None:
    store = ImageStore()
    probe = store.add(photo("a.png"))
    given = Reference(sha256=probe.sha256, name=probe.name, width=96, height=64)
    files = files_of([replace(RECIPE, references=(given,))], store, by_path=True)
    photo("a.png", seed=9)
    elsewhere = ImageStore()
    files[0].put_into(elsewhere)
    with pytest.raises(UsageError, match=r"a\.png has changed"):
        elsewhere.picture(probe.sha256)


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
