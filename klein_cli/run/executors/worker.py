"""What runs in a worker's process: a model, and the drawing of one batch after another."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from klein_cli import errors
from klein_cli.device.startup import quick_start
from klein_cli.errors import KleinError
from klein_cli.images.store import ImageStore
from klein_cli.output.metadata import Origin
from klein_cli.recipe import Adapter, Recipe
from klein_cli.run.executors.executor import draw
from klein_cli.run.executors.files import SentFile
from klein_cli.run.executors.watched import WatchedSteps
from klein_cli.settings import Settings

if TYPE_CHECKING:
    from klein_cli.checkpoints.lora.store import AdapterStore
    from klein_cli.pipeline import Pipeline
    from klein_cli.run.fallback import Pixels

_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, KleinError)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What workers are to load: a model by name or absolute path, and how they are to compute.

    No `threads` leaves their number to torch.
    `given` are absolute paths of files in place of the model's own, `adapters` those of all that
    batches will name, and `first` are the adapters of the first batch.
    """

    model: str
    settings: Settings
    threads: int | None
    given: Mapping[str, str] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)
    first: list[Adapter] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker that is ready, and how it computes."""

    origin: Origin
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawRequest:
    """A batch: recipes of one shape, each decoded in tiles if `tiled`, the `files` of the images
    that they edit, and absolute paths of their `adapters` that were not known at the start.

    By its `number` it can be cancelled. If `watched`, the worker says `Stepped` after each step;
    so many `previews` of these, at most, hold an image.
    """

    recipes: list[Recipe]
    tiled: bool
    files: list[SentFile] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    number: int = 0
    watched: bool = False
    previews: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """Nobody waits any more for the batch of this number: it may end after any step."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A step of a batch that is watched, and perhaps `images`: what is seen of each so far."""

    number: int
    step: int
    steps: int
    images: list[Pixels] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error on its way to another process: a class, and what it says.

    That of a KleinError is in `klein_cli.errors` under this `name`, and there is a `hint`; a bug
    has the text of its `traceback` instead.
    """

    name: str
    message: str
    hint: str | None = None
    traceback: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The error as it can leave the process."""
        if isinstance(error, KleinError):
            known = next(kind for kind in type(error).__mro__ if kind in _KINDS.values())
            return cls(name=known.__name__, message=error.message, hint=error.hint)
        trace = "".join(traceback.format_exception(error)).rstrip()
        return cls(name=type(error).__name__, message=str(error), traceback=trace)

    def exception(self) -> Exception:
        """The error again; a bug comes as a RuntimeError, its traceback as a note."""
        if self.hint is not None:
            return _KINDS[self.name](self.message, self.hint)
        bug = RuntimeError(f"{self.name}: {self.message}")
        bug.add_note(f"in a worker:\n{self.traceback}")
        return bug


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The answer to a DrawRequest: images or the failure in their place, and the seconds.

    `notes` are what there is to say of the images that were given, each with the image's name.
    """

    images: list[Pixels]
    failure: Failure | None
    seconds: float
    notes: list[tuple[str, str]] = field(default_factory=list)


class Worker:
    """A model in a process of its own. Errors are answers."""

    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None
        self._adapters: AdapterStore | None = None
        self._cancelled: set[int] = set()
        self._store = ImageStore()

    def load(self, request: LoadRequest) -> WorkerInfo | Failure:
        """Get the model ready."""
        try:
            # Before torch is imported: Ray gives its processes one thread.
            if request.threads is not None:
                os.environ["OMP_NUM_THREADS"] = str(request.threads)
            with quick_start():
                return self._load(request)
        except Exception as error:
            return Failure.of(error)

    def _load(self, request: LoadRequest) -> WorkerInfo:
        import torch

        from klein_cli.checkpoints.lora.store import AdapterStore
        from klein_cli.checkpoints.resolve import resolve
        from klein_cli.device.choose import choose
        from klein_cli.pipeline import Pipeline

        if request.threads is not None:
            torch.set_num_threads(request.threads)
        snapshot = resolve(request.model, parts=request.given)
        adapters = self._adapters = AdapterStore()
        for path in request.adapters:
            adapters.add(Path(path))
        pipeline = Pipeline.load(
            snapshot,
            choose(request.settings, snapshot.preset),
            adapters=adapters,
            first=request.first,
        )
        info = WorkerInfo(origin=pipeline.origin, batch_size=pipeline.default_batch_size)
        self._pipeline = pipeline
        return info

    def expect(self, request: DrawRequest) -> None:
        """Begin to decode what a batch edits that is next in line; from any thread."""
        for file in request.files:
            file.put_into(self._store)
        self._store.read_ahead(request.recipes)

    def cancel(self, number: int) -> None:
        """Have a batch end after its next step; from any thread."""
        self._cancelled.add(number)

    def draw(self, request: DrawRequest, tell: Callable[[Stepped], None] | None = None) -> Drawn:
        """The images of a batch. `tell` hears of its steps if it is watched."""
        started = time.perf_counter()
        try:
            for path in request.adapters:
                assert self._adapters is not None
                self._adapters.add(Path(path))
        except KleinError as error:
            return Drawn(
                images=[], failure=Failure.of(error), seconds=time.perf_counter() - started
            )
        return self._draw(request, tell, started)

    def _draw(
        self, request: DrawRequest, tell: Callable[[Stepped], None] | None, started: float
    ) -> Drawn:
        assert self._pipeline is not None
        steps = request.recipes[0].steps

        def stepped(step: int, images: list[Pixels]) -> None:
            if tell is not None:
                tell(Stepped(number=request.number, step=step, steps=steps, images=images))

        watched = WatchedSteps(
            request, self._pipeline, stepped, lambda: request.number in self._cancelled
        )
        for file in request.files:
            file.put_into(self._store)
        images, error = draw(
            self._pipeline,
            request.recipes,
            tiled=request.tiled,
            images=self._store,
            callback=watched,
        )
        for file in request.files:  # the next batch brings what it needs
            self._store.forget(file.sha256)
        self._cancelled.discard(request.number)
        return Drawn(
            images=images,
            failure=None if error is None else Failure.of(error),
            seconds=time.perf_counter() - started,
            notes=self._store.notes(),
        )
