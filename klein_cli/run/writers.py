"""Pictures -> files, beside the drawing of the next: threads, and no more waiting than they can
take.

Encoding a PNG takes a fifth of the time of drawing it on a fast GPU, and Python's lock is let go
meanwhile. A run of one picture has no threads: it is written where it stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

T = TypeVar("T")

_WAITING = 2
"""Pictures a thread may have, the one in hand included: the memory they take has a bound."""


class Writers(Generic[T]):
    """Runs writings in `threads` threads, or at once if there are none; gives results in order."""

    def __init__(self, threads: int) -> None:
        self._room = threads * _WAITING
        self._pool = _pool(threads) if threads else None
        self._pending: deque[Future[T]] = deque()
        self._done: deque[T] = deque()

    def put(self, writing: Callable[[], T]) -> None:
        """Have it written; waits while as much is waiting as may."""
        if self._pool is None:
            self._done.append(writing())
            return
        while len(self._pending) >= self._room:
            self._settle()
        self._pending.append(self._pool.submit(writing))

    def finished(self) -> Iterator[T]:
        """Results that are there, in the order of `put`."""
        while self._pending and self._pending[0].done():
            self._settle()
        while self._done:
            yield self._done.popleft()

    def rest(self) -> Iterator[T]:
        """All results that are not taken yet; waits for them."""
        while self._pending:
            self._settle()
            yield from self.finished()
        yield from self.finished()

    def close(self) -> None:
        """Wait for the threads to end; results stay to be taken."""
        if self._pool is not None:
            self._pool.shutdown()

    def _settle(self) -> None:
        self._done.append(self._pending[0].result())
        self._pending.popleft()


def _pool(threads: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, thread_name_prefix="klein-writer")
