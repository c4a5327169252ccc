"""Jobs -> batches of jobs that can be denoised together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from klein_cli.run.plan import Job

WINDOW = 256


def batches(jobs: Iterable[Job], size: int, *, window: int = WINDOW) -> Iterator[tuple[Job, ...]]:
    """Groups of at most `size` jobs of one Recipe.shape, reading `window` jobs at a time.

    Within a window, shapes come in the order of their first job and jobs keep their order; a job
    never waits for more than its window. Names were given before and do not change.
    """
    assert size > 0
    assert window > 0
    jobs = iter(jobs)
    while ahead := list(islice(jobs, window)):
        by_shape: dict[tuple[int, int, int, float], list[Job]] = {}
        for job in ahead:
            by_shape.setdefault(job.recipe.shape, []).append(job)
        for alike in by_shape.values():
            yield from (tuple(alike[at : at + size]) for at in range(0, len(alike), size))
