"""Jobs on disk: all of them, in order, as often as wanted, and not in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from klein_cli.errors import KleinError
from klein_cli.recipe import Recipe
from klein_cli.run.jobs import Job, Jobs


def job(index: int) -> Job:
    recipe = Recipe(
        prompt=f"picture {index} " + "of a cat " * 20,
        seed=index,
        width=64,
        height=64,
        steps=4,
        guidance=1.0,
        model="tiny",
    )
    return Job(index=index, recipe=recipe, path=Path(f"d/{index}.png"), exact=False, row="r")


def test_jobs_come_back_as_they_went_in() -> None:
    jobs = Jobs()
    for index in range(1, 4):
        jobs.add(job(index))
    assert len(jobs) == 3
    assert list(jobs) == [job(1), job(2), job(3)]
    assert list(jobs) == [job(1), job(2), job(3)]


def test_readers_do_not_disturb_each_other() -> None:
    jobs = Jobs()
    jobs.add(job(1))
    jobs.add(job(2))
    one, other = iter(jobs), iter(jobs)
    assert (next(one).index, next(other).index, next(one).index) == (1, 1, 2)
    jobs.add(job(3))
    assert next(other).index == 2


@pytest.mark.own_process
def test_twenty_thousand_jobs_take_no_memory() -> None:
    """Beside torch, the growth of Python's table of interned names would count: paths use it."""
    jobs = Jobs()
    tracemalloc.start()
    try:
        for index in range(1, 20_001):
            jobs.add(job(index))
        assert sum(1 for _ in jobs) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_temporary_folder_is_a_users_error() -> None:
    jobs = Jobs()
    with open("/dev/full", "wb", buffering=0) as full:
        jobs._file.close()
        jobs._file = full  # type: ignore[assignment]
        with pytest.raises(KleinError, match="cannot keep the plan"):
            jobs.add(job(1))
