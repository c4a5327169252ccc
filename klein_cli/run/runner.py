"""Jobs -> saved pictures, one batch after another; says what became of each as it happens.

A picture that fails does not stop the others. When a whole batch fails, its pictures are tried
one by one, which is recorded on them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from klein_cli.errors import KleinError
from klein_cli.output.metadata import parameters
from klein_cli.output.naming import candidates
from klein_cli.output.png import encode, save
from klein_cli.recipe import Recipe
from klein_cli.run.batching import batches
from klein_cli.run.plan import Job

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Pixels = NDArray[numpy.uint8]


class Renderer(Protocol):
    """What the runner needs of a pipeline: recipes of one shape -> (H, W, 3) uint8 pictures."""

    def render(
        self, recipes: Sequence[Recipe], *, on_step: Callable[[int, int], None] | None = None
    ) -> list[Pixels]: ...


class Describe(Protocol):
    """The record that goes into a picture's file, or None for a file without a word in it."""

    def __call__(self, recipe: Recipe, step_down: str | None) -> dict[str, Any] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A picture is whole on disk; no path means that it went to standard output.

    `seconds` is the picture's share of its batch, from prompt to file.
    """

    job: Job
    path: Path | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A picture could not be made or saved. An `error` that is no KleinError is a bug."""

    job: Job
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedDown:
    """A batch failed for this reason and its pictures are now tried one by one."""

    jobs: tuple[Job, ...]
    reason: str


Event = Saved | Failed | SteppedDown


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run works with. `on_progress` hears how many pictures' worth of a batch is done."""

    renderer: Renderer
    describe: Describe
    batch_size: int
    overwrite: bool
    stdout: BinaryIO
    on_progress: Callable[[float], None]

    def events(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Make the pictures of `jobs`; KeyboardInterrupt passes through and leaves no half file."""
        for batch in batches(jobs, self.batch_size):
            yield from self._make(batch)

    def _make(self, batch: tuple[Job, ...], step_down: str | None = None) -> Iterator[Event]:
        started = time.perf_counter()
        try:
            pictures = self._render(batch)
        except Exception as error:
            if len(batch) == 1:
                yield Failed(job=batch[0], error=error)
                return
            # Only words leave this block: the error's frames hold the memory that ran out.
            reason = f"a batch of {len(batch)} failed: {words(error)}"
        else:
            share = (time.perf_counter() - started) / len(batch)
            for job, pixels in zip(batch, pictures, strict=True):
                yield self._save(job, pixels, step_down, share)
            return
        yield SteppedDown(jobs=batch, reason=reason)
        for job in batch:
            yield from self._make((job,), step_down=f"made alone: {reason}")

    def _render(self, batch: tuple[Job, ...]) -> list[Pixels]:
        def on_step(done: int, total: int) -> None:
            self.on_progress(len(batch) * done / total)

        return self.renderer.render([job.recipe for job in batch], on_step=on_step)

    def _save(self, job: Job, pixels: Pixels, step_down: str | None, share: float) -> Event:
        started = time.perf_counter()
        extension = ".png" if job.path is None else job.path.suffix
        try:
            written = self.describe(job.recipe, step_down)
            data = encode(pixels, extension, written, parameters(job.recipe))
            path = self._store(job, data)
        except OSError as error:
            return Failed(job=job, error=_disk_error(job, error))
        except Exception as error:
            return Failed(job=job, error=error)
        return Saved(job=job, path=path, seconds=share + time.perf_counter() - started)

    def _store(self, job: Job, data: bytes) -> Path | None:
        if job.path is None:
            self.stdout.write(data)
            self.stdout.flush()
            return None
        for path in [job.path] if job.exact else candidates(job.path):
            with contextlib.suppress(FileExistsError):
                save(data, path, overwrite=self.overwrite)
                return path
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def words(error: Exception) -> str:
    """An error in one line: what a user reads, or a bug's type and message."""
    if isinstance(error, KleinError):
        return error.message
    return f"{type(error).__name__}: {error}"


def _disk_error(job: Job, error: OSError) -> KleinError:
    what = f"cannot write {job.path or 'to standard output'}: {error.strerror or error}"
    if isinstance(error, FileExistsError):
        return KleinError(what, "-y replaces it; or give another name")
    return KleinError(what, "make room there, or give another -o")
