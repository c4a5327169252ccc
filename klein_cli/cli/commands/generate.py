"""`klein generate`: options -> plan -> run.

Everything that can be refused is refused before torch is imported, in
`klein_cli.run.executors.start`.
"""

from __future__ import annotations

import secrets
import sys
from contextlib import nullcontext, suppress
from datetime import date
from functools import partial

import typer

from klein_cli import __version__
from klein_cli.checkpoints.resolve import on_disk, preset_for
from klein_cli.cli import options
from klein_cli.cli.commands.gallery import add_page, gallery_folder
from klein_cli.cli.config import origins
from klein_cli.cli.request import (
    Request,
    batch_size_of,
    defaults_of,
    guidance_of,
    prompts_of,
    settings_of,
    without_effect,
)
from klein_cli.cli.taking_up import output_folder, write_origin, write_plan
from klein_cli.cli.terminal.follow import INTERRUPTED, Followed, carried_out
from klein_cli.cli.terminal.preview import preview
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import UsageError
from klein_cli.output.gallery import check_page
from klein_cli.output.naming import STDOUT
from klein_cli.presets import DEFAULT_MODEL, Preset
from klein_cli.recipe import CPU_SEEDS
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.start import check_placement, start
from klein_cli.run.plan import Output, Plan, check_folders, plan
from klein_cli.run.prompt_lengths import check_lengths
from klein_cli.run.resume.history import History
from klein_cli.run.resume.journal import Books
from klein_cli.run.runner import Run
from klein_cli.run.timings import Timings
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer


def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    prompt_option: options.PromptOption = None,
    prompts_file: options.PromptsFile = None,
    negative_prompt: options.NegativePrompt = None,
    wildcards: options.Wildcards = False,
    strict: options.Strict = False,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    num_images: options.NumImages = 1,
    width: options.Width = None,
    height: options.Height = None,
    size: options.Size = None,
    aspect: options.Aspect = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_scale: options.GuidanceScale = None,
    output: options.OutputPath = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    gallery: options.Gallery = False,
    no_metadata: options.NoMetadata = False,
    dry_run: options.DryRun = False,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = "auto",
    workers: options.Workers = None,
    ray: options.Ray = None,
    engine: options.Engine = "native",
    attention: options.Attention = "auto",
    rng: options.Rng = "cpu",
    quantize: options.Quantize = "none",
    kernels: options.Kernels = "auto",
    show: options.Show = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw pictures from words. Paths go to standard output, all else to standard error."""
    given = locals()
    del given["context"]
    request = Request(**given)
    told = {"json": json, "quiet": quiet, "verbose": verbose, "dry_run": dry_run}
    run = partial(_generate, request, context)
    raise typer.Exit(carried_out(run, output=output, **told))


def _generate(request: Request, context: typer.Context, report: Report) -> int:
    settings = settings_of(request)
    batch_size = batch_size_of(request)
    check_stdout(request)
    placement = Placement.parse(request.workers, request.ray)
    check_placement(placement, settings, dry_run=request.dry_run)
    source, rows = prompts_of(request, sys.stdin.buffer)
    preset = preset_for(request.model)
    defaults = defaults_of(request, preset)
    with output_folder(request, defaults, report) as folder:
        seed = folder.seed(request.seed, secrets.randbelow(CPU_SEEDS))
        # Every picture that is there is read through: that may take a while.
        with report.bar if folder.resumed else nullcontext():
            report.bar.say("looking at what is there")
            planned = plan(
                rows,
                source=source,
                preset=preset,
                defaults=defaults,
                seed=seed,
                output=Output(
                    path=request.output,
                    overwrite=request.overwrite,
                    today=date.today(),
                    bare=request.no_metadata,
                ),
                history=folder.history if folder.resumed else None,
            )
        if not request.dry_run:
            check_folders(planned.folders, swept=folder.manifest is not None)
        page_folder = gallery_folder(request.output) if request.gallery else None
        if page_folder is not None:
            check_page(page_folder, overwrite=request.overwrite)
        _say_origins(context, request, preset, report)
        _warn_of_no_effect(request, preset, planned, report)
        if planned.uses_seed and request.seed is None and not folder.has_seed:
            report.note(f"seed: {seed}")
        long = planned.long_seed
        if long is not None and request.rng == "cpu":
            report.note(
                f"seed {long} draws the noise of seed {long % CPU_SEEDS}: "
                "torch's generator on the CPU reads 32 bits"
            )
        if request.dry_run:
            return _dry_run(request, placement, planned, folder.history, report)
        report.preview = preview(wanted=request.show and not (request.json or request.quiet))
        books = folder.books(guided=not preset.distilled)
        if planned.done:
            report.note(f"{planned.done} of {planned.done + len(planned.jobs)} pictures are there")
        facts = {"pictures": len(planned.jobs), "there": planned.done, "seed": seed}
        report.event("started", klein=__version__, model=preset.name, **facts)
        code = _make(request, settings, placement, batch_size, planned, books, seed, report)
        if page_folder is not None and code != INTERRUPTED:
            with report.bar:
                page = add_page(page_folder, report, overwrite=request.overwrite)
            code = code or page
        return code


def _make(
    request: Request,
    settings: Settings,
    placement: Placement,
    batch_size: int | None,
    planned: Plan,
    books: Books | None,
    seed: int,
    report: Report,
) -> int:
    timings, wanted = Timings(), len(planned.jobs)
    if not wanted:
        if books is not None:
            write_plan(books, planned, model=request.model, seed=seed)
            books.close()
        report.event("finished", made=0, failed=0)
        return 0
    started = start(
        request.model,
        settings,
        placement,
        planned.jobs,
        strict=request.strict,
        listener=report,
        timings=timings,
    )
    with report.bar, started as ready:
        if books is not None:
            write_plan(books, planned, model=request.model, seed=seed)
            write_origin(books, ready.origin, report, bare=request.no_metadata)
        run = Run(
            executor=ready.executor,
            batch_size=batch_size or ready.batch_size,
            overwrite=request.overwrite,
            stdout=sys.stdout.buffer,
            books=books,
            bare=request.no_metadata,
            threads=ready.writers,
        )
        report.expect(wanted)
        followed = Followed(report, wanted, None if books is None else books.failures)
        code = followed.follow(run, planned.jobs)
        if books is not None:
            with suppress(OSError):  # a full disk was told of already
                books.close()
    for line in timings.lines(ready.pipeline, run.writing):
        report.detail(line)
    return code


def _dry_run(
    request: Request, placement: Placement, planned: Plan, history: History, report: Report
) -> int:
    from klein_cli.cli.terminal.dry_run import dry_run

    tokenize = None
    snapshot = on_disk(request.model)
    if snapshot is not None:
        tokenize = PromptTokenizer.from_snapshot(snapshot.root).tokenize
        check_lengths(
            tokenize,
            planned.jobs,
            several=len(planned.jobs) > 1,
            strict=request.strict,
            listener=report,
        )
    dry_run(
        planned.jobs,
        lambda job: None if tokenize is None else tokenize(job.recipe.prompt),
        history,
        there=planned.done,
        workers=placement.workers or 1,
        report=report,
    )
    return 0


def check_stdout(request: Request) -> None:
    """Raise UsageError when standard output is asked for more than it can carry."""
    if request.output != STDOUT:
        return
    if request.json:
        raise UsageError("-o - and --json both want standard output", "leave one of them out")
    if sys.stdout.isatty() and not request.dry_run:
        raise UsageError(
            "-o - would write a picture to the terminal", "send it on: klein ... -o - > cat.png"
        )


def _warn_of_no_effect(request: Request, preset: Preset, planned: Plan, report: Report) -> None:
    ignored = [*without_effect(request, preset), *planned.without_effect]
    if ignored:
        verb = "has" if len(ignored) == 1 else "have"
        report.warn(f"{' and '.join(ignored)} {verb} no effect: {preset.name} is distilled")


def _say_origins(context: typer.Context, request: Request, preset: Preset, report: Report) -> None:
    """Under --verbose, where each value came from."""
    for line in origins(context):
        report.detail(line)
    by_side = request.size is None and request.aspect is None
    facts = {
        f"width {preset.width}": by_side and request.width is None,
        f"height {preset.height}": by_side and request.height is None,
        f"steps {preset.steps}": request.steps is None,
        f"guidance {preset.guidance:g}": preset.distilled or guidance_of(request) is None,
    }
    said = [fact for fact, is_left in facts.items() if is_left]
    if said:
        report.detail(f"from the preset {preset.name}: {', '.join(said)}")
