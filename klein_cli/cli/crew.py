"""Who draws for a run: the model in this process, or workers with a model each.

torch is imported here, after everything that can be refused without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from klein_cli.checkpoints.resolve import Snapshot, on_disk, preset_for
from klein_cli.cli.lengths import check_lengths, tokenizer_of
from klein_cli.cli.request import Request, workers_of
from klein_cli.cli.terminal.download_bar import fetch
from klein_cli.cli.terminal.report import Report, grouped
from klein_cli.cli.terminal.timings import Timings
from klein_cli.device.startup import freeze_imports, quick_start, read_ahead, wake_gpu
from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.run.executors.executor import Alone, Crew, Origin, describe_with
from klein_cli.run.executors.ray import check_ray
from klein_cli.run.interrupts import held_back
from klein_cli.run.jobs import Job, Jobs
from klein_cli.settings import Settings

if TYPE_CHECKING:
    from klein_cli.pipeline import Pipeline

_WRITERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hired:
    """A crew that is ready to draw, and what is known of its pictures before they are made.

    `writers` threads keep up with it; the `pipeline` is None where it is not in this process.
    """

    crew: Crew
    origin: Origin
    batch_size: int
    writers: int
    pipeline: Pipeline | None = None


@contextmanager
def hired(
    request: Request, settings: Settings, jobs: Jobs, timings: Timings, report: Report
) -> Iterator[Hired]:
    """The crew for some jobs. Raises KleinError when it cannot be had."""
    with quick_start():
        snapshot, chosen = _prepared(request, settings, jobs, None, timings, report)
        workers = _workers(request, len(jobs))
        single = None
        if workers == 1 and request.ray is None:
            single = _loaded(request.model, snapshot, chosen, len(jobs), report)
    if single is not None:
        yield single
        return
    with held_back():
        import torch

        from klein_cli.run.executors.ray import hire
        from klein_cli.run.executors.worker import Order

    report.bar.say("starting workers")
    is_folder = snapshot.repo is None and request.model not in presets()
    model = str(snapshot.root.resolve()) if is_folder else request.model
    order = Order(model=model, settings=settings, threads=torch.get_num_threads())
    with hire(order, workers, most=len(jobs), address=request.ray) as pool:
        _say_settings(request.model, pool.hello.origin.settings, report, here=request.ray is None)
        report.bar.say("")
        yield Hired(
            crew=pool,
            origin=pool.hello.origin,
            batch_size=pool.hello.batch_size,
            writers=max(_WRITERS, pool.size),
        )


def alone(
    request: Request,
    settings: Settings,
    jobs: Sequence[Job],
    snapshot: Snapshot | None,
    timings: Timings,
    report: Report,
) -> Hired:
    """The model in this process, or the `snapshot` that was found for it. Raises KleinError."""
    found, chosen = _prepared(request, settings, jobs, snapshot, timings, report)
    return _loaded(request.model, found, chosen, len(jobs), report)


def check_workers(request: Request) -> None:
    """Raise UsageError, before torch is imported, for workers that cannot be."""
    count = workers_of(request)
    if request.ray is None and count == 1:
        return
    if request.device.startswith("cuda:"):
        raise UsageError(
            f"--device {request.device} is one GPU, and workers have one each",
            "use --device cuda, and CUDA_VISIBLE_DEVICES to leave some out",
        )
    if request.ray is not None or count is not None:
        check_ray(f"--workers {count}" if request.ray is None else f"--ray {request.ray}")


def _prepared(
    request: Request,
    settings: Settings,
    jobs: Jobs | Sequence[Job],
    snapshot: Snapshot | None,
    timings: Timings,
    report: Report,
) -> tuple[Snapshot, Settings]:
    """The model on disk. Prompts are measured before the model loads, and a GPU is found before
    one is downloaded: here, or by the workers where they are elsewhere.
    """
    draws = request.ray is None and workers_of(request) == 1
    if draws:
        wake_gpu(settings.device)
    snapshot = snapshot or on_disk(request.model)
    if snapshot is not None:
        if draws:
            read_ahead(snapshot.root, settings.device)
        _check_lengths(snapshot, request, jobs, report)
    report.bar.say("starting torch")
    with timings.imports(), held_back():
        from klein_cli.device.choose import choose

        if draws:
            import klein_cli.pipeline  # noqa: F401 (what it imports takes longest)
    freeze_imports()
    if request.ray is None:
        settings = choose(settings, snapshot.preset if snapshot else preset_for(request.model))
    if snapshot is None:
        snapshot = fetch(request.model, report)
        _check_lengths(snapshot, request, jobs, report)
    return snapshot, settings


def _check_lengths(
    snapshot: Snapshot, request: Request, jobs: Jobs | Sequence[Job], report: Report
) -> None:
    check_lengths(
        tokenizer_of(snapshot),
        jobs,
        several=len(jobs) > 1,
        strict=request.strict,
        report=report,
    )


def _workers(request: Request, pictures: int) -> int | None:
    """How many processes are to draw; None is for the Ray that runs already to say."""
    count = workers_of(request)
    if count is None and request.ray is not None:
        return None
    if count is None:
        with held_back():
            import torch

        count = 1 if request.device == "cpu" else max(1, torch.cuda.device_count())
    return min(count, pictures)


def _loaded(
    model: str, snapshot: Snapshot, settings: Settings, pictures: int, report: Report
) -> Hired:
    from klein_cli.pipeline import Pipeline

    _say_settings(model, settings, report, here=True)
    report.bar.say(f"loading {model}")
    pipeline = Pipeline.load(snapshot, settings, on_event=report.bar.say)
    if pipeline.skipped_tensors:
        report.detail(f"not read, since nothing needs them: {grouped(pipeline.skipped_tensors)}")
    origin = Origin.of(pipeline)
    return Hired(
        crew=Alone(pipeline, describe_with(origin), report.bar.reach),
        origin=origin,
        batch_size=pipeline.default_batch_size,
        # One picture waits for nobody: it is written where it stands.
        writers=_WRITERS if pictures > 1 else 0,
        pipeline=pipeline,
    )


def _say_settings(model: str, settings: Settings, report: Report, *, here: bool) -> None:
    """Under --verbose, how it is computed and, if that is on this machine, what is off."""
    from klein_cli.device.choose import left_out

    report.detail(
        f"{model} on {settings.device}, {settings.dtype}, attention {settings.attention}, "
        f"engine {settings.engine}, kernels {settings.kernels}, quantize {settings.quantize}, "
        f"noise from {settings.rng}"
    )
    for off in left_out(settings) if here else ():
        report.detail(f"off: {off}")
