"""Images -> files, beside the drawing of the next: threads, with no more waiting than they take.

Encoding and the disk take a part of the time of drawing on a fast GPU, and Python's lock is let go
meanwhile. A run of one image has no threads: it is written where it stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")

_WAITING = 2
"""Images a thread may have, the one it writes included: the memory they take has a bound."""


class Writers(Generic[T]):
    """Runs writings in `threads` threads, or at once if there are none; gives results in order."""

    def __init__(self, threads: int) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[], T], Future[T]] | None] = SimpleQueue()
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
        result: Future[T] = Future()
        if not self._threads:
            _write(writing, result)
        else:
            while len(unwritten := self._unwritten()) >= len(self._threads) * _WAITING:
                wait(unwritten[:1])
            self._tasks.put((writing, result))
        self._pending.append(result)

    def finished(self) -> Iterator[T]:
        """Results that are there, in the order of `put`."""
        while self._pending and self._pending[0].done():
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[T]:
        """All results that are not taken yet; waits for them."""
        while self._pending:
            wait([self._pending[0]])
            yield from self.finished()

    def close(self) -> None:
        """Wait for the threads to end; results stay to be taken."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _unwritten(self) -> list[Future[T]]:
        return [result for result in self._pending if not result.done()]

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _write(*task)
            del task  # it holds the pixels


def _write(writing: Callable[[], T], result: Future[T]) -> None:
    try:
        done = writing()
    except BaseException as error:
        result.set_exception(error)
    else:
        result.set_result(done)
