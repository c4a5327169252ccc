"""Which executor draws for a run; before it, the model on disk and the prompts' lengths.

torch is imported here, after everything that can be refused without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

from klein_cli.checkpoints.given import NO_PARTS, Parts
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import Snapshot, on_disk, preset_for, resolve
from klein_cli.checkpoints.source import PARTS
from klein_cli.device.startup import freeze_imports, quick_start, read_ahead, wake_gpu
from klein_cli.images.store import ImageStore
from klein_cli.run.events import Listener
from klein_cli.run.executors import local, process, ray, resident
from klein_cli.run.executors.executor import ReadyExecutor, Workload
from klein_cli.run.executors.placement import Placement
from klein_cli.run.interrupts import defer_interrupts
from klein_cli.run.jobs import Job, Jobs
from klein_cli.run.prompt_lengths import check_lengths
from klein_cli.run.resident.finding import find
from klein_cli.run.timings import Timings
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer


class Starter(Protocol):
    """A module with an executor."""

    def fits(self, placement: Placement) -> bool:
        """Whether the executor is the one for a placement."""

    def check(self, placement: Placement) -> None:
        """Raise UsageError, before torch is imported, when it cannot draw there."""

    def start(self, work: Workload) -> AbstractContextManager[ReadyExecutor]:
        """The executor with the model loaded; it ends with the context. Raises KleinError."""


_TOLD = 3
"""Adapters of a run of which the user is told; of more there are details."""

EXECUTORS: dict[str, Starter] = {
    "resident": resident,
    "local": local,
    "process": process,
    "ray": ray,
}
"""The first that fits a placement draws."""


@contextmanager
def start(
    model: str,
    settings: Settings,
    placement: Placement,
    jobs: Jobs | Sequence[Job],
    *,
    store: ImageStore,
    adapters: AdapterStore | None = None,
    strict: bool,
    listener: Listener,
    timings: Timings,
    snapshot: Snapshot | None = None,
    parts: Parts = NO_PARTS,
) -> Iterator[ReadyExecutor]:
    """An executor for some jobs, which ends with the context.

    `settings` are as the user gave them; the `store` has the images of the jobs and `adapters` what
    changes the model for them; with `strict`, prompts that are too long are an error; a `snapshot`
    that was found for `model` need not be looked for; `parts` are files in place of the model's
    own. Raises KleinError when there can be no executor.
    """
    with ExitStack() as stack:
        adapters = AdapterStore() if adapters is None else adapters
        placement = _with_resident(placement, model, settings, snapshot, parts, adapters, listener)
        given = store, adapters, strict, listener, timings, snapshot
        with quick_start():
            work = _prepared(model, settings, placement, jobs, *given, parts)
            if work.chosen is not None:
                _report_settings(model, work.chosen, listener, here=True)
            if not work.placement.single and work.placement.resident is None:
                listener.doing("starting workers")
            ready = stack.enter_context(_starter(work.placement).start(work))
        if work.chosen is None:
            _report_settings(model, ready.origin.settings, listener, here=False)
        if ready.pipeline is None:
            listener.doing("")
        yield ready


def check_placement(placement: Placement, settings: Settings, *, dry_run: bool = False) -> None:
    """Raise UsageError, before torch is imported, for workers that are not available.

    A dry run needs none.
    """
    placement.check_device(settings.device)
    if not dry_run:
        _starter(placement).check(placement)


def _starter(placement: Placement) -> Starter:
    return next(starter for starter in EXECUTORS.values() if starter.fits(placement))


def _with_resident(
    placement: Placement,
    model: str,
    settings: Settings,
    snapshot: Snapshot | None,
    parts: Parts,
    adapters: AdapterStore,
    listener: Listener,
) -> Placement:
    """The placement with the engine that draws, if one may and will do. Raises KleinError."""
    if placement.server.mode == "off":
        return placement
    here = snapshot or on_disk(model, parts)
    if here is None:  # nobody has what must be downloaded first
        return placement
    given = "parts" if parts else ""
    if adapters and placement.server.place is not None and placement.server.place.path is None:
        given = "adapters"  # by path to the owner's engine alone
    found = find(placement.server, model, here, settings, given=given)
    if found.resident is not None:
        listener.detail(f"drawn by the engine at {found.resident.place}")
    else:
        listener.detail(f"drawn in this process: of an engine, {found.why}")
    return replace(placement, resident=found.resident)


def _prepared(
    model: str,
    settings: Settings,
    placement: Placement,
    jobs: Jobs | Sequence[Job],
    store: ImageStore,
    adapters: AdapterStore,
    strict: bool,
    listener: Listener,
    timings: Timings,
    snapshot: Snapshot | None,
    parts: Parts,
) -> Workload:
    """The model on disk. Prompts are measured and adapters compared with it before it loads, and a
    GPU is found before one is downloaded: here, or by the workers where they are elsewhere.
    """
    if placement.single:
        wake_gpu(settings.device)
    snapshot = snapshot or on_disk(model, parts)
    tokenizer = None
    if snapshot is not None:
        if placement.single:
            read_ahead(
                [file for part in PARTS for file in snapshot.part(part).files], settings.device
            )
        tokenizer = _tokenizer(snapshot, jobs, strict, listener)
        check_adapters(adapters, snapshot, listener)
    chosen = None
    if placement.resident is None:
        listener.doing("starting torch")
        _import_torch(placement, timings)
        chosen = None if placement.ray else _chosen(model, settings, snapshot)
    if snapshot is None:
        with listener.downloading() as watch:
            snapshot = resolve(model, watch, parts)
        check_adapters(adapters, snapshot, listener)
    gpus = 0 if chosen is None else _gpus(chosen)
    return Workload(
        model=model,
        snapshot=snapshot,
        tokenizer=tokenizer or _tokenizer(snapshot, jobs, strict, listener),
        settings=settings,
        chosen=chosen,
        placement=placement.settled(gpus=gpus, images=len(jobs) or 1),
        gpus=gpus,
        images=len(jobs),
        listener=listener,
        store=store,
        adapters=adapters,
        first=next((job.recipe.adapters for job in jobs), ()),
    )


def check_adapters(adapters: AdapterStore, snapshot: Snapshot, listener: Listener) -> None:
    """Tell how much of the model each adapter changes. Raises ModelError for one that does not
    fit it.
    """
    for number, line in enumerate(adapters.check(snapshot)):
        (listener.note if number < _TOLD else listener.detail)(line)
    for file in adapters.files:
        if file.doubt is not None:
            listener.warn(file.doubt)


def _import_torch(placement: Placement, timings: Timings) -> None:
    with timings.imports(), defer_interrupts():
        if placement.single:
            import klein_cli.pipeline  # noqa: F401 (what it imports takes longest)
        else:
            import torch  # noqa: F401
    freeze_imports()


def _chosen(model: str, settings: Settings, snapshot: Snapshot | None) -> Settings:
    from klein_cli.device.choose import choose

    return choose(settings, snapshot.preset if snapshot else preset_for(model))


def _tokenizer(
    snapshot: Snapshot, jobs: Jobs | Sequence[Job], strict: bool, listener: Listener
) -> PromptTokenizer:
    """The model's, which has measured the prompts."""
    tokenizer = PromptTokenizer.of(snapshot)
    several = len(jobs) > 1
    check_lengths(tokenizer.tokenize, jobs, several=several, strict=strict, listener=listener)
    return tokenizer


def _gpus(chosen: Settings) -> int:
    import torch

    return torch.cuda.device_count() if chosen.device.startswith("cuda") else 0


def _report_settings(model: str, settings: Settings, listener: Listener, *, here: bool) -> None:
    """Under --verbose, how it is computed and, if that is on this machine, what is off."""
    listener.detail(f"{model} on {settings.listed()}")
    if not here:
        return
    from klein_cli.device.choose import missing_speedups

    for off in missing_speedups(settings):
        listener.detail(f"off: {off}")
