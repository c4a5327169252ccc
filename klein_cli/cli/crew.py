"""Who draws for a run: the model in this process, or workers with a model each.

torch is imported here, after everything that can be refused without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from klein_cli.cli.lengths import check_lengths, tokenizer_of
from klein_cli.cli.report import Report, grouped
from klein_cli.cli.request import Request, workers_of
from klein_cli.cli.startup import quick_start
from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.recipe import Settings
from klein_cli.run.crew import Alone, Crew, describe_with
from klein_cli.run.jobs import Jobs
from klein_cli.run.workers import check_ray
from klein_cli.snapshot import Snapshot, preset_for, resolve

_WRITERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hired:
    """A crew that is ready to draw, and how it does.

    `writers` threads keep up with it; `timings` are the seconds spent in the model by phase, where
    one process knows them.
    """

    crew: Crew
    settings: Settings
    batch_size: int
    writers: int
    timings: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def hired(request: Request, settings: Settings, jobs: Jobs, report: Report) -> Iterator[Hired]:
    """The crew for some jobs. Raises KleinError when it cannot be had."""
    with quick_start():
        snapshot, chosen = _prepared(request, settings, jobs, report)
        workers = _workers(request, len(jobs))
        alone = None
        if workers == 1 and request.ray is None:
            alone = _alone(request.model, snapshot, chosen, report)
    if alone is not None:
        # One picture waits for nobody: it is written where it stands.
        yield replace(alone, writers=_WRITERS if len(jobs) > 1 else 0)
        return
    import torch

    from klein_cli.run.worker import Order
    from klein_cli.run.workers import hire

    report.bar.say("starting workers")
    model = str(snapshot.root.resolve()) if _is_folder(request.model) else request.model
    order = Order(model=model, settings=settings, threads=torch.get_num_threads())
    with hire(order, workers, most=len(jobs), address=request.ray) as pool:
        report.detail(_described(request.model, pool.hello.settings))
        yield Hired(
            crew=pool,
            settings=pool.hello.settings,
            batch_size=pool.hello.batch_size,
            writers=max(_WRITERS, pool.size),
        )


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


def on_disk(model: str) -> bool:
    """Whether reading the model's tokenizer needs no download."""
    preset = presets().get(model)
    return not preset.repo if preset else _is_folder(model)


def _prepared(
    request: Request, settings: Settings, jobs: Jobs, report: Report
) -> tuple[Snapshot, Settings]:
    """The model on disk. Prompts are measured before the model loads, and a GPU is found before
    one is downloaded: here, or by the workers where they are elsewhere.
    """
    snapshot = None
    if on_disk(request.model):
        snapshot = _fetched(request, jobs, report)
    report.bar.say("starting torch")
    from klein_cli.machine import choose

    if request.ray is None:
        settings = choose(settings, preset_for(request.model))
    if snapshot is None:
        report.bar.say(f"fetching {request.model}")
        snapshot = _fetched(request, jobs, report)
    return snapshot, settings


def _fetched(request: Request, jobs: Jobs, report: Report) -> Snapshot:
    snapshot = resolve(request.model)
    check_lengths(
        tokenizer_of(snapshot),
        jobs,
        several=len(jobs) > 1,
        strict=request.strict,
        report=report,
    )
    return snapshot


def _workers(request: Request, pictures: int) -> int | None:
    """How many processes are to draw; None is for the Ray that runs already to say."""
    count = workers_of(request)
    if count is None and request.ray is not None:
        return None
    if count is None:
        import torch

        count = 1 if request.device == "cpu" else max(1, torch.cuda.device_count())
    return min(count, pictures)


def _alone(model: str, snapshot: Snapshot, settings: Settings, report: Report) -> Hired:
    from klein_cli.pipeline import Pipeline

    report.detail(_described(model, settings))
    report.bar.say(f"loading {model}")
    pipeline = Pipeline.load(snapshot, settings, on_event=report.bar.say)
    if pipeline.skipped_tensors:
        report.detail(f"not read, since nothing needs them: {grouped(pipeline.skipped_tensors)}")
    describe = describe_with(
        pipeline.settings, revision=snapshot.revision, provenance=pipeline.provenance()
    )
    return Hired(
        crew=Alone(pipeline, describe, report.bar.reach),
        settings=pipeline.settings,
        batch_size=pipeline.default_batch_size,
        writers=0,
        timings=pipeline.timings,
    )


def _described(model: str, settings: Settings) -> str:
    return (
        f"{model} on {settings.device}, {settings.dtype}, attention {settings.attention}, "
        f"engine {settings.engine}, noise from {settings.rng}"
    )


def _is_folder(model: str) -> bool:
    return model not in presets() and Path(model).expanduser().exists()
