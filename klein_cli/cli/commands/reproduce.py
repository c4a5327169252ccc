"""`klein reproduce`: images -> their records -> the same images again, or variations of them.

A value comes from the command line, else from the image, else from the settings file, else from
the model. Everything that can be refused is refused before torch is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import typer

from klein_cli import __version__
from klein_cli.checkpoints.given import Parts
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import Snapshot, preset_for
from klein_cli.cli import options
from klein_cli.cli.config import origins, was_typed
from klein_cli.cli.editing import no_effect
from klein_cli.cli.generation import parsed_output
from klein_cli.cli.groups import grouped, only_typed
from klein_cli.cli.terminal.dry_run import dry_run
from klein_cli.cli.terminal.follow import RunReporter, run_command
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError, UsageError
from klein_cli.images.store import ImageStore
from klein_cli.output.naming import Names
from klein_cli.output.reading import Record, read_record
from klein_cli.presets import Preset
from klein_cli.prompts.rows import ignored, recipe_of
from klein_cli.prompts.source import typed_prompt
from klein_cli.run.differences import model_of
from klein_cli.run.inputs import InputImages
from klein_cli.run.jobs import Job
from klein_cli.run.original_adapters import OriginalAdapters
from klein_cli.run.originals import Found, Originals, edited_again
from klein_cli.run.plan import Output, check_folders
from klein_cli.run.reproduce import Overrides, Reproduction, Source, names_of
from klein_cli.settings import CHOICES

THE_IMAGES = "the image's"
_OF_THE_IMAGE = {
    *("prompt_option", "negative_prompt", "model", "lora", *CHOICES),
    *(field.name for field in fields(options.ImageOptions)),
}
"""The parameters whose values are the image's own unless they are typed."""

Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMG",
        help="Images that klein made: PNG, JPEG or WebP.",
        show_default=False,
        rich_help_panel="What to draw",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variation:
    """What was typed, to be drawn instead of what the images say; None leaves that."""

    prompt: str | None
    negative_prompt: str | None
    model: str | None
    parts: Parts
    image: options.ImageOptions
    editing: options.EditOptions
    lora: list[str]

    @property
    def guidance(self) -> float | None:
        """The guidance that was typed."""
        return self.image.cfg


@grouped(
    leave_out={
        "prompt",
        "prompts_file",
        "stream",
        "prompt_column",
        "options_in_prompts",
        "wildcards",
        "wildcards_dir",
        "seeds",
        "resume",
        "gallery",
    }
    | {"workers", "ray"},
    defaults=dict.fromkeys(("model", *CHOICES), THE_IMAGES),
    helps={
        "seed": "Another seed; the next image of the same original gets N+1, and so on.",
        "width": "Another width.",
        "height": "Another height.",
        "aspect": "Another shape, as in 16:9, with about as many pixels as the image.",
        "steps": "Other steps.",
        "references": "Where an edit's images are, file or folder, where they are neither beside "
        "it nor here; or what to edit instead, in order. Repeatable.",
        "mask": "Where its mask is, or another.",
        "expand": "Another expansion.",
        "lora": "Where an adapter of the image is, if neither beside it nor here, and with =WEIGHT "
        "another weight of it; or what to use instead. Repeatable.",
    },
)
def reproduce(
    context: typer.Context,
    *,
    images: Images,
    prompts: options.PromptOptions,
    strict: options.Strict = False,
    editing: options.EditOptions,
    image: options.ImageOptions,
    files: options.OutputOptions,
    model: options.Model,
    parts: options.PartOptions,
    lora: options.Lora = None,
    machine: options.MachineOptions,
    reporting: options.ReportOptions,
) -> None:
    """Draw an image again from the recipe inside it; any option makes a variation of it.

    What no option says is the image's own. Whatever is not as it was then is
    warned of: versions, machine, model. A PNG drawn again without changes is
    compared with the original, pixel by pixel. Only a model of klein's own that
    is on this machine is used, unless -m names one: nothing is downloaded
    because an image says so.
    """

    def run(report: Report) -> int:
        overrides = _overrides(context, machine, strict, parsed_output(files, reporting))
        typed = only_typed(context, prompts)
        prompt = typed.prompt_option
        named = was_typed(context, "model")
        files_given = replace(only_typed(context, parts), models_dir=parts.models_dir)
        chosen = files_given.wanted(model if named else None)
        for note in chosen.notes:
            report.warn(note)
        asked = _Variation(
            prompt=None if prompt is None else typed_prompt(prompt, sys.stdin.buffer),
            negative_prompt=typed.negative_prompt,
            model=chosen.model if named else None,
            parts=chosen.parts,
            image=only_typed(context, image),
            editing=only_typed(context, editing),
            lora=(lora or []) if was_typed(context, "lora") else [],
        )
        adapters = AdapterStore(parts.adapters_dir())
        given = InputImages(ImageStore(), folder=Path(), stdin=sys.stdin.buffer)
        sources = _sources(images, asked, given, adapters, report)
        for line in origins(context, not_filed=_OF_THE_IMAGE - {"device"}):
            report.detail(line)
        report.detail(f"from {names_of(images)}: all else that the recipe says")
        _warn_of_no_effect(sources, asked, report)
        if (of_masks := asked.editing.of_masks()) and not given.masked:
            report.warn(no_effect(of_masks, "no image has a mask"))
        stores = given.store, adapters
        return _reproduce(sources, overrides, *stores, report, only_plan=files.dry_run)

    raise typer.Exit(
        run_command(run, output=files.output, dry_run=files.dry_run, **asdict(reporting))
    )


def _overrides(
    context: typer.Context,
    machine: options.MachineOptions,
    strict: bool,
    output: Output,
) -> Overrides:
    typed = only_typed(context, machine)
    typed.settings()  # which refuses what is not valid
    return Overrides(
        settings={name: getattr(typed, name) for name in CHOICES if was_typed(context, name)},
        device=None if machine.device == THE_IMAGES else machine.device,
        batch_size=machine.images_per_batch(),
        strict=strict,
        output=output,
        server=machine.placement().server,
    )


def _reproduce(
    sources: Sequence[Source],
    overrides: Overrides,
    images: ImageStore,
    adapters: AdapterStore,
    report: Report,
    *,
    only_plan: bool,
) -> int:
    jobs = _named(sources, overrides.output)
    reproduction = Reproduction(sources, jobs, overrides, report, images, adapters)
    if only_plan:
        tokens = reproduction.tokens()
        dry_run(jobs, lambda job: tokens.get(job.index), None, report=report)
        return 0
    report.event("started", klein=__version__, pictures=len(jobs))
    with report.bar:
        return RunReporter(report, len(jobs)).follow(reproduction, jobs)


def _sources(
    images: Sequence[Path],
    asked: _Variation,
    given: InputImages,
    adapters: AdapterStore,
    report: Report,
) -> list[Source]:
    """Every image read and its recipes made. Raises one error that names all that cannot be."""
    sources, errors = [], []
    named = preset_for(asked.model) if asked.model is not None else None
    snapshots: dict[tuple[str, str | None], Snapshot] = {}
    records: list[tuple[Path, Record]] = []
    for path in images:
        try:
            records.append((path, read_record(path)))
        except KleinError as error:
            errors.append(error)
    recipes = [record.recipe for _, record in records]
    originals = Originals(asked.editing.references or (), asked.editing.mask, recipes)
    trained = OriginalAdapters(adapters, asked.lora)
    for path, record in records:
        try:
            source, found = _source(path, record, asked, named, snapshots, originals, given)
            with_adapters = trained.of(record.recipe, path)
            sources.append(source.with_adapters(with_adapters.adapters))
            for other in (*found.others, *with_adapters.others):
                report.warn(f"{path} was not made of {other}: what comes is a variation")
        except KleinError as error:
            errors.append(error)
    if errors:
        raise _all_of(errors, len(images))
    return sources


def _all_of(errors: Sequence[KleinError], images: int) -> KleinError:
    """One error that names all."""
    if len(errors) == 1:
        return errors[0]
    lines = [f"  {error.message}" for error in errors]
    # One kind of fault keeps its exit code.
    kind = type(errors[0]) if len({error.exit_code for error in errors}) == 1 else UsageError
    return kind(
        "\n".join([f"{len(errors)} of {images} images cannot be used", *lines]),
        f"{errors[0].hint}; no image was made",
    )


def _source(
    path: Path,
    record: Record,
    asked: _Variation,
    named: Preset | None,
    snapshots: dict[tuple[str, str | None], Snapshot],
    originals: Originals,
    given: InputImages,
) -> tuple[Source, Found]:
    """An image and its recipes. A model that many were made with is looked for once."""
    then = record.recipe
    snapshot = None
    if named is None:
        key = then.model, record.revision
        snapshot = snapshots[key] = snapshots.get(key) or model_of(path, record, asked.parts)
        named = snapshot.preset
    defaults = asked.image.defaults(
        named,
        negative_prompt=asked.negative_prompt,
        like=(then.width, then.height),
    )
    found = originals.of(then, path)
    defaults, row = edited_again(then, found, asked.editing.of(defaults), prompt=asked.prompt)
    inputs = given.of(row, defaults)
    seed = then.seed if asked.image.seed is None else asked.image.seed
    source = Source(
        path=path,
        record=record,
        model=asked.model or then.model,
        parts=asked.parts,
        snapshot=snapshot,
        preset=defaults.preset,
        recipes=tuple(recipe_of(row, defaults, seed + k, inputs) for k in range(defaults.n)),
    )
    return source, found


def _named(sources: Sequence[Source], output: Output) -> list[Job]:
    """Every image of the run with its path, in the order of the originals."""
    drawn = [recipe for source in sources for recipe in source.recipes]
    where = output.where.of(several=len(drawn) > 1)
    if where.is_stdout:
        return [Job(index=1, recipe=drawn[0], path=None, exact=True)]
    names = Names(where, overwrite=output.overwrite, today=output.today)
    jobs = []
    for index, recipe in enumerate(drawn, start=1):
        path = names.of(index, recipe)
        output.check(recipe, path)
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
