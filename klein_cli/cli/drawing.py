"""Pictures that are drawn again: sources -> one loaded model after another -> files, compared.

Where `klein reproduce` meets the run: what a source is, and what becomes of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from klein_cli.cli.generate import check_lengths, open_pipeline, prepared, say_timings
from klein_cli.cli.report import Report, printable
from klein_cli.cli.request import Request, batch_size_of
from klein_cli.cli.startup import quick_start
from klein_cli.errors import KleinError
from klein_cli.output.reading import Record, read_pixels
from klein_cli.presets import Preset
from klein_cli.recipe import Recipe
from klein_cli.run.again import (
    Here,
    as_many_threads,
    differences,
    group_key,
    likeness,
    schedule_differs,
    settings_here,
)
from klein_cli.run.plan import Job, Plan
from klein_cli.run.runner import Event, Saved
from klein_cli.snapshot import Snapshot

if TYPE_CHECKING:
    from klein_cli.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A picture and what is to be drawn from it. No snapshot: the user names the model."""

    path: Path
    record: Record
    request: Request
    snapshot: Snapshot | None
    preset: Preset
    recipes: tuple[Recipe, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Sources that share it are drawn by one loaded model."""
        return group_key(self.record, None if self.snapshot else self.request.model)

    def is_drawn_by(self, job: Job) -> bool:
        """Whether the job draws this picture's own recipe, not a variation of it."""
        return replace(job.recipe, model=self.record.recipe.model) == self.record.recipe


class Drawing:
    """The pictures of one command, drawn by one model after another.

    `given` are the settings that were typed; `device` is where the user likes to run.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        jobs: Sequence[Job],
        given: dict[str, str],
        device: str | None,
        report: Report,
    ) -> None:
        origins = [source for source in sources for _ in source.recipes]
        self._origin = dict(zip((job.index for job in jobs), origins, strict=True))
        self._jobs = jobs
        self._several = len(sources) > 1
        self._compared = self._same = 0
        self._given = given
        self._device = device
        self._report = report

    def dry_run(self) -> int:
        """Print what would be drawn; the exit code."""
        for jobs in self._groups():
            source, lengths = self._origin[jobs[0].index], dict[str, int]()
            if source.snapshot is not None:
                lengths = check_lengths(source.snapshot, _plan(jobs), source.request, self._report)
            for job in jobs:
                self._report.planned(job, lengths.get(job.recipe.prompt))
        return 0

    def events(self) -> Iterator[Event]:
        """Draw the pictures; say of each what became of it."""
        for jobs in self._groups():
            yield from self._draw(jobs)
        if self._compared > 1:
            self._report.note(
                f"{self._same} of {self._compared} pictures are the same again, pixel for pixel"
            )

    def _groups(self) -> list[list[Job]]:
        groups: dict[tuple[object, ...], list[Job]] = {}
        for job in self._jobs:
            groups.setdefault(self._origin[job.index].key, []).append(job)
        return list(groups.values())

    def _draw(self, jobs: Sequence[Job]) -> Iterator[Event]:
        started = time.perf_counter()
        source, report = self._origin[jobs[0].index], self._report
        report.bar.say("starting torch")
        with quick_start():
            import torch  # noqa: F401 (here, before its threads are counted)
        with as_many_threads(source.record):
            with quick_start():
                pipeline = self._open(jobs, source)
            report.bar.expect(len(self._jobs))
            run = prepared(pipeline, batch_size_of(source.request), source.request, report)
            for event in run.events(jobs):
                yield event
                if isinstance(event, Saved):
                    with contextlib.suppress(KleinError):  # the original may be gone by now
                        self._compare(event)
        say_timings(pipeline, time.perf_counter() - started, report)

    def _open(self, jobs: Sequence[Job], source: Source) -> Pipeline:
        settings, lines = settings_here(
            source.record.settings, self._given, self._device, source.preset
        )
        pipeline = open_pipeline(
            source.request, settings, _plan(jobs), self._report, source.snapshot
        )
        self._say_differences(jobs, lines, pipeline)
        return pipeline

    def _say_differences(
        self, jobs: Sequence[Job], lines: Sequence[str], pipeline: Pipeline
    ) -> None:
        """A warning a difference; of variations, where they say little, a detail."""
        from klein_cli.denoise.schedule import noise_levels
        from klein_cli.fingerprint import fingerprint

        here = Here(
            model=pipeline.snapshot.preset.name,
            revision=pipeline.snapshot.revision,
            weights=fingerprint(pipeline.snapshot.root),
            settings=pipeline.settings,
            provenance=pipeline.provenance(),
        )
        said: dict[tuple[str, bool], list[Path]] = {}
        for job in jobs:
            source = self._origin[job.index]
            then, same = source.record.recipe, source.is_drawn_by(job)
            found = [*lines, *differences(source.record, here)]
            if same and schedule_differs(
                source.record, noise_levels(then.width, then.height, then.steps)
            ):
                found.append("sigmas: other noise levels then")
            for line in found:
                said.setdefault((line, same), []).append(source.path)
        for (line, same), paths in said.items():
            where = f"{names_of(paths)}: " if self._several else ""
            (self._report.warn if same else self._report.detail)(where + printable(line))

    def _compare(self, saved: Saved) -> None:
        """Hold the new file against the original, where both keep every pixel."""
        source, path = self._origin[saved.job.index], saved.path
        if path is None or not source.is_drawn_by(saved.job):
            return
        lossless = path.suffix.lower() == source.path.suffix.lower() == ".png"
        if not lossless or path.samefile(source.path):
            return
        found = likeness(path, read_pixels(source.path))
        facts = {"index": saved.job.index, "path": str(path), "original": str(source.path)}
        self._compared += 1
        if found is None:
            self._report.event("compared", **facts, same=False)
            self._report.warn(f"{source.path} has been resized since it was drawn")
            return
        self._report.event(
            "compared", **facts, same=not found.differ, differ=found.differ, most=found.most
        )
        if not found.differ:
            self._same += 1
            say = self._report.detail if self._several else self._report.note
            say(f"{path} is {source.path} again, pixel for pixel")
            return
        self._report.warn(
            f"{path} is not quite {source.path}: {found.differ} of {found.pixels} pixels differ, "
            f"by at most {found.most} of 255"
        )


def _plan(jobs: Sequence[Job]) -> Plan:
    return Plan(jobs=tuple(jobs), uses_seed=False, without_effect=())


def names_of(paths: Sequence[Path]) -> str:
    """Files in few words: "a.png and 3 more"."""
    distinct = list(dict.fromkeys(paths))
    more = len(distinct) - 1
    return f"{distinct[0]} and {more} more" if more else str(distinct[0])
