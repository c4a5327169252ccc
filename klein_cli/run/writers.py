"""Images -> files, beside the drawing of the next: threads, with no more waiting than they take.

Encoding a PNG takes a fifth of the time of drawing it on a fast GPU, and Python's lock is let go
meanwhile. A run of one image has no threads: it is written where it stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")

_WAITING = 2
"""Images a thread may have, the one it writes included: the memory they take has a bound."""


class _Task(Generic[T]):
    """A writing, and what came of it once it is `done`."""

    def __init__(self, writing: Callable[[], T]) -> None:
        self.done = Event()
        self._writing: Callable[[], T] | None = writing
        self._result: T | BaseException

    def run(self) -> None:
        assert self._writing is not None
        try:
            self._result = self._writing()
        except BaseException as error:
            self._result = error
        self._writing = None  # it holds the pixels
        self.done.set()

    def result(self) -> T:
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


class Writers(Generic[T]):
    """Runs writings in `threads` threads, or at once if there are none; gives results in order."""

    def __init__(self, threads: int) -> None:
        self._tasks: SimpleQueue[_Task[T] | None] = SimpleQueue()
        self._pending: deque[_Task[T]] = deque()
        # All begin now, since later there may be no memory for another; or fewer, or none.
        self._threads: list[Thread] = []
        with suppress(RuntimeError):
            for number in range(threads):
                thread = Thread(target=self._work, name=f"klein-writer-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def put(self, writing: Callable[[], T]) -> None:
        """Have it written; waits while as much is waiting as may."""
        task = _Task(writing)
        if not self._threads:
            task.run()
        else:
            while len(unwritten := self._unwritten()) >= len(self._threads) * _WAITING:
                unwritten[0].done.wait()
            self._tasks.put(task)
        self._pending.append(task)

    def finished(self) -> Iterator[T]:
        """Results that are there, in the order of `put`."""
        while self._pending and self._pending[0].done.is_set():
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[T]:
        """All results that are not taken yet; waits for them."""
        while self._pending:
            self._pending[0].done.wait()
            yield from self.finished()

    def close(self) -> None:
        """Wait for the threads to end; results stay to be taken."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _unwritten(self) -> list[_Task[T]]:
        return [task for task in self._pending if not task.done.is_set()]

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()
