"""Jobs -> batches: together what can be together, nothing lost, nothing kept waiting for ever."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from klein_cli.recipe import Recipe
from klein_cli.run.batching import batches
from klein_cli.run.jobs import Job


def job(index: int, width: int = 256, guidance: float = 1.0) -> Job:
    recipe = Recipe(
        prompt="a", seed=index, width=width, height=256, steps=4, guidance=guidance, model="tiny"
    )
    return Job(index=index, recipe=recipe, path=Path(f"{index}.png"), exact=False)


def indices(groups: object) -> list[list[int]]:
    return [[job.index for job in group] for group in groups]  # type: ignore[attr-defined]


def test_alike_jobs_are_cut_into_full_batches_in_order() -> None:
    assert indices(batches(map(job, range(1, 6)), 2)) == [[1, 2], [3, 4], [5]]


def test_shapes_are_not_mixed_and_come_in_order_of_their_first_job() -> None:
    jobs = [job(1), job(2, 128), job(3), job(4, 128), job(5, guidance=4.0)]
    assert indices(batches(jobs, 4)) == [[1, 3], [2, 4], [5]]


def test_a_job_waits_for_no_more_than_its_window() -> None:
    jobs = [job(1), job(2, 128), job(3), job(4)]
    assert indices(batches(jobs, 4, window=2)) == [[1], [2], [3, 4]]


def test_jobs_are_read_a_window_at_a_time() -> None:
    read = itertools.count(1)

    def endless() -> Iterator[Job]:
        while True:
            yield job(next(read))

    first = next(batches(endless(), 4, window=8))
    assert [job.index for job in first] == [1, 2, 3, 4]
    assert next(read) == 9


def test_every_job_comes_out_once() -> None:
    jobs = [job(index, 128 + 16 * (index % 5)) for index in range(1, 100)]
    made = [index for group in indices(batches(jobs, 3, window=17)) for index in group]
    assert sorted(made) == list(range(1, 100))


def test_no_jobs_make_no_batches() -> None:
    assert list(batches([], 4)) == []
