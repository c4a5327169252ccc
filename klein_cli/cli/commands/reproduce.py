"""`klein reproduce`: pictures -> their records -> the same pictures again, or variations of them.

A value comes from the command line, else from the picture, else from the settings file, else from
the model. Everything that can be refused is refused before torch is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from klein_cli import __version__
from klein_cli.checkpoints.resolve import Snapshot, preset_for
from klein_cli.cli import options
from klein_cli.cli.config import origins, was_typed
from klein_cli.cli.generation import parsed_output
from klein_cli.cli.groups import grouped, only_typed
from klein_cli.cli.terminal.dry_run import dry_run
from klein_cli.cli.terminal.follow import RunReporter, run_command
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.naming import Names
from klein_cli.output.png import check_room
from klein_cli.output.reading import read_record
from klein_cli.presets import Preset
from klein_cli.prompts.rows import ignored, recipe_of
from klein_cli.prompts.source import typed_prompt
from klein_cli.run.differences import model_of, row_again
from klein_cli.run.jobs import Job
from klein_cli.run.plan import Output, check_folders
from klein_cli.run.reproduce import Reproduction, Source, Wishes, names_of
from klein_cli.settings import CHOICES

THE_PICTURES = "the picture's"
_OF_THE_PICTURE = {
    *("prompt_option", "negative_prompt", "model", *CHOICES),
    *(field.name for field in fields(options.PictureOptions)),
}
"""The parameters whose values are the picture's own unless they are typed."""

Pictures = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMG",
        help="Pictures that klein made: PNG, JPEG or WebP.",
        show_default=False,
        rich_help_panel="What to draw",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variation:
    """What was typed, to be drawn instead of what the pictures say; None leaves that."""

    prompt: str | None
    negative_prompt: str | None
    model: str | None
    picture: options.PictureOptions

    @property
    def guidance(self) -> float | None:
        """The guidance that was typed."""
        return self.picture.cfg


@grouped(
    leave_out={"prompt", "prompts_file", "wildcards", "seeds", "resume", "gallery"}
    | {"workers", "ray"},
    defaults=dict.fromkeys(("model", *CHOICES), THE_PICTURES),
    helps={
        "seed": "Another seed; the next picture of the same original gets N+1, and so on.",
        "width": "Another width.",
        "height": "Another height.",
        "aspect": "Another shape, as in 16:9, with about as many pixels as the picture.",
        "steps": "Other steps.",
    },
)
def reproduce(
    context: typer.Context,
    *,
    pictures: Pictures,
    prompts: options.PromptOptions,
    strict: options.Strict = False,
    picture: options.PictureOptions,
    files: options.OutputOptions,
    model: options.Model,
    machine: options.MachineOptions,
    told: options.ReportOptions,
) -> None:
    """Draw a picture again from the recipe inside it; any option makes a variation of it.

    What no option says is the picture's own. Whatever is not as it was then is
    warned of: versions, machine, model. A PNG drawn again without changes is
    compared with the original, pixel by pixel. Only a model of klein's own that
    is on this machine is used, unless -m names one: nothing is downloaded
    because a picture says so.
    """

    def run(report: Report) -> int:
        wishes = _wishes(context, machine, strict, parsed_output(files, told))
        typed = only_typed(context, prompts)
        prompt = typed.prompt_option
        asked = _Variation(
            prompt=None if prompt is None else typed_prompt(prompt, sys.stdin.buffer),
            negative_prompt=typed.negative_prompt,
            model=model if was_typed(context, "model") else None,
            picture=only_typed(context, picture),
        )
        sources = _sources(pictures, asked)
        for line in origins(context, not_filed=_OF_THE_PICTURE - {"device"}):
            report.detail(line)
        report.detail(f"from {names_of(pictures)}: all else that the recipe says")
        _warn_of_no_effect(sources, asked, report)
        return _reproduce(sources, wishes, report, only_plan=files.dry_run)

    raise typer.Exit(run_command(run, output=files.output, dry_run=files.dry_run, **asdict(told)))


def _wishes(
    context: typer.Context,
    machine: options.MachineOptions,
    strict: bool,
    output: Output,
) -> Wishes:
    typed = only_typed(context, machine)
    typed.settings()  # which refuses what is not valid
    return Wishes(
        settings={name: getattr(typed, name) for name in CHOICES if was_typed(context, name)},
        device=None if machine.device == THE_PICTURES else machine.device,
        batch_size=machine.pictures_a_batch(),
        strict=strict,
        output=output,
    )


def _reproduce(
    sources: Sequence[Source], wishes: Wishes, report: Report, *, only_plan: bool
) -> int:
    jobs = _named(sources, wishes.output)
    again = Reproduction(sources, jobs, wishes, report)
    if only_plan:
        tokens = again.tokens()
        dry_run(jobs, lambda job: tokens.get(job.index), None, report=report)
        return 0
    report.event("started", klein=__version__, pictures=len(jobs))
    with report.bar:
        return RunReporter(report, len(jobs)).follow(again, jobs)


def _sources(pictures: Sequence[Path], asked: _Variation) -> list[Source]:
    """Every picture read and its recipes made. Raises one error that names all that cannot be."""
    sources, faults = [], []
    named = preset_for(asked.model) if asked.model is not None else None
    snapshots: dict[tuple[str, str | None], Snapshot] = {}
    for path in pictures:
        try:
            sources.append(_read(path, asked, named, snapshots))
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


def _read(
    path: Path,
    asked: _Variation,
    named: Preset | None,
    snapshots: dict[tuple[str, str | None], Snapshot],
) -> Source:
    """A picture and its recipes. A model that many were made with is looked for once."""
    record = read_record(path)
    then = record.recipe
    snapshot = None
    if named is None:
        key = then.model, record.revision
        snapshot = snapshots[key] = snapshots.get(key) or model_of(path, record)
        named = snapshot.preset
    defaults = asked.picture.defaults(
        named,
        negative_prompt=asked.negative_prompt,
        like=(then.width, then.height),
    )
    row = row_again(then, defaults, prompt=asked.prompt)
    seed = then.seed if asked.picture.seed is None else asked.picture.seed
    return Source(
        path=path,
        record=record,
        model=asked.model or then.model,
        snapshot=snapshot,
        preset=defaults.preset,
        recipes=tuple(recipe_of(row, defaults, seed + k) for k in range(defaults.n)),
    )


def _named(sources: Sequence[Source], output: Output) -> list[Job]:
    """Every picture of the run with its path, in the order of the originals."""
    drawn = [recipe for source in sources for recipe in source.recipes]
    where = output.where.of(several=len(drawn) > 1)
    if where.is_stdout:
        return [Job(index=1, recipe=drawn[0], path=None, exact=True)]
    names = Names(where, overwrite=output.overwrite, today=output.today)
    jobs = []
    for index, recipe in enumerate(drawn, start=1):
        path = names.of(index, recipe)
        if not output.bare:
            check_room(recipe, path.suffix)
        jobs.append(Job(index=index, recipe=recipe, path=path, exact=where.exact))
    check_folders({job.path.parent for job in jobs if job.path is not None})
    return jobs


def _warn_of_no_effect(sources: Sequence[Source], asked: _Variation, report: Report) -> None:
    unused = {
        (options.name_of(name), source.preset.name)
        for source in sources
        for name in ignored(asked, source.preset)
    }
    for option, model in sorted(unused):
        report.warn(f"{option} has no effect: {model} is distilled")
