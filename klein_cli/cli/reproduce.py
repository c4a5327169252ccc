"""`klein reproduce`: pictures -> their records -> the same pictures again, or variations of them.

A value comes from the command line, else from the picture, else from the settings file, else from
the model. Everything that can be refused is refused before torch is imported.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klein_cli import __version__
from klein_cli.cli import options
from klein_cli.cli.config import origins, was_typed
from klein_cli.cli.generate import (
    check_lengths,
    check_stdout,
    follow,
    open_pipeline,
    prepared,
    say_timings,
)
from klein_cli.cli.report import Report, printable
from klein_cli.cli.request import Request, batch_size_of, defaults_of, prompts_of, without_effect
from klein_cli.cli.startup import quick_start
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.naming import STDOUT, Names, destination
from klein_cli.output.png import check_room
from klein_cli.output.reading import Record, read_pixels, read_record
from klein_cli.presets import Preset
from klein_cli.prompts import Row, recipes
from klein_cli.recipe import Recipe, Settings
from klein_cli.run.again import (
    Here,
    as_many_threads,
    as_then,
    differences,
    group_key,
    likeness,
    model_of,
    schedule_differs,
    settings_here,
)
from klein_cli.run.plan import Job, Plan, check_folders, check_sides
from klein_cli.run.runner import Event, Saved
from klein_cli.snapshot import Snapshot, preset_for

if TYPE_CHECKING:
    from klein_cli.pipeline import Pipeline

THE_PICTURES = "the picture's"
_INTERRUPTED = 130
_SETTINGS = tuple(field.name for field in fields(Settings))
_SAID_BY_THE_PICTURE = (
    *("prompt_option", "negative_prompt", "seed", "width", "height", "size", "aspect"),
    *("steps", "guidance", "guidance_scale", "model"),
    *_SETTINGS,
)

Pictures = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMG",
        help="Pictures that klein made: PNG, JPEG or WebP.",
        show_default=False,
        rich_help_panel="What to draw",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        "-s",
        metavar="N",
        help="Another seed; the next picture of the same original gets N+1, and so on.",
        rich_help_panel="The picture",
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        "--width", "-W", metavar="PIXELS", help="Another width.", rich_help_panel="The picture"
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        "--height", "-H", metavar="PIXELS", help="Another height.", rich_help_panel="The picture"
    ),
]
Aspect = Annotated[
    str | None,
    typer.Option(
        "--aspect",
        metavar="W:H",
        help="Another shape, as in 16:9, with about as many pixels as the picture.",
        rich_help_panel="The picture",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Other steps.", rich_help_panel="The picture"),
]


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


def reproduce(
    context: typer.Context,
    pictures: Pictures,
    prompt_option: options.PromptOption = None,
    negative_prompt: options.NegativePrompt = None,
    strict: options.Strict = False,
    seed: Seed = None,
    num_images: options.NumImages = 1,
    width: Width = None,
    height: Height = None,
    size: options.Size = None,
    aspect: Aspect = None,
    steps: Steps = None,
    guidance: options.Guidance = None,
    guidance_scale: options.GuidanceScale = None,
    output: options.OutputPath = None,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    dry_run: options.DryRun = False,
    model: options.Model = THE_PICTURES,
    device: options.Device = THE_PICTURES,
    dtype: options.Dtype = THE_PICTURES,
    batch_size: options.BatchSize = "auto",
    engine: options.Engine = THE_PICTURES,
    attention: options.Attention = THE_PICTURES,
    rng: options.Rng = THE_PICTURES,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw a picture again from the recipe inside it; any option makes a variation of it.

    What no option says is the picture's own. Whatever is not as it was then is
    warned of: versions, machine, model. A PNG drawn again without changes is
    compared with the original, pixel by pixel. Only a model of klein's own that
    is on this machine is used, unless -m names one: nothing is downloaded
    because a picture says so.
    """
    report = Report(as_json=json, quiet=quiet, verbose=verbose, silent_stdout=output == STDOUT)
    try:
        code = _reproduce(context, pictures, report)
    except KleinError as error:
        report.event("error", message=error.message, hint=error.hint)
        raise
    except KeyboardInterrupt:
        report.note("interrupted")
        code = _INTERRUPTED
    raise typer.Exit(code)


def _reproduce(context: typer.Context, pictures: Sequence[Path], report: Report) -> int:
    request, given = _asked(context)
    batch_size_of(request)
    check_stdout(request)
    prompt = None
    if request.prompt_option is not None:
        _, [row] = prompts_of(request, sys.stdin.buffer)
        prompt = row.prompt if isinstance(row, Row) else None
    sources = _sources(pictures, request, prompt)
    jobs = _named(sources, request)
    for line in origins(context):
        report.detail(line)
    report.detail(f"from {_some(pictures)}: all else that the recipe says")
    drawing = Drawing(sources, jobs, given, context.params["device"], report)
    _warn_of_no_effect(sources, report)
    if request.dry_run:
        return drawing.dry_run()
    report.event("started", klein=__version__, pictures=len(jobs))
    with report.bar:
        return follow(drawing.events(), len(jobs), report)


def _asked(context: typer.Context) -> tuple[Request, dict[str, str]]:
    """What the user asked for; what the picture says stays unsaid unless it was typed.

    And the typed settings, by their names in Settings.
    """
    known = {field.name for field in fields(Request)}
    typed = {
        name: value
        for name, value in context.params.items()
        if name in known and (name not in _SAID_BY_THE_PICTURE or was_typed(context, name))
    }
    given = {name: typed[name] for name in _SETTINGS if name in typed}
    return Request(**{"model": "", **typed}), given


def _sources(pictures: Sequence[Path], request: Request, prompt: str | None) -> list[Source]:
    """Every picture read and its recipes made. Raises one error that names all that cannot be."""
    sources, faults = [], []
    for path in pictures:
        try:
            sources.append(_read(path, request, prompt))
        except KleinError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = [f"  {fault.message}" for fault in faults]
        raise UsageError(
            "\n".join([f"{len(faults)} of {len(pictures)} pictures cannot be used", *lines]),
            f"{faults[0].hint}; no picture was made",
        )
    return sources


def _read(path: Path, request: Request, prompt: str | None) -> Source:
    record = read_record(path)
    snapshot = None if request.model else model_of(path, record)
    preset = as_then(snapshot.preset if snapshot else preset_for(request.model), record)
    then = record.recipe
    negative = then.negative_prompt if request.negative_prompt is None else request.negative_prompt
    row = Row(
        prompt=then.prompt if prompt is None else prompt,
        negative_prompt=None if preset.distilled else negative,
    )
    seed = then.seed if request.seed is None else request.seed
    drawn = recipes(row, defaults_of(request, preset), seed)
    check_sides(drawn[0], preset)
    return Source(
        path=path,
        record=record,
        request=replace(request, model=request.model or then.model),
        snapshot=snapshot,
        preset=preset,
        recipes=tuple(drawn),
    )


def _named(sources: Sequence[Source], request: Request) -> list[Job]:
    """Every picture of the run with its path, in the order of the originals."""
    drawn = [recipe for source in sources for recipe in source.recipes]
    if request.output == STDOUT:
        if len(drawn) > 1:
            raise UsageError("-o - writes one picture, and this run makes several", "give a folder")
        return [Job(index=1, recipe=drawn[0], path=None, exact=True)]
    where = destination(request.output, several=len(drawn) > 1)
    names = Names(where, overwrite=request.overwrite, today=date.today())
    jobs = []
    for index, recipe in enumerate(drawn, start=1):
        path = names.of(index, recipe)
        check_room(recipe, path.suffix)
        jobs.append(Job(index=index, recipe=recipe, path=path, exact=where.exact))
    check_folders(jobs)
    return jobs


def _warn_of_no_effect(sources: Sequence[Source], report: Report) -> None:
    ignored = {
        (name, source.preset.name)
        for source in sources
        for name in without_effect(source.request, source.preset)
    }
    for name, model in sorted(ignored):
        report.warn(f"{name} has no effect: {model} is distilled")


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
        self._device = None if device == THE_PICTURES else device
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
            where = f"{_some(paths)}: " if self._several else ""
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


def _some(paths: Sequence[Path]) -> str:
    distinct = list(dict.fromkeys(paths))
    more = len(distinct) - 1
    return f"{distinct[0]} and {more} more" if more else str(distinct[0])
