"""Pictures -> files, beside the drawing of the next: threads, with no more waiting than they take.

Encoding a PNG takes a fifth of the time of drawing it on a fast GPU, and Python's lock is let go
meanwhile. A run of one picture has no threads: it is written where it stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")

_WAITING = 2
"""Pictures a thread may have, the one in hand included: the memory they take has a bound."""


class Writers(Generic[T]):
    """Runs writings in `threads` threads, or at once if there are none; gives results in order."""

    def __init__(self, threads: int) -> None:
        self._tasks: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self._pending: deque[Future[T]] = deque()
        # All begin now, since later there may be no memory for another; or fewer, or none.
        self._threads: list[Thread] = []
        with suppress(RuntimeError):
            for number in range(threads):
                thread = Thread(target=self._work, name=f"klein-writer-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def put(self, writing: Callable[[], T]) -> None:
        """Have it written; waits while as much is waiting as may."""
        future: Future[T] = Future()
        if not self._threads:
            _write(future, writing)
        else:
            while len(unwritten := self._unwritten()) >= len(self._threads) * _WAITING:
                unwritten[0].exception()
            self._tasks.put((future, writing))
        self._pending.append(future)

    def finished(self) -> Iterator[T]:
        """Results that are there, in the order of `put`."""
        while self._pending and self._pending[0].done():
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[T]:
        """All results that are not taken yet; waits for them."""
        while self._pending:
            self._pending[0].exception()
            yield from self.finished()

    def close(self) -> None:
        """Wait for the threads to end; results stay to be taken."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _unwritten(self) -> list[Future[T]]:
        return [future for future in self._pending if not future.done()]

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _write(*task)
            del task  # or it would hold on to its pixels until the next one comes


def _write(future: Future[T], writing: Callable[[], T]) -> None:
    try:
        future.set_result(writing())
    except BaseException as error:
        future.set_exception(error)
