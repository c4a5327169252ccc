"""`klein generate`: options -> plan -> run.

Everything that can be refused is refused before torch is imported; torch comes with the first
line of `_pipeline`.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING

import typer

from klein_cli import __version__
from klein_cli.cli import options
from klein_cli.cli.config import origins
from klein_cli.cli.fetching import fetch
from klein_cli.cli.gallery import add_page, gallery_folder
from klein_cli.cli.preview import preview
from klein_cli.cli.report import Report, grouped
from klein_cli.cli.request import (
    Request,
    batch_size_of,
    defaults_of,
    guidance_of,
    prompts_of,
    settings_of,
    without_effect,
)
from klein_cli.cli.startup import quick_start
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.gallery import check_page
from klein_cli.output.metadata import record
from klein_cli.output.naming import STDOUT
from klein_cli.presets import DEFAULT_MODEL, Preset
from klein_cli.recipe import Recipe, Settings
from klein_cli.run.plan import Job, Output, Plan, check_folders, plan
from klein_cli.run.runner import Event, Failed, Run, Saved
from klein_cli.snapshot import Snapshot, on_disk, preset_for

if TYPE_CHECKING:
    from klein_cli.pipeline import Pipeline

_DRAWN_SEEDS = 2**32
_WARNINGS = 5
_INTERRUPTED = 130


def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    prompt_option: options.PromptOption = None,
    prompts_file: options.PromptsFile = None,
    negative_prompt: options.NegativePrompt = None,
    strict: options.Strict = False,
    seed: options.Seed = None,
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
    gallery: options.Gallery = False,
    no_metadata: options.NoMetadata = False,
    dry_run: options.DryRun = False,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = "auto",
    engine: options.Engine = "native",
    attention: options.Attention = "auto",
    rng: options.Rng = "cpu",
    show: options.Show = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw pictures from words. Paths go to standard output, all else to standard error."""
    given = locals()
    del given["context"]
    request = Request(**given)
    report = Report(as_json=json, quiet=quiet, verbose=verbose, silent_stdout=output == STDOUT)
    try:
        code = _generate(request, report, context)
    except KleinError as error:
        report.event("error", message=error.message, hint=error.hint)
        raise
    except KeyboardInterrupt:
        report.note("interrupted")
        code = _INTERRUPTED
    raise typer.Exit(code)


def _generate(request: Request, report: Report, context: typer.Context) -> int:
    started = time.perf_counter()
    settings = settings_of(request)
    batch_size = batch_size_of(request)
    check_stdout(request)
    source, rows = prompts_of(request, sys.stdin.buffer)
    preset = preset_for(request.model)
    seed = secrets.randbelow(_DRAWN_SEEDS) if request.seed is None else request.seed
    planned = plan(
        rows,
        source=source,
        preset=preset,
        defaults=defaults_of(request, preset),
        seed=seed,
        output=Output(path=request.output, overwrite=request.overwrite, today=date.today()),
    )
    check_folders(planned.jobs)
    page_folder = gallery_folder(request.output) if request.gallery else None
    if page_folder is not None:
        check_page(page_folder, overwrite=request.overwrite)
    _say_origins(context, request, preset, report)
    _warn_of_no_effect(request, preset, planned, report)
    if planned.uses_seed and request.seed is None:
        report.note(f"seed: {seed}")
    if request.dry_run:
        return _dry_run(request, planned, report)
    report.preview = preview(wanted=request.show and not (request.json or request.quiet))
    pictures = len(planned.jobs)
    report.event("started", klein=__version__, model=preset.name, pictures=pictures, seed=seed)
    with report.bar:
        with quick_start():
            pipeline = open_pipeline(request, settings, planned, report)
        report.bar.expect(len(planned.jobs))
        run = prepared(pipeline, batch_size, request, report)
        code = follow(run.events(planned.jobs), len(planned.jobs), report)
        if page_folder is not None:
            code = code or add_page(page_folder, report, overwrite=request.overwrite)
    say_timings(pipeline, time.perf_counter() - started, report)
    return code


def open_pipeline(
    request: Request,
    settings: Settings,
    planned: Plan,
    report: Report,
    snapshot: Snapshot | None = None,
) -> Pipeline:
    """The model of the request, or the `snapshot` that was found for it, ready to draw.

    Prompts are measured before the model loads, and a GPU is found before one is downloaded.
    """
    snapshot = snapshot or on_disk(request.model)
    if snapshot is not None:
        check_lengths(snapshot, planned, request, report)
    report.bar.say("starting torch")
    from klein_cli.pipeline import Pipeline, choose

    chosen = choose(settings, snapshot.preset if snapshot else preset_for(request.model))
    if snapshot is None:
        snapshot = fetch(request.model, report)
        check_lengths(snapshot, planned, request, report)
    report.detail(
        f"{request.model} on {chosen.device}, {chosen.dtype}, "
        f"attention {chosen.attention}, engine {chosen.engine}, noise from {chosen.rng}"
    )
    report.bar.say(f"loading {request.model}")
    pipeline = Pipeline.load(snapshot, chosen, on_event=report.bar.say)
    if pipeline.skipped_tensors:
        report.detail(f"not read, since nothing needs them: {grouped(pipeline.skipped_tensors)}")
    return pipeline


def prepared(pipeline: Pipeline, batch_size: int | None, request: Request, report: Report) -> Run:
    """A run of the pipeline, whose pictures say how they were made."""
    from klein_cli.denoise.schedule import noise_levels
    from klein_cli.fingerprint import fingerprint

    provenance, snapshot = pipeline.provenance(), pipeline.snapshot
    weights = fingerprint(snapshot.root)

    def describe(recipe: Recipe, step_down: str | None) -> dict[str, object] | None:
        if request.no_metadata:
            return None
        return record(
            recipe,
            pipeline.settings,
            sigmas=noise_levels(recipe.width, recipe.height, recipe.steps),
            repo=snapshot.repo,
            revision=snapshot.revision,
            weights=weights,
            provenance=provenance,
            step_down=step_down,
        )

    return Run(
        renderer=pipeline,
        describe=describe,
        batch_size=batch_size or pipeline.default_batch_size,
        overwrite=request.overwrite,
        stdout=sys.stdout.buffer,
        on_progress=report.bar.reach,
    )


def follow(events: Iterable[Event], wanted: int, report: Report) -> int:
    """Report each event; the exit code of the whole run."""
    made, codes = 0, []
    try:
        for event in events:
            if isinstance(event, Saved):
                made += 1
                report.saved(event)
            elif isinstance(event, Failed):
                codes.append(getattr(event.error, "exit_code", 1))
                report.failed(event)
            else:
                report.stepped_down(event)
    except KeyboardInterrupt:
        report.event("interrupted", made=made, wanted=wanted)
        report.note(f"interrupted: {made} of {wanted} pictures made")
        return _INTERRUPTED
    report.event("finished", made=made, failed=len(codes))
    if codes and wanted > 1:
        report.note(f"{made} of {wanted} pictures made, {len(codes)} failed")
    return exit_code(made, codes)


def exit_code(made: int, failures: list[int]) -> int:
    """0 all made, 1 some failed; when none was made, what they failed of if it was all the same."""
    if not failures:
        return 0
    return failures[0] if not made and len(set(failures)) == 1 else 1


def _dry_run(request: Request, planned: Plan, report: Report) -> int:
    lengths: dict[str, int] = {}
    snapshot = on_disk(request.model)
    if snapshot is not None:
        lengths = check_lengths(snapshot, planned, request, report)
    for job in planned.jobs:
        report.planned(job, lengths.get(job.recipe.prompt))
    return 0


def check_lengths(
    snapshot: Snapshot, planned: Plan, request: Request, report: Report
) -> dict[str, int]:
    """Each prompt's length in tokens; warns of those that are cut, or refuses them if strict."""
    from klein_cli.text.tokenizer import PromptTokenizer

    tokenizer = PromptTokenizer.from_snapshot(snapshot.root)
    lengths: dict[str, int] = {}
    cut = 0
    for job, text in _texts(planned.jobs):
        if text in lengths:
            continue
        tokens = tokenizer.tokenize(text)
        lengths[text] = tokens.tokens
        warning = tokens.warning()
        if warning is None:
            continue
        if len(planned.jobs) > 1:
            warning = f"picture {job.index}: {warning}"
        if request.strict:
            raise UsageError(warning, "shorten the prompt, or leave out --strict")
        cut += 1
        if cut <= _WARNINGS:
            report.warn(warning)
    if cut > _WARNINGS:
        report.warn(f"{cut - _WARNINGS} more prompts are too long")
    return lengths


def _texts(jobs: Iterable[Job]) -> Iterable[tuple[Job, str]]:
    for job in jobs:
        yield job, job.recipe.prompt
        if job.recipe.negative_prompt:
            yield job, job.recipe.negative_prompt


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


def say_timings(pipeline: Pipeline, total: float, report: Report) -> None:
    """Under --verbose, where the time went; `total` in seconds."""
    spent = sum(pipeline.timings.values())
    phases = {**pipeline.timings, "the rest": total - spent, "in all": total}
    for phase, seconds in phases.items():
        report.detail(f"{phase:>10} {seconds:8.2f} s")
