"""Images that are drawn again: sources -> one loaded model after another -> files, compared.

Where `klein reproduce` meets the run: what a source is, and what becomes of it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from klein_cli.checkpoints.given import Parts
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import Snapshot, on_disk
from klein_cli.device.startup import quick_start
from klein_cli.errors import KleinError, ModelError, UsageError
from klein_cli.images.store import ImageStore
from klein_cli.output.metadata import Origin
from klein_cli.output.reading import Record, read_pixels
from klein_cli.presets import Preset
from klein_cli.recipe import Adapter, Recipe
from klein_cli.run.differences import (
    as_many_threads,
    differences,
    likeness,
    schedule_differs,
    settings_here,
)
from klein_cli.run.events import Event, Failed, Listener, Saved, Stopped
from klein_cli.run.executors.executor import ReadyExecutor
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.start import check_adapters, start
from klein_cli.run.interrupts import defer_interrupts
from klein_cli.run.jobs import Job
from klein_cli.run.plan import Output
from klein_cli.run.prompt_lengths import check_lengths
from klein_cli.run.resident.finding import ServerChoice, find
from klein_cli.run.runner import Run
from klein_cli.run.timings import Timings
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer, TokenizedPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An image and what `model` is to draw from it. No snapshot: the user names the model, and
    perhaps files in place of its `parts`.
    """

    path: Path
    record: Record
    model: str
    snapshot: Snapshot | None
    preset: Preset
    recipes: tuple[Recipe, ...]
    parts: Parts = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """Sources that share it are drawn by one loaded model."""
        then = self.record
        place = (then.recipe.model, then.revision) if self.snapshot else (self.model,)
        return *place, then.settings, then.provenance.get("threads")

    def with_adapters(self, adapters: tuple[Adapter, ...]) -> Source:
        """The same image, to be drawn with these."""
        return replace(self, recipes=tuple(replace(r, adapters=adapters) for r in self.recipes))

    def is_drawn_by(self, job: Job) -> bool:
        """Whether the job draws this image's own recipe, not a variation of it."""
        return replace(job.recipe, model=self.record.recipe.model) == self.record.recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """How the user wants images drawn again: the `settings` that were typed, the `device` where
    they like to run, None for the image's, and as for a run of other images. `server` says whether
    an engine may draw them.
    """

    settings: Mapping[str, str]
    device: str | None
    batch_size: int | None
    strict: bool
    output: Output
    server: ServerChoice = field(default_factory=ServerChoice)


def engine_as_then(source: Source, overrides: Overrides) -> bool:
    """Whether an engine that is running computes as was done for an image, threads and all.

    Raises KleinError where one is required and does not.
    """
    choice = overrides.server
    here = source.snapshot or on_disk(source.model, source.parts)
    if choice.mode == "off" or here is None:
        return False
    try:
        wanted = _as_then(source, overrides)
    except UsageError:
        return False  # which the way without an engine tells
    found = find(choice, source.model, here, wanted, given="parts" if source.parts else "")
    if found.resident is None:
        return False
    origin = found.resident.origin
    same = origin.settings == wanted and overrides.device in (None, "auto", wanted.device)
    same = same and origin.provenance.get("threads") == source.record.provenance.get("threads")
    if choice.mode == "require" and not same:
        raise KleinError(
            f"the engine at {found.resident.place} does not compute as was done for {source.path}",
            "leave out --server: this process does, as far as it can",
        )
    return same


def _as_then(source: Source, overrides: Overrides) -> Settings:
    """Raises UsageError for words of an image that this klein does not know."""
    return source.record.settings.with_(**overrides.settings)


class Reproduction:
    """The images of one command, drawn by one model after another; `images` has what they edit,
    `adapters` what they are drawn with.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        jobs: Sequence[Job],
        overrides: Overrides,
        listener: Listener,
        images: ImageStore,
        adapters: AdapterStore | None = None,
    ) -> None:
        origins = [source for source in sources for _ in source.recipes]
        self._origin = dict(zip((job.index for job in jobs), origins, strict=True))
        self._jobs = jobs
        self._several = len(sources) > 1
        self._compared = self._same = 0
        self._overrides = overrides
        self._listener = listener
        self._images = images
        self._adapters = AdapterStore() if adapters is None else adapters
        self._run: Run | None = None

    def tokens(self) -> dict[int, TokenizedPrompt]:
        """The prompts by the jobs' index, measured as for a run, where the model is here."""
        tokens: dict[int, TokenizedPrompt] = {}
        for jobs in self._groups(self._jobs):
            source = self._origin[jobs[0].index]
            snapshot = source.snapshot or on_disk(source.model, source.parts)
            if snapshot is None:
                continue
            tokenize = PromptTokenizer.of(snapshot).tokenize
            strict, several = self._overrides.strict, len(self._jobs) > 1
            check_lengths(tokenize, jobs, several=several, strict=strict, listener=self._listener)
            check_adapters(self._adapters_of(jobs), snapshot, self._listener)
            tokens |= {job.index: tokenize(job.recipe.prompt) for job in jobs}
        return tokens

    def events(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Draw the images of `jobs`, which are its own; say of each what became of it."""
        groups = self._groups(jobs)
        for group in groups:
            drawn = self._draw(group)
            for event in drawn if len(groups) == 1 else _beside_others(group, drawn):
                yield event
                if isinstance(event, Stopped):
                    return
        if self._compared > 1:
            self._listener.note(
                f"{self._same} of {self._compared} images are the same again, pixel for pixel"
            )

    def rest(self) -> Iterator[Event]:
        """What became of images that were drawn when the user interrupted."""
        if self._run is not None:
            yield from self._run.rest()

    def _groups(self, jobs: Iterable[Job]) -> list[list[Job]]:
        groups: dict[tuple[object, ...], list[Job]] = {}
        for job in jobs:
            groups.setdefault(self._origin[job.index].key, []).append(job)
        return list(groups.values())

    def _adapters_of(self, jobs: Iterable[Job]) -> AdapterStore:
        return self._adapters.among({one for job in jobs for one in job.recipe.adapters})

    def _draw(self, jobs: Sequence[Job]) -> Iterator[Event]:
        timings = Timings()
        source, overrides = self._origin[jobs[0].index], self._overrides
        by_engine = engine_as_then(source, overrides)
        with contextlib.ExitStack() as stack:
            if not by_engine:
                self._get_ready(timings)
                stack.enter_context(as_many_threads(source.record))
            ready = stack.enter_context(self._started(jobs, source, timings, by_engine))
            self._listener.expect(len(self._jobs))
            self._run = Run(
                executor=ready.executor,
                batch_size=overrides.batch_size or ready.batch_size,
                overwrite=overrides.output.overwrite,
                stdout=sys.stdout.buffer,
                no_metadata=overrides.output.no_metadata,
                threads=ready.writers,
                images=self._images,
            )
            for event in self._run.events(jobs):
                yield event
                if isinstance(event, Saved):
                    self._compare(event)
        for line in timings.lines(ready, self._run.writing):
            self._listener.detail(line)

    def _get_ready(self, timings: Timings) -> None:
        """For a model in this process, in the place of the one before."""
        self._listener.doing("starting torch")
        # Here, before torch's threads are counted.
        with quick_start(), timings.imports(), defer_interrupts():
            from klein_cli.device.memory import release_memory
        if self._run is not None:  # it holds the model of the images before
            self._run = None
            release_memory()

    @contextlib.contextmanager
    def _started(
        self, jobs: Sequence[Job], source: Source, timings: Timings, by_engine: bool
    ) -> Iterator[ReadyExecutor]:
        overrides = self._overrides
        lines: list[str] = []
        if by_engine:
            settings = _as_then(source, overrides)
        else:
            settings, lines = settings_here(
                source.record.settings, overrides.settings, overrides.device, source.preset
            )
        started = start(
            source.model,
            settings,
            Placement(server=overrides.server if by_engine else ServerChoice()),
            jobs,
            store=self._images,
            adapters=self._adapters_of(jobs),
            strict=overrides.strict,
            listener=self._listener,
            timings=timings,
            snapshot=source.snapshot,
            parts=source.parts,
        )
        with started as ready:
            self._report_differences(jobs, lines, source.preset.name, ready.origin)
            yield ready

    def _report_differences(
        self, jobs: Sequence[Job], lines: Sequence[str], model: str, origin: Origin
    ) -> None:
        """A warning a difference; of variations, where they say little, a detail."""
        from klein_cli.sampling.schedule import noise_levels

        said: dict[tuple[str, bool], list[Path]] = {}
        for job in jobs:
            source = self._origin[job.index]
            then, same = source.record.recipe, source.is_drawn_by(job)
            found = [*lines, *differences(source.record, model, origin)]
            if same and schedule_differs(
                source.record, noise_levels(then.width, then.height, then.steps)
            ):
                found.append("sigmas: other noise levels then")
            for line in found:
                said.setdefault((line, same), []).append(source.path)
        for (line, same), paths in said.items():
            where = f"{names_of(paths)}: " if self._several else ""
            line = line.replace("\n", r"\n")  # the words of a record may be a stranger's
            (self._listener.warn if same else self._listener.detail)(where + line)

    def _compare(self, saved: Saved) -> None:
        """Hold the new file against the original, where both keep every pixel."""
        source, path = self._origin[saved.job.index], saved.path
        if path is None or not source.is_drawn_by(saved.job):
            return
        with contextlib.suppress(OSError):  # the original may be gone by now
            if path.samefile(source.path):
                return
        lossy = [one for one in (source.path, path) if one.suffix.lower() != ".png"]
        if lossy:
            say = self._listener.detail if self._several else self._listener.note
            say(f"not compared: {lossy[0]} is lossy")
            return
        try:
            found = likeness(path, read_pixels(source.path))
        except KleinError as error:
            self._listener.warn(f"not compared: {error.message}")
            return
        facts = {"index": saved.job.index, "path": str(path), "original": str(source.path)}
        self._compared += 1
        if found is None:
            self._listener.event("compared", **facts, same=False)
            self._listener.warn(f"{source.path} has been resized since it was drawn")
            return
        self._listener.event(
            "compared", **facts, same=not found.differ, differ=found.differ, most=found.most
        )
        if not found.differ:
            self._same += 1
            say = self._listener.detail if self._several else self._listener.note
            say(f"{path} is {source.path} again, pixel for pixel")
            return
        self._listener.warn(
            f"{path} is not quite {source.path}: {found.differ} of {found.pixels} pixels differ, "
            f"by at most {found.most} of 255"
        )


def _beside_others(jobs: Sequence[Job], drawn: Iterator[Event]) -> Iterator[Event]:
    """One model's images: if it fails, they do, and those of other models can still be drawn."""
    left = {job.index: job for job in jobs}
    try:
        for event in drawn:
            if isinstance(event, Stopped) and isinstance(event.error, ModelError):
                raise event.error
            if isinstance(event, Saved | Failed):
                del left[event.job.index]
            yield event
    except KleinError as error:
        yield from (Failed(job=job, error=error) for job in left.values())


def names_of(paths: Sequence[Path]) -> str:
    """Files in few words: "a.png and 3 more"."""
    distinct = list(dict.fromkeys(paths))
    more = len(distinct) - 1
    return f"{distinct[0]} and {more} more" if more else str(distinct[0])
