"""What `klein generate` does: options -> plan -> run.

Everything that can be refused is refused before torch is imported, in
`klein_cli.run.executors.start`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import typer

from klein_cli import __version__
from klein_cli.checkpoints.given import Parts
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import on_disk, preset_for
from klein_cli.cli import options
from klein_cli.cli.commands.gallery import add_page, gallery_folder
from klein_cli.cli.config import origins
from klein_cli.cli.editing import (
    Edit,
    check_masks,
    check_stdin,
    check_words,
    no_effect,
    report_edits,
    source_of,
)
from klein_cli.cli.streaming import check_stream, draw_stream
from klein_cli.cli.terminal.follow import RunReporter, run_command
from klein_cli.cli.terminal.preview import preview
from klein_cli.cli.terminal.report import Report
from klein_cli.cli.terminal.text import printable
from klein_cli.errors import UsageError
from klein_cli.images.store import ImageStore
from klein_cli.output.carry import Carry
from klein_cli.output.gallery import check_page
from klein_cli.output.naming import destination
from klein_cli.prompts.files import STDIN
from klein_cli.prompts.rows import Defaults, Row, ignored, makes_several
from klein_cli.prompts.source import PromptSource
from klein_cli.recipe import CPU_SEEDS
from klein_cli.run.adapters import InputAdapters
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.start import check_adapters, check_placement, start
from klein_cli.run.inputs import InputImages
from klein_cli.run.interrupts import was_interrupted
from klein_cli.run.plan import Output, Plan, check_folders, plan
from klein_cli.run.prompt_lengths import check_lengths
from klein_cli.run.resume.folder import OutputFolder, output_folder
from klein_cli.run.resume.journal import RunJournal
from klein_cli.run.runner import Run
from klein_cli.run.timings import Timings
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the user asked for, parsed once. `batch_size` None is the executor's own choice; rows
    `one_by_one` do not stop each other.
    """

    model: str
    parts: Parts
    source: PromptSource
    one_by_one: bool
    images: InputImages
    adapters: InputAdapters
    carry: Carry
    of_masks: tuple[str, ...]
    defaults: Defaults
    seed: int | None
    files: options.OutputOptions
    output: Output
    settings: Settings
    placement: Placement
    batch_size: int | None
    strict: bool
    show: bool


def run_generate(
    context: typer.Context,
    *,
    prompts: options.PromptOptions,
    strict: bool,
    editing: options.EditOptions,
    image: options.ImageOptions,
    files: options.OutputOptions,
    model: str,
    parts: options.PartOptions,
    lora: list[str] | None,
    machine: options.MachineOptions,
    show: bool,
    reporting: options.ReportOptions,
    edit: Edit | None = None,
) -> int:
    """Do what the options of `klein generate` ask for, or with an `edit` those of `klein edit`;
    its exit code.
    """

    def run(report: Report) -> int:
        given = editing
        if edit is None:
            check_words(prompts)
        else:
            edit.check(prompts, files)
            given = edit.with_first(editing)
        check_stdin(prompts, given)
        check_masks(prompts, given)
        in_folder = edit is not None and edit.is_folder
        output = parsed_output(files, reporting, is_folder=in_folder)
        output = replace(output, keep_format=edit is not None and edit.keep_format)
        settings, batch_size = machine.settings(), machine.images_per_batch()
        placement = machine.placement()
        check_placement(placement, settings, dry_run=files.dry_run)
        if edit is not None and in_folder:
            source = edit.rows(prompts, editing.references, report.notice)
        else:
            source = source_of(prompts)
        chosen = parts.wanted(model)
        for note in chosen.notes:
            report.warn(note)
        asked = _Run(
            model=chosen.model,
            parts=chosen.parts,
            source=source,
            images=_images(prompts),
            adapters=_adapters(prompts, parts, report),
            one_by_one=in_folder,
            carry=Carry(edit=edit is not None, opaque=edit is not None and edit.opaque),
            of_masks=given.of_masks(),
            defaults=replace(
                given.of(
                    image.defaults(
                        preset_for(chosen.model),
                        negative_prompt=prompts.negative_prompt,
                        wildcards=prompts.wildcards,
                        wildcards_dir=prompts.wildcards_dir,
                    )
                ),
                lora=tuple(lora or ()),
            ),
            seed=image.seed,
            files=files,
            output=output,
            settings=settings,
            placement=placement,
            batch_size=batch_size,
            strict=strict,
            show=show and not (reporting.json or reporting.quiet),
        )
        if prompts.stream:
            check_stream(prompts, files, placement)
            return _stream(asked, report)
        return _generate(asked, partial(_report_origins, context, asked.defaults), report)

    return run_command(run, output=files.output, dry_run=files.dry_run, **asdict(reporting))


def _stream(asked: _Run, report: Report) -> int:
    preset, unused = asked.defaults.preset, ignored(asked.defaults, asked.defaults.preset)
    if unused:
        report.warn(no_effect(list(map(options.name_of, unused)), f"{preset.name} is distilled"))
    return draw_stream(
        asked.source,
        model=asked.model,
        parts=asked.parts,
        defaults=asked.defaults,
        seed=secrets.randbelow(CPU_SEEDS) if asked.seed is None else asked.seed,
        output=asked.output,
        images=asked.images,
        adapters=asked.adapters,
        carry=asked.carry,
        settings=asked.settings,
        placement=asked.placement,
        strict=asked.strict,
        report=report,
    )


def _generate(asked: _Run, tell_origins: Callable[[Report], None], report: Report) -> int:
    files, where = asked.files, asked.output.where
    gallery = gallery_folder(where, files.output) if files.gallery else None
    folder = output_folder(
        where if _keeps_manifest(asked) else None,
        resume=files.resume,
        dry_run=files.dry_run,
        listener=report,
    )
    with folder as earlier:
        seed = earlier.seed(asked.seed, secrets.randbelow(CPU_SEEDS))
        planned = _plan(asked, seed, earlier, report)
        asked.adapters.store.check_size(asked.model)
        if not files.dry_run:
            check_folders(planned.folders, swept=earlier.manifest is not None)
        if gallery is not None:
            check_page(gallery, overwrite=asked.output.overwrite)
        tell_origins(report)
        is_drawn = asked.seed is None and not earlier.has_seed
        _report_plan(asked, planned, seed if planned.uses_seed and is_drawn else None, report)
        if files.dry_run:
            return _dry_run(asked, planned, earlier, report)
        code = _draw(asked, seed, planned, earlier, report)
        if gallery is not None and not was_interrupted(code):
            with report.bar:
                page = add_page(gallery, report, overwrite=files.overwrite)
            code = code or page
        return code


def _plan(asked: _Run, seed: int, earlier: OutputFolder, report: Report) -> Plan:
    # Every image that is there is read through: that may take a while.
    with report.bar if earlier.resumed or asked.one_by_one else nullcontext():
        report.doing("looking at what is there" if earlier.resumed else "reading the images")
        return plan(
            asked.source.rows,
            source=asked.source.file,
            defaults=asked.defaults,
            seed=seed,
            output=asked.output,
            images=asked.images,
            adapters=asked.adapters,
            history=earlier.history if earlier.resumed else None,
            one_by_one=asked.one_by_one,
        )


def _draw(asked: _Run, seed: int, planned: Plan, earlier: OutputFolder, report: Report) -> int:
    preset = asked.defaults.preset
    report.preview = preview(wanted=asked.show)
    journal = earlier.journal(preset, asked.images.store, asked.adapters.store)
    if planned.done:
        report.note(f"{planned.done} of {planned.done + len(planned.jobs)} images are there")
    facts = {"pictures": len(planned.jobs), "there": planned.done, "seed": seed}
    report.event("started", klein=__version__, model=preset.name, **facts)
    wanted = len(planned.jobs) + len(planned.refused)
    followed = RunReporter(report, wanted, None if journal is None else journal.failures)
    if planned.jobs:
        return _make(asked, seed, planned, journal, followed, report)
    if journal is not None:
        journal.open(planned, model=asked.model, seed=seed)
    followed.refuse(planned.refused, journal)
    if journal is not None:
        journal.close()
    return followed.finish()


def _make(
    asked: _Run,
    seed: int,
    planned: Plan,
    journal: RunJournal | None,
    followed: RunReporter,
    report: Report,
) -> int:
    timings = Timings()
    started = start(
        asked.model,
        asked.settings,
        asked.placement,
        planned.jobs,
        store=asked.images.store,
        adapters=asked.adapters.store,
        strict=asked.strict,
        listener=report,
        timings=timings,
        parts=asked.parts,
    )
    with report.bar, started as ready:
        if journal is not None:
            journal.open(planned, model=asked.model, seed=seed)
            change = journal.computed_with(ready.origin, no_metadata=asked.output.no_metadata)
            if change is not None:
                report.warn(change)
        followed.refuse(planned.refused, journal)
        run = Run(
            executor=ready.executor,
            batch_size=asked.batch_size or ready.batch_size,
            overwrite=asked.output.overwrite,
            stdout=sys.stdout.buffer,
            journal=journal,
            no_metadata=asked.output.no_metadata,
            threads=ready.writers,
            images=asked.images.store,
            reads_ahead=ready.pipeline is not None,
            carry=asked.carry,
        )
        report.expect(len(planned.jobs))
        code = followed.follow(run, planned.jobs)
        if journal is not None:
            with suppress(OSError):  # a full disk was reported already
                journal.close()
    for line in timings.lines(ready, run.writing):
        report.detail(line)
    return code


def _dry_run(asked: _Run, planned: Plan, earlier: OutputFolder, report: Report) -> int:
    from klein_cli.cli.terminal.dry_run import dry_run

    tokenize, snapshot = None, on_disk(asked.model, asked.parts)
    if snapshot is not None:
        tokenize = PromptTokenizer.of(snapshot).tokenize
        several = len(planned.jobs) > 1
        check_lengths(tokenize, planned.jobs, several=several, strict=asked.strict, listener=report)
        check_adapters(asked.adapters.store, snapshot, report)
    dry_run(
        planned.jobs,
        lambda job: None if tokenize is None else tokenize(job.recipe.prompt),
        earlier.history,
        there=planned.done,
        workers=asked.placement.workers or 1,
        report=report,
    )
    for row, error in planned.refused:
        report.warn(f"{printable((row.image or ('',))[0])} cannot be edited: {error.message}")
    return 0


def _images(prompts: options.PromptOptions) -> InputImages:
    """Who finds the images of a run: those of rows from where their file lies."""
    has_words = STDIN in (prompts.prompt, prompts.prompt_option, prompts.prompts_file)
    stdin = None if has_words else sys.stdin.buffer
    return InputImages(ImageStore(), folder=_folder_of(prompts), stdin=stdin)


def _adapters(
    prompts: options.PromptOptions, parts: options.PartOptions, report: Report
) -> InputAdapters:
    """Who finds the adapters of a run."""
    store = AdapterStore(parts.adapters_dir())
    return InputAdapters(store, folder=_folder_of(prompts), downloading=report.downloading)


def _folder_of(prompts: options.PromptOptions) -> Path:
    """From which the rows of a prompts file name other files."""
    return Path() if prompts.prompts_file is None else Path(prompts.prompts_file).parent


def parsed_output(
    files: options.OutputOptions, reporting: options.ReportOptions, *, is_folder: bool = False
) -> Output:
    """What the user asked of files. Raises UsageError when stdout is asked for too much."""
    where = destination(files.output, is_folder=is_folder)
    if where.is_stdout and reporting.json:
        raise UsageError("-o - and --json both want standard output", "leave one of them out")
    if where.is_stdout and sys.stdout.isatty() and not files.dry_run:
        raise UsageError(
            "-o - would write an image to the terminal", "send it on: klein ... -o - > cat.png"
        )
    return Output(
        where=where, overwrite=files.overwrite, today=date.today(), no_metadata=files.no_metadata
    )


def _keeps_manifest(asked: _Run) -> bool:
    """A run does for a prompts file, several images in a folder that -o names, and --resume."""
    files, where = asked.files, asked.output.where
    if where.is_stdout:
        if files.resume:
            raise UsageError("-o - keeps nothing that --resume could use", "give a folder")
        return False
    in_folder = files.output is not None and not where.exact
    several = makes_several(Row(prompt="a"), asked.defaults)
    return files.resume or bool(asked.source.file) or (several and in_folder)


def _report_plan(asked: _Run, planned: Plan, drawn_seed: int | None, report: Report) -> None:
    """What the user does not know, or may think otherwise."""
    preset = asked.defaults.preset
    for text in asked.source.remarks.warnings():
        report.warn(text)
    for text in asked.source.remarks.notes():
        report.note(text)
    report_edits(asked.images, planned, asked.defaults, asked.of_masks, report)
    if planned.tag is not None:
        report.warn(f"a prompt names an adapter, and the model reads it as words: {planned.tag}")
    unused = [options.name_of(name) for name in ignored(asked.defaults, preset)]
    if without := [*unused, *sorted(planned.without_effect)]:
        verb = "has" if len(without) == 1 else "have"
        report.warn(f"{' and '.join(without)} {verb} no effect: {preset.name} is distilled")
    if drawn_seed is not None:
        report.note(f"seed: {drawn_seed}")
    long = planned.long_seed
    if long is not None and asked.settings.rng == "cpu":
        report.note(
            f"seed {long} draws the noise of seed {long % CPU_SEEDS}: "
            "torch's generator on the CPU reads 32 bits"
        )


def _report_origins(context: typer.Context, defaults: Defaults, report: Report) -> None:
    """Under --verbose, where each value came from."""
    for line in origins(context):
        report.detail(line)
    preset, unused = defaults.preset, ignored(defaults, defaults.preset)
    sides = () if defaults.image else ("width", "height")  # else they are the first image's
    facts = [
        f"{name} {getattr(preset, name):g}"
        for name in (*sides, "steps", "guidance")
        if getattr(defaults, name) is None or name in unused
    ]
    if facts:
        report.detail(f"from the preset {preset.name}: {', '.join(facts)}")
