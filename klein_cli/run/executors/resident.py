"""An engine that stays draws: each batch is a request to it, and the pixels come back.

Names, files, records and the resuming of a run stay here; the engine sees recipes alone. A
connection that closes is a batch that nobody waits for any more.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from klein_cli.errors import KleinError, UsageError
from klein_cli.run.batching import Batch
from klein_cli.run.events import Listener
from klein_cli.run.executors import wire
from klein_cli.run.executors.executor import BatchResult, ReadyExecutor, WorkerDied, Workload
from klein_cli.run.executors.files import files_of
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.worker import Drawn, DrawRequest, Stepped
from klein_cli.run.inputs import ImageNotes
from klein_cli.run.resident.connection import EngineError, ask, check_answer
from klein_cli.run.resident.finding import Resident, look

_WRITERS = 2
_FULL = 429
_STOPPING = 503
_MOST_WAIT = 5.0
"""Seconds before a full line is asked again: places come free one by one."""
_PATIENCE = 20.0
"""Seconds for an engine that is started anew to be there again."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A batch that was asked for, the connection on which it comes, and since when."""

    batch: Batch
    connection: socket.socket
    since: float
    begun: bool = False


class ResidentExecutor:
    """See `executor.Executor`. `single` images are drawn before those of long runs."""

    def __init__(
        self, resident: Resident, work: Workload, *, single: bool, listener: Listener
    ) -> None:
        self._resident = resident
        self._work = work
        self._single = single
        self._listener = listener
        self._notes = ImageNotes(listener)
        self._asked: list[_Asked] = []
        self._results: deque[BatchResult] = deque()
        self._notices: deque[str] = deque()

    def submit(self, batch: Batch) -> None:
        started = time.perf_counter()
        try:
            connection = self._request(batch)
        except UsageError as error:  # an image has gone
            self._results.append(
                BatchResult(
                    batch=batch,
                    images=[],
                    error=error,
                    seconds=0.0,
                    origin=self._resident.origin,
                )
            )
            return
        self._asked.append(_Asked(batch, connection, started))

    def next(self) -> BatchResult | None:
        while not self._results:
            self._hear(self._speaking())
        return self._results.popleft()

    def capacity(self) -> int:
        # One more than are drawn at once, so that no engine waits for us.
        return self._resident.engines + 1 - len(self._asked) - len(self._results)

    def busy(self) -> bool:
        return bool(self._asked or self._results)

    def notices(self) -> Iterator[str]:
        while self._notices:
            yield self._notices.popleft()

    def close(self) -> None:
        for each in self._asked:
            each.connection.close()
        self._asked.clear()

    def _request(self, batch: Batch) -> socket.socket:
        """A connection on which the batch was asked for. Raises KleinError when none can be had,
        and for an image that has gone.
        """
        place = self._resident.place
        files = files_of(batch.recipes, self._work.store, by_path=place.path is not None)
        wanted = dict.fromkeys(batch.recipes[0].adapters)
        adapters = [str(self._work.adapters.file(adapter).path) for adapter in wanted]
        message = DrawRequest(
            recipes=batch.recipes,
            tiled=batch.tiled,
            files=files,
            adapters=adapters,
            watched=self._single,
        )
        body = b"".join(wire.encoded(message))
        line = "single" if self._single else "bulk"
        connection = place.connect() or self._again()
        try:
            connection.settimeout(None)
            ask(connection, place, "POST", f"/klein/v1/draw?class={line}", body)
        except OSError:
            pass  # that it has gone shows when its answer is read
        return connection

    def _again(self) -> socket.socket:
        """A connection to the engine after it was started anew, if it is the same one again."""
        until = time.monotonic() + _PATIENCE
        place = self._resident.place
        while time.monotonic() < until:
            found = look(place, self._work.snapshot, self._work.settings).resident
            if found is not None and found.origin == self._resident.origin:
                connection = place.connect()
                if connection is not None:
                    return connection
            time.sleep(0.1)
        raise KleinError(
            f"the engine at {place} has gone", "the same command draws without it: --server off"
        )

    def _speaking(self) -> _Asked:
        with selectors.DefaultSelector() as selector:
            for each in self._asked:
                selector.register(each.connection, selectors.EVENT_READ, each)
            key, _ = selector.select()[0]
            return key.data  # type: ignore[no-any-return]

    def _hear(self, asked: _Asked) -> None:
        try:
            if not asked.begun:
                check_answer(asked.connection)
                asked.begun = True
                return
            message = wire.receive(asked.connection)
        except EngineError as error:
            self._refused(asked, error)
            return
        except OSError:
            message = None
        if isinstance(message, Stepped):
            count = len(asked.batch.jobs)
            self._listener.progress(count * message.step / message.steps)
            return
        if isinstance(message, Drawn):
            self._notes.tell(message.notes)
            failed = None if message.failure is None else message.failure.exception()
            self._conclude(asked, message, failed)
        else:
            self._notices.append("the engine hung up; what it had is asked for again")
            self._conclude(asked, None, WorkerDied(drawing=True))

    def _refused(self, asked: _Asked, error: EngineError) -> None:
        """Ask again later where the line is full, or the engine about to be another."""
        if error.status not in (_FULL, _STOPPING):
            self._conclude(asked, None, KleinError(error.message, error.hint))
            return
        asked.connection.close()
        time.sleep(min(error.retry_after or 1.0, _MOST_WAIT))
        asked.connection, asked.begun = self._request(asked.batch), False

    def _conclude(self, asked: _Asked, drawn: Drawn | None, error: Exception | None) -> None:
        asked.connection.close()
        self._asked.remove(asked)
        self._results.append(
            BatchResult(
                batch=asked.batch,
                images=[] if drawn is None else drawn.images,
                error=error,
                seconds=time.perf_counter() - asked.since if drawn is None else drawn.seconds,
                origin=self._resident.origin,
            )
        )


def fits(placement: Placement) -> bool:
    """Whether an engine was found that will do."""
    return placement.resident is not None


def check(placement: Placement) -> None:
    """What is missing shows when it is looked for."""


@contextmanager
def start(work: Workload) -> Iterator[ReadyExecutor]:
    """The engine, which goes on after the context."""
    resident = work.placement.resident
    assert resident is not None
    single = work.images == 1
    executor = ResidentExecutor(resident, work, single=single, listener=work.listener)
    try:
        yield ReadyExecutor(
            executor=executor,
            origin=resident.origin,
            batch_size=resident.batch_size,
            writers=0 if single else _WRITERS,
        )
    finally:
        executor.close()
