"""`klein reproduce`: pictures -> their records -> the same pictures again, or variations of them.

A value comes from the command line, else from the picture, else from the settings file, else from
the model. Everything that can be refused is refused before torch is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from klein_cli import __version__
from klein_cli.checkpoints.resolve import preset_for
from klein_cli.cli import options
from klein_cli.cli.commands.generate import check_stdout
from klein_cli.cli.config import origins, was_typed
from klein_cli.cli.drawing import Drawing, Source, names_of
from klein_cli.cli.request import (
    Request,
    batch_size_of,
    defaults_of,
    prompts_of,
    settings_of,
    without_effect,
)
from klein_cli.cli.terminal.follow import Followed, carried_out
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.naming import STDOUT, Names, destination
from klein_cli.output.png import check_room
from klein_cli.output.reading import read_record
from klein_cli.prompts.rows import Row, recipe_of
from klein_cli.run.differences import as_then, model_of
from klein_cli.run.jobs import Job
from klein_cli.run.plan import check_folders, check_sides
from klein_cli.settings import Settings

THE_PICTURES = "the picture's"
_SETTINGS = tuple(field.name for field in fields(Settings))
_SAID_BY_THE_PICTURE = (
    *("prompt_option", "negative_prompt", "seed", "width", "height", "size", "aspect"),
    *("steps", "guidance", "guidance_scale", "model", "num_images"),
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
    quantize: options.Quantize = THE_PICTURES,
    kernels: options.Kernels = THE_PICTURES,
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
    told = {"json": json, "quiet": quiet, "verbose": verbose, "dry_run": dry_run}
    run = partial(_reproduce, context, pictures)
    raise typer.Exit(carried_out(run, output=output, **told))


def _reproduce(context: typer.Context, pictures: Sequence[Path], report: Report) -> int:
    request, given = _asked(context)
    settings_of(request)
    batch_size_of(request)
    check_stdout(request)
    prompt = None
    if request.prompt_option is not None:
        _, [row] = prompts_of(request, sys.stdin.buffer)
        prompt = row.prompt if isinstance(row, Row) else None
    sources = _sources(pictures, request, prompt)
    jobs = _named(sources, request)
    for line in origins(context, not_filed={*_SAID_BY_THE_PICTURE} - {"device"}):
        report.detail(line)
    report.detail(f"from {names_of(pictures)}: all else that the recipe says")
    liked = context.params["device"]
    device = None if liked == THE_PICTURES else liked
    drawing = Drawing(sources, jobs, given, device, report)
    _warn_of_no_effect(sources, report)
    if request.dry_run:
        return drawing.dry_run()
    report.event("started", klein=__version__, pictures=len(jobs))
    with report.bar:
        return Followed(report, len(jobs)).follow(drawing, jobs)


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
        # One kind of fault keeps its exit code.
        kind = type(faults[0]) if len({fault.exit_code for fault in faults}) == 1 else UsageError
        raise kind(
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
    defaults = defaults_of(request, preset)
    drawn = [recipe_of(row, defaults, seed + k) for k in range(defaults.n)]
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
        if not request.no_metadata:
            check_room(recipe, path.suffix)
        jobs.append(Job(index=index, recipe=recipe, path=path, exact=where.exact))
    check_folders({job.path.parent for job in jobs if job.path is not None})
    return jobs


def _warn_of_no_effect(sources: Sequence[Source], report: Report) -> None:
    ignored = {
        (name, source.preset.name)
        for source in sources
        for name in without_effect(source.request, source.preset)
    }
    for name, model in sorted(ignored):
        report.warn(f"{name} has no effect: {model} is distilled")
