"""A download as a person sees it: a bar with bytes, speed and time left, or a line now and then."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from klein_cli.checkpoints.hub.download import Watch
from klein_cli.cli.terminal.progress import Shown, on_stderr
from klein_cli.cli.terminal.text import gigabytes
from klein_cli.run.events import Listener

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_WORTH_SAYING = 10**6
"""Bytes: what takes less is over before it is read."""


class DownloadBar(Shown, Watch):
    """Watches a download (`checkpoints.hub.download.Watch`) and tells the `listener` of it.

    Where a bar is `shown`, it is on stderr and gone when the context ends; elsewhere each tenth of
    a phase is a note. Under --json each hundredth is an event.
    """

    def __init__(self, listener: Listener, *, shown: bool) -> None:
        self._listener = listener
        self._progress = _bytes() if shown else None
        self._task: TaskID | None = None
        self._lock = threading.RLock()
        self._what = ""
        self._total = 0
        self._done = 0
        self._hundredths = 0

    def begin(self, what: str, total: int) -> None:
        """A phase of `total` bytes begins."""
        with self._lock:
            self._what, self._total, self._done, self._hundredths = what, total, 0, 0
            self._listener.event("phase", what=what, bytes=total)
            if self._progress is None:
                self._note(f"{what} {gigabytes(total)}")
                return
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(what, total=total)

    def move(self, amount: int) -> None:
        """`amount` more bytes are done; fewer than none when some must come again."""
        with self._lock:
            self._done += amount
            if self._progress and self._task is not None:
                self._progress.update(self._task, completed=self._done)
            reached = 100 * self._done // self._total if self._total else 0
            if reached <= self._hundredths:
                return
            self._listener.event("progress", what=self._what, bytes=self._done, of=self._total)
            if self._progress is None and reached // 10 > self._hundredths // 10:
                self._note(f"{self._what}: {reached} %")
            self._hundredths = reached

    def _note(self, what: str) -> None:
        if self._total >= _WORTH_SAYING:
            self._listener.note(what)

    def say(self, what: str) -> None:
        """Something worth knowing happened."""
        with self._lock:
            self._listener.event("notice", message=what)
            if self._progress:
                self._progress.console.print(what, markup=False, highlight=False)
            else:
                self._listener.note(what)


def _bytes() -> Progress:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return on_stderr(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
