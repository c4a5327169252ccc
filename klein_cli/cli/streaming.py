"""`klein generate --stream`: prompts from a pipe, each drawn as soon as it is read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from klein_cli import __version__
from klein_cli.checkpoints.given import Parts
from klein_cli.checkpoints.resolve import on_disk
from klein_cli.cli import options
from klein_cli.cli.terminal.follow import RunReporter
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import UsageError
from klein_cli.output.carry import Carry
from klein_cli.prompts.rows import Defaults, Row
from klein_cli.prompts.source import PromptSource
from klein_cli.run.adapters import InputAdapters
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.start import start
from klein_cli.run.inputs import InputImages
from klein_cli.run.jobs import Job
from klein_cli.run.plan import Output
from klein_cli.run.prompt_lengths import check_lengths
from klein_cli.run.runner import Run
from klein_cli.run.streamed import jobs_as_they_come
from klein_cli.run.timings import Timings
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer


def check_stream(
    prompts: options.PromptOptions, files: options.OutputOptions, placement: Placement
) -> None:
    """Raise UsageError for what a stream cannot be combined with."""
    if prompts.prompts_file is None:
        raise UsageError(
            "--stream draws the rows of a prompts file", "read a pipe: --prompts-file -"
        )
    asked = {"--resume": files.resume, "--dry-run": files.dry_run, "--gallery": files.gallery}
    for name in (name for name, is_asked in asked.items() if is_asked):
        raise UsageError(
            f"--stream and {name} exclude each other",
            "a stream's end is not known: leave one of them out",
        )
    if not placement.single:
        raise UsageError("--stream draws in one process", "leave out --workers and --ray")


def draw_stream(
    source: PromptSource,
    *,
    model: str,
    parts: Parts,
    defaults: Defaults,
    seed: int,
    output: Output,
    images: InputImages,
    adapters: InputAdapters,
    carry: Carry,
    settings: Settings,
    placement: Placement,
    strict: bool,
    report: Report,
) -> int:
    """Draw what comes until it ends; the exit code."""
    report.event("started", klein=__version__, model=defaults.preset.name, pictures=None, seed=seed)
    report.note(f"seed: {seed}")
    adapters.of(Row(prompt="a"), defaults)  # those of the options, before anything is loaded
    adapters.store.check_size(model)
    timings, followed = Timings(), RunReporter(report, None)
    started = start(
        model,
        settings,
        placement,
        (),
        store=images.store,
        adapters=adapters.store,
        strict=strict,
        listener=report,
        timings=timings,
        parts=parts,
    )
    with report.bar, started as ready:
        run = Run(
            executor=ready.executor,
            batch_size=1,
            window=1,
            overwrite=output.overwrite,
            stdout=sys.stdout.buffer,
            no_metadata=output.no_metadata,
            images=images.store,
            carry=carry,
        )
        jobs = jobs_as_they_come(
            source.rows,
            defaults=defaults,
            seed=seed,
            output=output,
            images=images,
            adapters=adapters,
            refuse=followed.refuse_line,
            check=_checked(model, parts, strict, report),
        )
        return followed.follow(run, _remarked(jobs, source, report))


def _checked(model: str, parts: Parts, strict: bool, report: Report) -> Callable[[Job], None]:
    """What refuses a prompt that is too long, where it is to be, and warns of it otherwise."""
    snapshot = on_disk(model, parts)
    assert snapshot is not None
    tokenize = PromptTokenizer.of(snapshot).tokenize

    def check(job: Job) -> None:
        check_lengths(tokenize, [job], several=True, strict=strict, listener=report)

    return check


def _remarked(jobs: Iterator[Job], source: PromptSource, report: Report) -> Iterator[Job]:
    """The jobs; what is to be said of their rows is said once, when it is first met."""
    for job in jobs:
        for is_warning, text in source.remarks.fresh():
            (report.warn if is_warning else report.note)(text)
        yield job
