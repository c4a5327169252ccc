"""Jobs -> saved images, with what became of each as it happens.

Batches are drawn by an executor while the images before them are encoded and written. An image
that fails does not stop the others: its batch is drawn again one by one. Memory that runs out is a
step down (`klein_cli.run.fallback`). A disk that refuses, or a model whose weights do, stops the
run, with what is done intact.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from klein_cli.errors import KleinError, ModelError, OutOfMemoryError
from klein_cli.output.carry import DRAWN, Carry
from klein_cli.output.metadata import parameters
from klein_cli.output.naming import candidates
from klein_cli.output.png import encode, save
from klein_cli.run.batching import WINDOW, Batch, batches
from klein_cli.run.events import Event, Failed, Notice, Saved, Stopped, words
from klein_cli.run.executors.executor import BatchResult, Executor, WorkerDied
from klein_cli.run.fallback import MemoryFallback
from klein_cli.run.jobs import Job
from klein_cli.run.resume.journal import RunJournal
from klein_cli.run.resume.manifest import MovedError
from klein_cli.run.writers import Writers

if TYPE_CHECKING:
    from klein_cli.images.store import ImageStore
    from klein_cli.run.fallback import Pixels

_DEATHS = 3
"""Workers that may die over the same jobs before these are given up."""

_DISK_STOPS = {
    getattr(errno, name, None)
    for name in ["ENOSPC", "EDQUOT", "EROFS", "EIO", "ENODEV", "ESTALE", "EACCES", "EPERM"]
}
"""What is wrong with the disk and not with one file on it."""


class Run:
    """One run. `threads` write the images, none means that drawing waits for the writing. Batches
    are made of a `window` of jobs, which are waited for: 1 for jobs that come one by one.

    The `journal` keeps the record of a run that can be resumed; with `no_metadata`, images have no
    record in them. `images` has what was given, of which results `carry` what they are to; if
    it `reads_ahead`, what the next batch edits is decoded while one is drawn. `writing` counts the
    seconds that files held up the drawing, or its end.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        batch_size: int,
        overwrite: bool,
        stdout: BinaryIO,
        journal: RunJournal | None = None,
        no_metadata: bool = False,
        threads: int = 0,
        window: int = WINDOW,
        images: ImageStore | None = None,
        reads_ahead: bool = False,
        carry: Carry = DRAWN,
    ) -> None:
        self._executor = executor
        self._batch_size = batch_size
        self._window = window
        self._overwrite = overwrite
        self._stdout = stdout
        self._journal = journal
        self._no_metadata = no_metadata
        self._images = images
        self._reads_ahead = reads_ahead
        self._carry = carry
        self._writers: Writers[tuple[Event, ...]] = Writers(threads)
        self._fallback = MemoryFallback()
        self._retries: deque[Batch] = deque()
        self._stop: KleinError | None = None
        self.writing = 0.0

    def events(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Make the images of `jobs`.

        KeyboardInterrupt passes through: what was drawn by then is still written, `rest` tells of
        it, and there is no half file.
        """
        planned = self._read_ahead(batches(jobs, self._batch_size, window=self._window))
        ahead = chain.from_iterable(map(self._fallback.batches, planned))
        try:
            while self._stop is None and self._feed(ahead):
                yield from self._take()
                yield from self._recorded(self._writers.finished())
            yield from self.rest()
            if self._stop is not None:
                yield Stopped(error=self._stop)
        finally:
            self._writers.close()

    def _read_ahead(self, planned: Iterator[tuple[Job, ...]]) -> Iterator[tuple[Job, ...]]:
        """The same; while one is drawn, the images of the next are decoded."""
        if self._images is None or not self._reads_ahead:
            yield from planned
            return
        current = next(planned, None)
        while current is not None:
            following = next(planned, None)
            self._images.read_ahead(job.recipe for job in following or ())
            yield current
            current = following

    def rest(self) -> Iterator[Event]:
        """What became of the images that were drawn but not reported yet; waits for them."""
        results = self._writers.rest()
        while True:
            with self._held_up():
                result = next(results, None)
            if result is None:
                return
            yield from self._recorded((result,))

    @contextlib.contextmanager
    def _held_up(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.writing += time.perf_counter() - started

    def _feed(self, ahead: Iterator[Batch]) -> bool:
        """Submit as much as is begun or lies ready; whether there is anything to wait for."""
        while self._executor.capacity():
            batch = self._retries.popleft() if self._retries else next(ahead, None)
            if batch is None:
                return self._executor.busy()
            self._executor.submit(batch)
        return True

    def _take(self) -> Iterator[Event]:
        try:
            result = self._executor.next()
        except KleinError as error:
            self._stop = error
        else:
            if result is not None:
                yield from self._conclude(result)
        for text in self._executor.notices():
            yield Notice(text=text)

    def _conclude(self, result: BatchResult) -> Iterator[Event]:
        batch, error = result.batch, result.error
        if error is None:
            share = result.seconds / len(batch.jobs)
            for job, pixels in zip(batch.jobs, result.images, strict=True):
                record = (
                    None if self._no_metadata else result.origin.record(job.recipe, batch.step_down)
                )
                with self._held_up():
                    self._writers.put(partial(self._write, job, pixels, record, share))
            return
        if isinstance(error, ModelError):  # it would fail them all
            self._stop = self._stop or error
            return
        retries, notice = self._instead(batch, error)
        if notice is not None:
            yield Notice(text=notice)
        self._retries.extendleft(reversed(retries))
        if not retries:
            failures = (Failed(job=job, error=error) for job in batch.jobs)
            yield from self._recorded((failed,) for failed in failures)

    def _instead(self, batch: Batch, error: Exception) -> tuple[list[Batch], str | None]:
        """What to try after a batch failed, nothing if that was all, and what to say of it."""
        if isinstance(error, WorkerDied) and batch.deaths + error.drawing < _DEATHS:
            return [replace(batch, deaths=batch.deaths + error.drawing)], None
        if isinstance(error, OutOfMemoryError):
            return self._fallback.step_down(batch, error)
        if len(batch.jobs) == 1:
            return [], None
        reason = f"a batch of {len(batch.jobs)} failed: {words(error)}"
        return batch.alone(reason), f"{reason}; its images are made one by one"

    def _recorded(self, results: Iterable[tuple[Event, ...]]) -> Iterator[Event]:
        """The events, with failures put on record; a stop is kept until all else is reported."""
        for event in chain.from_iterable(results):
            if isinstance(event, Stopped):
                self._stop = self._stop or event.error
                continue
            if isinstance(event, Failed) and self._journal is not None:
                try:
                    self._journal.failed(event.job, words(event.error))
                except OSError as error:
                    self._stop = self._stop or self._disk_error(self._journal.failures, error)
            yield event

    def _write(
        self, job: Job, pixels: Pixels, record: dict[str, Any] | None, share: float
    ) -> tuple[Event, ...]:
        """Encode, save and record one image; in a thread beside the drawing, if there are any."""
        started = time.perf_counter()
        extension = ".png" if job.path is None else job.path.suffix
        try:
            pixels, extras = self._carry.of(job.recipe, pixels, self._images)
            data = encode(pixels, extension, record, parameters(job.recipe), extras)
            digest = sha256(data).hexdigest()
            if self._journal is not None:
                self._journal.check_place()
                if self._no_metadata:
                    self._journal.begun(job, digest)
            path = self._store(job, data)
        except OSError as error:
            error = self._moved() or error
            failure = self._disk_error(job.path, error)
            if error.errno in _DISK_STOPS or isinstance(error, MovedError):
                return (Stopped(error=failure),)
            return (Failed(job=job, error=failure),)
        except Exception as error:
            return (Failed(job=job, error=error),)
        saved = Saved(job=job, path=path, seconds=share + time.perf_counter() - started)
        if self._journal is None or path is None:
            return (saved,)
        try:
            self._journal.saved(job, path, digest, saved.seconds)
        except OSError as error:
            return saved, Stopped(error=self._disk_error(self._journal.manifest, error))
        return (saved,)

    def _moved(self) -> MovedError | None:
        """What an error of the disk comes of, where the folder is no longer in its place."""
        try:
            if self._journal is not None:
                self._journal.check_place()
        except MovedError as moved:
            return moved
        return None

    def _store(self, job: Job, data: bytes) -> Path | None:
        if job.path is None:
            self._stdout.write(data)
            self._stdout.flush()
            return None
        overwrite, swept = self._overwrite or job.replace, self._journal is not None
        for path in [job.path] if job.exact else candidates(job.path):
            with contextlib.suppress(FileExistsError):
                save(data, path, overwrite=overwrite, swept=swept)
                return path
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _disk_error(self, path: Path | None, error: OSError) -> KleinError:
        if isinstance(error, MovedError):
            return KleinError(
                f"{error.strerror}: the folder was moved or emptied while the run went on",
                "move it back, then give the same command with --resume",
            )
        what = f"cannot write {path or 'to standard output'}: {error.strerror or error}"
        if isinstance(error, FileExistsError):
            return KleinError(what, "-y replaces it; or give another name")
        if self._journal is not None:
            return KleinError(what, "fix that, then give the same command with --resume")
        where = "send it elsewhere" if path is None else "make room there, or give another -o"
        return KleinError(what, where)
