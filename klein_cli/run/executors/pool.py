"""Several processes that draw, a model each, whatever carries word to them.

Images come back to the driver as pixels, and the driver alone encodes, writes and records
them: so there is one manifest, no file system that all machines must share, and the same code
and libraries make every file. A worker draws one batch and has at most one queued.

Bits: workers choose their settings as a single process would, use the driver's number of CPU
threads, and are distinguished in the records of their images where their machines differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from klein_cli.errors import KleinError, first_line
from klein_cli.output.metadata import Origin
from klein_cli.paths import user_path
from klein_cli.presets import presets
from klein_cli.recipe import Recipe
from klein_cli.run.batching import Batch
from klein_cli.run.executors.executor import BatchResult, ReadyExecutor, WorkerDied, Workload
from klein_cli.run.executors.files import SentFile, files_of
from klein_cli.run.executors.worker import Drawn, DrawRequest, Failure, LoadRequest, WorkerInfo
from klein_cli.run.inputs import ImageNotes
from klein_cli.run.interrupts import defer_interrupts

if TYPE_CHECKING:
    from klein_cli.run.fallback import Pixels

_IN_LINE = 2
"""Batches a worker has at once: the one it draws, and the next, so that it never waits for us."""

_RESTARTS = 2
"""How often one worker is started again before it is given up."""

_FEWEST_WRITERS = 2


class WorkerLost(Exception):
    """A worker's process is gone; the message is the last that is known of it."""


class Link(Protocol):
    """A worker's process, from the driver's side. It answers requests in their order."""

    def send(self, request: LoadRequest | DrawRequest) -> None:
        """Ask for the model or for images, without waiting."""

    def answer(self) -> WorkerInfo | Drawn | Failure:
        """The next answer. Raises WorkerLost when none will come."""


L = TypeVar("L", bound=Link)
Files = Callable[[Sequence[Recipe]], list[SentFile]]


class Transport(Protocol[L]):
    """How processes of workers are started, heard and ended."""

    def start(self) -> L:
        """A new process. Raises KleinError when there can be none."""

    def wait(self, links: Sequence[L]) -> L:
        """Wait for the first of these that has an answer, or is lost."""

    def end(self, links: Sequence[L]) -> None:
        """End these processes."""


@dataclass(slots=True)
class _Seat(Generic[L]):
    """A worker as the pool sees it; `origin` is set when it is ready, `line` begins with the
    batch assigned to it.
    """

    link: L
    restarts: int = 0
    origin: Origin | None = None
    line: deque[Batch] = field(default_factory=deque)

    @property
    def has_work(self) -> bool:
        """Whether it owes an answer."""
        return self.origin is None or bool(self.line)


class Pool(Generic[L]):
    """See `executor.Executor`. `info` is of the worker that was ready first.

    `images` gives the files that recipes need; `notes` hears what workers say of them.
    """

    info: WorkerInfo

    def __init__(
        self,
        transport: Transport[L],
        request: LoadRequest,
        count: int,
        *,
        images: Files,
        notes: ImageNotes,
    ) -> None:
        self._images = images
        self._notes = notes
        self._transport = transport
        self._request = request
        self._seats: list[_Seat[L]] = []
        self._results: deque[BatchResult] = deque()
        self._notices: deque[str] = deque()
        self._ready = False
        self._alike = True
        self._last_error = ""
        try:
            for _ in range(count):
                self._start()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._seats)

    def wait_for_the_first(self) -> None:
        """Wait until there is a worker. Raises the error of the last when none can load."""
        while not self._ready:
            self._settle(self._answering())

    def submit(self, batch: Batch) -> None:
        try:
            files = self._images(batch.recipes)
        except KleinError as error:  # a file has gone
            self._results.append(_failed(batch, error, self.info.origin))
            return
        seat = min((seat for seat in self._seats if _room(seat)), key=lambda seat: len(seat.line))
        seat.line.append(batch)
        seat.link.send(DrawRequest(recipes=batch.recipes, tiled=batch.tiled, files=files))

    def next(self) -> BatchResult | None:
        if not self._results:
            self._settle(self._answering())
        return self._results.popleft() if self._results else None

    def capacity(self) -> int:
        return sum(map(_room, self._seats))

    def busy(self) -> bool:
        return bool(self._results) or any(seat.line for seat in self._seats)

    def notices(self) -> Iterator[str]:
        while self._notices:
            yield self._notices.popleft()

    def close(self) -> None:
        """End the workers' processes."""
        self._transport.end([seat.link for seat in self._seats])
        self._seats.clear()

    def _start(self, restarts: int = 0) -> None:
        seat = _Seat(self._transport.start(), restarts)
        self._seats.append(seat)
        seat.link.send(self._request)

    def _answering(self) -> _Seat[L]:
        """Wait for the next worker that answers, or dies."""
        waiting = [seat for seat in self._seats if seat.has_work]
        if not waiting:
            raise KleinError(
                f"all workers died; the last error: {self._last_error}",
                "check that every machine has klein and enough memory",
            )
        link = self._transport.wait([seat.link for seat in waiting])
        return next(seat for seat in waiting if seat.link is link)

    def _settle(self, seat: _Seat[L]) -> None:
        try:
            answer = seat.link.answer()
        except WorkerLost as error:
            self._last_error = str(error)
            self._lost(seat)
            return
        if isinstance(answer, WorkerInfo):
            self._accept(seat, answer)
        elif isinstance(answer, Failure):
            self._refused(seat, answer.exception())
        else:
            failure = None if answer.failure is None else answer.failure.exception()
            self._notes.tell(answer.notes)
            self._give_back(seat, answer.images, failure, answer.seconds)

    def _accept(self, seat: _Seat[L], info: WorkerInfo) -> None:
        seat.origin = info.origin
        if not self._ready:
            self._ready, self.info = True, info
        elif info != self.info and self._alike:
            self._alike = False
            self._notices.append(
                "the workers' machines differ, so that an image may depend on its worker by a "
                "bit: each says where it was made"
            )

    def _refused(self, seat: _Seat[L], error: Exception) -> None:
        """A worker could not load the model: it is not one."""
        self._remove(seat)
        if not self._seats and not self._ready:
            raise error
        self._last_error = first_line(error)
        self._notices.append(f"a worker could not load the model: {error}")

    def _lost(self, seat: _Seat[L]) -> None:
        """Give back what a dead worker had, and start another in its place."""
        self._remove(seat)
        for drawing in [True] * bool(seat.line) + [False] * (len(seat.line) - 1):
            self._give_back(seat, [], WorkerDied(drawing=drawing), 0.0)
        notice = "a worker died; what it had is drawn by others"
        if seat.restarts < _RESTARTS:
            try:
                self._start(seat.restarts + 1)
                notice += ", and another is started"
            except KleinError as error:
                notice += f", and no other can be started: {error}"
        self._notices.append(notice)

    def _give_back(
        self, seat: _Seat[L], images: list[Pixels], error: Exception | None, seconds: float
    ) -> None:
        assert seat.origin is not None
        self._results.append(
            BatchResult(
                batch=seat.line.popleft(),
                images=images,
                error=error,
                seconds=seconds,
                origin=seat.origin,
            )
        )

    def _remove(self, seat: _Seat[L]) -> None:
        self._seats.remove(seat)
        self._transport.end([seat.link])


@contextmanager
def started(
    work: Workload, transport: Transport[L], count: int, *, by_path: bool
) -> Iterator[ReadyExecutor]:
    """`count` workers, at least one of them with the model loaded; they end with the context.

    They find images `by_path`, or get their bytes. Raises ModelError when no worker can load the
    model.
    """
    images = partial(files_of, store=work.store, by_path=by_path)
    notes = ImageNotes(work.listener)
    pool = Pool(transport, _load_request(work), count, images=images, notes=notes)
    try:
        pool.wait_for_the_first()
        yield ReadyExecutor(
            executor=pool,
            origin=pool.info.origin,
            batch_size=pool.info.batch_size,
            writers=max(_FEWEST_WRITERS, pool.size),
        )
    finally:
        pool.close()


def _load_request(work: Workload) -> LoadRequest:
    """A folder goes by its full path: workers may stand elsewhere."""
    with defer_interrupts():
        import torch
    is_folder = work.snapshot.repo is None and work.model not in presets()
    model = str(work.snapshot.root.resolve()) if is_folder else work.model
    given = {part: str(user_path(path).absolute()) for part, path in work.snapshot.given.items()}
    return LoadRequest(
        model=model,
        settings=work.settings,
        threads=torch.get_num_threads(),
        given=given,
        adapters=[str(file.path) for file in work.adapters.files],
        first=list(work.first),
    )


def _failed(batch: Batch, error: Exception, origin: Origin) -> BatchResult:
    return BatchResult(batch=batch, images=[], error=error, seconds=0.0, origin=origin)


def _room(seat: _Seat[L]) -> int:
    """How many more batches a worker may have."""
    return _IN_LINE - len(seat.line) if seat.origin is not None else 0
