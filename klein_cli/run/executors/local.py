"""The model in this process, which draws one batch at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from klein_cli.output.metadata import Origin
from klein_cli.run.batching import Batch
from klein_cli.run.events import Listener
from klein_cli.run.executors.executor import BatchResult, ReadyExecutor, Workload, draw
from klein_cli.run.executors.placement import Placement
from klein_cli.run.fallback import Renderer
from klein_cli.run.inputs import ImageNotes

if TYPE_CHECKING:
    from klein_cli.images.store import ImageStore

_WRITERS = 2
_LAYER = re.compile(r"(?:.+\.)?layers\.(\d+)\..+")


class LocalExecutor:
    """See `executor.Executor`. A batch is drawn when its result is asked for.

    The `listener` hears what is being done, and how many images' worth of the batch is done.
    `seconds` by phase are added to. The `store` has the images that were given, if any were.
    """

    def __init__(
        self,
        renderer: Renderer,
        origin: Origin,
        listener: Listener,
        seconds: dict[str, float],
        store: ImageStore | None = None,
    ) -> None:
        self._renderer = renderer
        self._origin = origin
        self._listener = listener
        self._seconds = seconds
        self._store = store
        self._notes = ImageNotes(listener)
        self._batch: Batch | None = None

    def submit(self, batch: Batch) -> None:
        assert self._batch is None
        self._batch = batch

    def next(self) -> BatchResult:
        batch, self._batch = self._batch, None
        assert batch is not None
        count, steps = len(batch.recipes), batch.recipes[0].steps
        started = time.perf_counter()
        images, error = draw(
            self._renderer,
            batch.recipes,
            tiled=batch.tiled,
            images=self._store,
            callback=lambda step, *_: self._listener.progress(count * step / steps),
            on_event=self._listener.doing,
            seconds=self._seconds,
        )
        if self._store is not None:
            self._notes.tell(self._store.notes())
        return BatchResult(
            batch=batch,
            images=images,
            error=error,
            seconds=time.perf_counter() - started,
            origin=self._origin,
        )

    def capacity(self) -> int:
        return 0 if self.busy() else 1

    def busy(self) -> bool:
        return self._batch is not None

    def notices(self) -> Iterator[str]:
        return iter(())

    def close(self) -> None:
        pass


def fits(placement: Placement) -> bool:
    """Whether this process is to draw."""
    return placement.single


def check(placement: Placement) -> None:
    """There is nothing that could be missing."""


@contextmanager
def start(work: Workload) -> Iterator[ReadyExecutor]:
    """The model loaded here. Raises KleinError when it cannot be."""
    from klein_cli.pipeline import Pipeline

    assert work.chosen is not None
    work.listener.doing(f"loading {work.model}")
    pipeline = Pipeline.load(
        work.snapshot,
        work.chosen,
        tokenizer=work.tokenizer,
        adapters=work.adapters,
        first=work.first,
        on_event=work.listener.doing,
    )
    if pipeline.skipped_tensors:
        skipped = grouped(pipeline.skipped_tensors)
        work.listener.detail(f"not read unless something needs them: {skipped}")
    seconds = {"load": pipeline.loading_seconds}
    yield ReadyExecutor(
        executor=LocalExecutor(pipeline, pipeline.origin, work.listener, seconds, work.store),
        origin=pipeline.origin,
        batch_size=pipeline.default_batch_size,
        # One image waits for nobody: it is written where it stands.
        writers=_WRITERS if work.images > 1 else 0,
        pipeline=pipeline,
        seconds=seconds,
    )


def grouped(names: Iterable[str]) -> str:
    """Tensors in few words, layers and kin together: "layers 27 to 35, vae.encoder.*"."""
    layers: set[int] = set()
    kin: dict[str, list[str]] = {}
    for name in sorted(names):
        layer = _LAYER.fullmatch(name)
        if layer:
            layers.add(int(layer[1]))
        else:
            kin.setdefault(".".join(name.split(".")[:2]), []).append(name)
    # Numbers that follow each other are as far apart as their places in the list.
    runs = groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0])
    parts = [_run([number for _, number in run]) for _, run in runs]
    parts += [alike[0] if len(alike) == 1 else f"{top}.*" for top, alike in kin.items()]
    return ", ".join(parts)


def _run(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"layer {first}" if first == last else f"layers {first} to {last}"
