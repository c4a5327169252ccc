"""Jobs -> batches of jobs that can be denoised together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from klein_cli.run.jobs import Job

WINDOW = 256


def batches(jobs: Iterable[Job], size: int, *, window: int = WINDOW) -> Iterator[tuple[Job, ...]]:
    """Groups of at most `size` jobs of one Recipe.shape, reading `window` jobs at a time.

    Within a window, shapes come in the order of their first job; so do the prompts of a shape, and
    equal ones follow each other, to be encoded once. A job never waits for more than its window.
    Names were given before and do not change.
    """
    assert size > 0
    assert window > 0
    jobs = iter(jobs)
    while ahead := list(islice(jobs, window)):
        by_shape: dict[tuple[int, int, int, float], dict[str, list[Job]]] = {}
        for job in ahead:
            by_prompt = by_shape.setdefault(job.recipe.shape, {})
            by_prompt.setdefault(job.recipe.prompt, []).append(job)
        for by_prompt in by_shape.values():
            alike = list(chain.from_iterable(by_prompt.values()))
            yield from (tuple(alike[at : at + size]) for at in range(0, len(alike), size))
