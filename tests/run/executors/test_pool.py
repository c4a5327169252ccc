"""The driver's side of several workers, with answers that are written down beforehand."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from listening import Heard

from klein_cli.errors import KleinError, OutOfMemoryError, UsageError
from klein_cli.output.metadata import Origin
from klein_cli.recipe import Model, Recipe
from klein_cli.run.batching import Batch
from klein_cli.run.executors.executor import WorkerDied
from klein_cli.run.executors.files import SentFile
from klein_cli.run.executors.pool import Pool, WorkerLost
from klein_cli.run.executors.worker import Drawn, DrawRequest, Failure, LoadRequest, WorkerInfo
from klein_cli.run.inputs import ImageNotes
from klein_cli.run.jobs import Job
from klein_cli.settings import Settings

REQUEST = LoadRequest(model="small", settings=Settings(), threads=2)
NO_ROOM = Failure(name="OutOfMemoryError", message="no room", hint="use less")
DEATH = WorkerLost("it was killed by signal 9")


def info(threads: int) -> WorkerInfo:
    provenance = {"threads": str(threads)}
    origin = Origin(
        model=Model(name="small", weights="00"), settings=Settings(), provenance=provenance
    )
    return WorkerInfo(origin=origin, batch_size=1)


def batch(index: int = 1) -> Batch:
    recipe = Recipe(
        prompt="a cat", seed=index, width=64, height=64, steps=1, guidance=1.0, model="small"
    )
    job = Job(index=index, recipe=recipe, path=Path(f"{index}.png"), exact=False)
    return Batch(jobs=(job,), planned=1)


def no_files(recipes: Sequence[Recipe]) -> list[SentFile]:
    return []


class Scripted:
    """A worker that answers when it is told to."""

    def __init__(self) -> None:
        self.requests: deque[LoadRequest | DrawRequest] = deque()
        self.answers: deque[WorkerInfo | Drawn | Failure | WorkerLost] = deque()
        self.ended = False

    def send(self, request: LoadRequest | DrawRequest) -> None:
        self.requests.append(request)

    def answer(self) -> WorkerInfo | Drawn | Failure:
        answer = self.answers.popleft()
        if isinstance(answer, WorkerLost):
            raise answer
        self.requests.popleft()
        return answer


class Workers:
    """A transport whose processes are in the mind only; `refuses` to start more."""

    def __init__(self) -> None:
        self.links: list[Scripted] = []
        self.refuses = False

    def start(self) -> Scripted:
        if self.refuses:
            raise KleinError("cannot start a worker: no memory", "use fewer")
        self.links.append(Scripted())
        return self.links[-1]

    def wait(self, links: Sequence[Scripted]) -> Scripted:
        answering = [link for link in links if link.answers]
        assert answering, "the pool waits for an answer that never comes"
        return answering[0]

    def end(self, links: Sequence[Scripted]) -> None:
        for link in links:
            link.ended = True


@pytest.fixture
def workers() -> Workers:
    return Workers()


def pool_of(
    workers: Workers, *answers: WorkerInfo | Failure | WorkerLost, count: int = 2
) -> Pool[Scripted]:
    """A pool whose workers answered so to load; the rest have not answered yet."""
    pool = Pool(workers, REQUEST, count, images=no_files, notes=ImageNotes(Heard()))
    for link, answer in zip(workers.links, answers, strict=False):
        link.answers.append(answer)
    pool.wait_for_the_first()
    return pool


def drawn() -> Drawn:
    return Drawn(images=[numpy.zeros((64, 64, 3), numpy.uint8)], failure=None, seconds=1.0)


def fill(pool: Pool[Scripted]) -> int:
    given = 0
    while pool.capacity():
        given += 1
        pool.submit(batch(given))
    return given


def test_a_worker_has_one_batch_in_hand_and_one_in_line(workers: Workers) -> None:
    pool = pool_of(workers, info(2))
    assert pool.capacity() == 2
    assert fill(pool) == 2
    # The second worker begins as soon as it is ready, not before.
    workers.links[1].answers.append(info(2))
    assert pool.next() is None
    assert fill(pool) == 2
    assert [len(link.requests) for link in workers.links] == [2, 2]
    workers.links[1].answers.append(drawn())
    result = pool.next()
    assert result is not None
    assert result.origin.record(batch().recipes[0])["provenance"] == {"threads": "2"}
    assert pool.capacity() == 1


def test_batches_are_dealt_evenly(workers: Workers) -> None:
    pool = pool_of(workers, info(2), info(2))
    pool.next()
    pool.submit(batch(1))
    pool.submit(batch(2))
    assert [len(link.requests) for link in workers.links] == [1, 1]


def test_results_are_those_of_the_batch_that_was_given(workers: Workers) -> None:
    pool = pool_of(workers, info(2))
    fill(pool)
    for _ in range(2):
        workers.links[0].answers.append(drawn())
    seeds = [result.batch.recipes[0].seed for result in (pool.next(), pool.next()) if result]
    assert seeds == [1, 2]
    assert not pool.busy()


def test_a_picture_that_failed_is_the_batchs_error(workers: Workers) -> None:
    pool = pool_of(workers, info(2))
    pool.submit(batch())
    workers.links[0].answers.append(Drawn(images=[], failure=NO_ROOM, seconds=1.0))
    result = pool.next()
    assert result is not None
    assert isinstance(result.error, OutOfMemoryError)


def test_a_dead_workers_batches_come_back_and_another_is_started(workers: Workers) -> None:
    pool = pool_of(workers, info(2), info(2))
    pool.next()
    fill(pool)
    workers.links[0].answers.append(DEATH)
    errors = [result.error for result in (pool.next(), pool.next()) if result]
    assert [type(error) for error in errors] == [WorkerDied, WorkerDied]
    assert [error.drawing for error in errors if isinstance(error, WorkerDied)] == [True, False]
    assert list(pool.notices()) == [
        "a worker died; what it had is drawn by others, and another is started"
    ]
    assert [link.ended for link in workers.links] == [True, False, False]
    assert list(workers.links[2].requests) == [REQUEST]
    workers.links[2].answers.append(info(2))
    assert pool.next() is None
    assert pool.capacity()


def test_workers_that_die_again_and_again_are_given_up(workers: Workers) -> None:
    pool = pool_of(workers, info(2), count=1)
    for deaths in (1, 2, 3):
        pool.submit(batch())
        workers.links[-1].answers.append(DEATH)
        result = pool.next()
        assert result is not None
        assert isinstance(result.error, WorkerDied)
        if deaths < 3:
            workers.links[-1].answers.append(info(2))
            assert pool.next() is None
    assert len(workers.links) == 3
    assert not pool.capacity()
    with pytest.raises(KleinError, match="all workers died; the last error: it was killed"):
        pool.next()


def test_where_no_other_can_be_started_the_rest_go_on(workers: Workers) -> None:
    """A host out of memory kills a worker, and then has no place for another process."""
    pool = pool_of(workers, info(2), info(2))
    pool.next()
    fill(pool)
    workers.refuses = True
    workers.links[0].answers.append(DEATH)
    assert pool.next() is not None
    (said,) = pool.notices()
    assert said.endswith("no other can be started: cannot start a worker: no memory")
    workers.links[1].answers.append(drawn())
    assert pool.next() is not None


def test_one_that_cannot_load_is_told_of_and_the_others_go_on(workers: Workers) -> None:
    pool = pool_of(workers, NO_ROOM, info(2))
    assert list(pool.notices()) == ["a worker could not load the model: no room"]
    assert pool.size == 1
    assert workers.links[0].ended
    assert fill(pool) == 2


def test_when_none_can_load_it_is_the_runs_error(workers: Workers) -> None:
    with pytest.raises(OutOfMemoryError, match="no room"):
        pool_of(workers, NO_ROOM, NO_ROOM)


def test_when_the_last_one_cannot_load_again_the_run_ends_as_of_a_death(workers: Workers) -> None:
    """Images are made by then: they are told of, and the run can be taken up."""
    pool = pool_of(workers, info(2), count=1)
    pool.submit(batch())
    workers.links[0].answers.append(DEATH)
    assert pool.next() is not None
    workers.links[-1].answers.append(NO_ROOM)
    assert pool.next() is None
    with pytest.raises(KleinError, match="all workers died; the last error: no room"):
        pool.next()


def test_workers_that_compute_otherwise_are_told_of_once(workers: Workers) -> None:
    pool = pool_of(workers, info(2), info(8), info(8), count=3)
    pool.next()
    pool.next()
    (said,) = pool.notices()
    assert "differ" in said


def test_a_pool_that_cannot_be_filled_leaves_no_process(workers: Workers) -> None:
    class Two(Workers):
        def start(self) -> Scripted:
            self.refuses = len(self.links) == 2
            return super().start()

    two = Two()
    with pytest.raises(KleinError, match="cannot start a worker"):
        Pool(two, REQUEST, 3, images=no_files, notes=ImageNotes(Heard()))
    assert [link.ended for link in two.links] == [True, True]


def test_the_workers_end_with_the_pool(workers: Workers) -> None:
    pool = pool_of(workers, info(2))
    pool.close()
    assert all(link.ended for link in workers.links)


def test_a_batch_whose_image_has_gone_fails_and_the_pool_goes_on(workers: Workers) -> None:
    pool = pool_of(workers, info(2), count=1)

    def gone(recipes: Sequence[Recipe]) -> list[SentFile]:
        raise UsageError("cannot read the image a.png", "give it")

    pool._images = gone
    pool.submit(batch(1))
    pool._images = no_files
    pool.submit(batch(2))
    result = pool.next()
    assert result is not None
    assert (str(result.error), result.batch.jobs[0].index) == ("cannot read the image a.png", 1)
    workers.links[0].answers.append(drawn())
    result = pool.next()
    assert result is not None
    assert result.error is None


def test_what_a_worker_says_of_images_is_told_once(workers: Workers) -> None:
    heard = Heard()
    pool = Pool(workers, REQUEST, 1, images=no_files, notes=ImageNotes(heard))
    workers.links[0].answers.append(info(2))
    pool.wait_for_the_first()
    for index in (1, 2):
        pool.submit(batch(index))
        workers.links[0].answers.append(replace(drawn(), notes=[("a.png", "a.png is CMYK")]))
        pool.next()
    assert heard.said == [("note", "a.png is CMYK")]
