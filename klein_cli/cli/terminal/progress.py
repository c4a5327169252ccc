"""A progress bar on stderr, while a person is watching."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

_REMEMBERED = 64
"""The images that the rate is taken over: it follows a change of sizes, and not every hiccup."""


class Shown:
    """A context with a bar on stderr, if there is one, that is gone when it ends."""

    _progress: Progress | None

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()


class Bar(Shown):
    """Shows what is being done and how far it is; silent unless `shown`.

    It counts images, in fractions.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self._progress = _images() if shown else None
        self._task = self._progress.add_task("", total=None) if self._progress else None
        self._doing = ""
        self._made = 0
        self._failed = 0
        self._wanted = 0
        self._times: deque[float] = deque(maxlen=_REMEMBERED)
        self._reached = 0.0
        self._began = 0.0

    def say(self, what: str) -> None:
        """Name what is being done now."""
        self._doing = what
        self._describe()

    def expect(self, images: int) -> None:
        """From here on, count images."""
        self._wanted, self._began = images, time.monotonic()
        if self._progress and self._task is not None:
            self._times.append(self._began)
            self._progress.update(self._task, total=images, completed=0)
        self._describe()

    def reach(self, part: float) -> None:
        """`part` of an image, or of several, is done beyond those that were counted."""
        # Never backwards: a batch is wholly drawn before its images are counted one by one.
        self._reached = max(self._reached, self._made + part)
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=self._reached)

    def count(self, *, failed: bool = False) -> None:
        """One more image is finished, or given up."""
        self._made += 1
        self._failed += failed
        self._times.append(time.monotonic())
        self.reach(0.0)
        self._describe()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something else is printed."""
        if self._progress and self._progress.live.is_started:
            self._progress.stop()
            try:
                yield
            finally:
                self._progress.start()
        else:
            yield

    def _describe(self) -> None:
        if not self._progress or self._task is None:
            return
        parts = []
        if self._wanted > 1:
            parts.append(f"{self._made} of {self._wanted} images")
            parts += self._pace()
        if self._doing:
            parts.append(self._doing)
        if self._wanted == 1 and 0 < self._reached < 1:
            spent = time.monotonic() - self._began
            left = round(spent * (1 - self._reached) / self._reached)
            if left:
                parts.append(f"about {f'{left} s' if left < 60 else timedelta(seconds=left)} left")
        self._progress.update(self._task, description=", ".join(parts))

    def _pace(self) -> list[str]:
        parts = []
        spent = self._times[-1] - self._times[0]
        if self._made and spent > 0:
            rate = (len(self._times) - 1) / spent
            parts.append(f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each")
            parts.append(f"{timedelta(seconds=round((self._wanted - self._made) / rate))} left")
        if self._failed:
            parts.append(f"{self._failed} failed")
        return parts


def watched() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def on_stderr(*columns: ProgressColumn) -> Progress:
    """A bar that leaves nothing behind.

    Rich would send stdout to the bar's stream: paths printed to a file or a pipe would be lost.
    """
    from rich.console import Console
    from rich.progress import Progress

    return Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _images() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    unicode = Console(stderr=True).encoding.lower().startswith("utf")
    return on_stderr(
        SpinnerColumn("dots" if unicode else "line"),
        BarColumn(),
        TimeElapsedColumn(Column(min_width=len("0:00:00"))),
        # Last, since its length changes. Folded, for not every encoding has an ellipsis.
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
    )
