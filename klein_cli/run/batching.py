"""Jobs -> batches of jobs that can be denoised together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from klein_cli.recipe import Recipe, Shape
from klein_cli.run.jobs import Job

WINDOW = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs to be drawn together, and what is done differently because memory ran out.

    `planned` is how many were to be drawn together at first; `reason` says why they are drawn
    alone if it was not for memory; `deaths` counts the workers that died over them.
    """

    jobs: tuple[Job, ...]
    planned: int
    tiled: bool = False
    reason: str | None = None
    deaths: int = 0

    @property
    def recipes(self) -> list[Recipe]:
        return [job.recipe for job in self.jobs]

    @property
    def step_down(self) -> str | None:
        """What goes into the images' records; None when all is as it should be."""
        parts = [f"made alone: {self.reason}"] if self.reason else []
        if not self.reason and len(self.jobs) < self.planned:
            parts.append(f"out of memory: made {len(self.jobs)} at a time, not {self.planned}")
        if self.tiled:
            parts.append("out of memory: decoded in tiles")
        return "; ".join(parts) or None

    def alone(self, reason: str) -> list[Batch]:
        """Its jobs one by one."""
        return [replace(self, jobs=(job,), reason=reason) for job in self.jobs]


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
        by_shape: dict[Shape, dict[str, list[Job]]] = {}
        for job in ahead:
            by_prompt = by_shape.setdefault(job.recipe.shape, {})
            by_prompt.setdefault(job.recipe.prompt, []).append(job)
        for by_prompt in by_shape.values():
            alike = list(chain.from_iterable(by_prompt.values()))
            yield from (tuple(alike[at : at + size]) for at in range(0, len(alike), size))
