"""manifest.jsonl: what runs mean to make in a folder and what they have made there.

One JSON object a line, in order, never changed afterwards:

    {"kind": "run", "format": 1, "run": 1, "klein": VERSION, "model": NAME, "seed": 7}
    {"kind": "planned", "run": 1, "index": 3, "row": HASH, "seed": 9, "file": "0003-a-cat-9.png"}
    {"kind": "settings", "run": 1, "weights": FINGERPRINT, "device": "cuda", ..., "metadata": "yes"}
    {"kind": "begun", "run": 1, "index": 3, "recipe": SHA256, "sha256": SHA256}
    {"kind": "picture", "run": 1, "index": 3, "file": "0003-a-cat-9.png", "seed": 9,
     "recipe": SHA256, "sha256": SHA256, "width": 1024, "height": 1024, "steps": 4, "seconds": 0.3}

A planned image also has, as "carried", what its row says to others than klein: its id, the columns
of a benchmark; and one of a folder of images has the "name" that it should have had, where that was
somebody else's. A run's seed is null when its rows all bring their own. What a run plans when it is
resumed also has an "occurrence": which of its equal rows it is, from 0. An image planned a second
time has another name now, since somebody else's lay under its first, or another row, which was
corrected. Everything planned is written before the first image, and each image as soon as its file
is whole, flushed to the disk; "begun" stands before a file that will say nothing of itself
(--no-metadata). A run holds a lock on the file, so that there is one run in a folder. A line that
a crash or a full disk left torn is passed over, and cut off by the next run.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from klein_cli import __version__
from klein_cli.errors import UsageError
from klein_cli.recipe import Recipe
from klein_cli.run.resume.history import (
    BEGINNING,
    FILE,
    FORMAT,
    History,
    Item,
    is_foreign,
    read_history,
)

_CHUNK = 1000
_BLOCK = 65536


class MovedError(OSError):
    """The manifest that a run writes is no longer the one in its folder."""


class Manifest:
    """A manifest open for one run. Its methods may be called from several threads.

    Those that write raise OSError when the disk refuses, and leave no torn line behind.
    """

    def __init__(self, folder: Path, handle: int) -> None:
        self.folder = folder
        self._handle = handle
        self._size = _end_of_lines(handle)
        self._lock = threading.Lock()

    def history(self) -> History:
        """What is in it. Raises UsageError when it is not klein's."""
        return read_history(self.folder) or History()

    @property
    def empty(self) -> bool:
        """Whether nothing was ever written to it."""
        return self._size == 0

    def check_place(self) -> None:
        """Raise MovedError when the folder, or the file in it, was moved or removed meanwhile."""
        path = self.folder / FILE
        try:
            same = os.path.samestat(os.fstat(self._handle), os.stat(path))
        except OSError:
            same = False
        if not same:
            raise MovedError(errno.ENOENT, f"{path} is gone")

    def begin(self, run: int, *, model: str, seed: int | None) -> None:
        """Begin run number `run`, whose images count from `seed`, or bring their own."""
        head = {"kind": "run", "format": FORMAT, "run": run, "klein": __version__}
        self._append([{**head, "model": model, "seed": seed}])

    def plan(self, items: Iterable[tuple[str, Item]]) -> None:
        """What a run will make, each image with its row; on the disk when this returns."""
        self._append(
            _entry(
                "planned",
                item,
                row=row,
                **({} if item.occurrence is None else {"occurrence": item.occurrence}),
                seed=item.seed,
                file=item.file,
                **({} if item.name in (None, item.file) else {"name": item.name}),
                **({"carried": item.carried} if item.carried else {}),
            )
            for row, item in items
        )

    def begun(self, item: Item) -> None:
        """An image is about to be written."""
        self._append([_entry("begun", item, recipe=item.recipe, sha256=item.sha256)])

    def computed_with(self, run: int, settings: dict[str, str]) -> None:
        """How the images from here on are computed."""
        self._append([{"kind": "settings", "run": run, **settings}])

    def made(self, item: Item, recipe: Recipe, seconds: float | None) -> None:
        """An image is whole on disk; `seconds` is None for one that was found there."""
        hashes = {"recipe": item.recipe, "sha256": item.sha256}
        shape = {"width": recipe.width, "height": recipe.height, "steps": recipe.steps}
        took = None if seconds is None else round(seconds, 3)
        names = {"file": item.file, "seed": item.seed}
        self._append([_entry("picture", item, **names, **hashes, **shape, seconds=took)])

    def _append(self, entries: Iterable[dict[str, Any]]) -> None:
        lines = (json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
        with self._lock:
            self.check_place()
            before = self._size
            try:
                os.ftruncate(self._handle, before)
                while chunk := "".join(islice(lines, _CHUNK)).encode("ascii"):
                    self._size += _write(self._handle, chunk, self._size)
                os.fsync(self._handle)
            except BaseException:
                self._size = before
                with suppress(OSError):
                    os.ftruncate(self._handle, before)
                raise


@contextmanager
def opened(folder: Path) -> Iterator[Manifest]:
    """The manifest of `folder`, locked; both are made where they are missing.

    When nothing was written to it in the end, what was made here is taken away again. Raises
    UsageError when the folder cannot be written in, another run is in it, or the file is not
    klein's.
    """
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(path)
    except OSError as error:
        _remove_empty(made)
        raise UsageError(
            f"cannot write in the folder {folder}: {error.strerror or error}",
            "give -o a folder you can write in",
        ) from None
    try:
        manifest = Manifest(folder, handle)
        try:
            yield manifest
        finally:
            if manifest.empty and not is_foreign(_beginning(handle)):
                path.unlink(missing_ok=True)
                _remove_empty(made)
    finally:
        os.close(handle)


def _entry(kind: str, item: Item, **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "run": item.run, "index": item.index, **facts}


def _locked(path: Path) -> int:
    """A handle of the file for reading and writing, nobody else's until it is closed."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _lock(handle, path)
            # Between opening and locking, a run that wrote nothing may have taken the file away.
            if os.path.lexists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another run is writing into {path.parent}", "wait for it, or give another folder"
        ) from None
    except OSError:
        # A file system without locks: as good as it was before there were any.
        return


def _write(handle: int, data: bytes, at: int) -> int:
    """All of `data` at an offset; returns how much that is."""
    os.lseek(handle, at, os.SEEK_SET)
    written = 0
    while written < len(data):
        written += os.write(handle, data[written:])
    return written


def _beginning(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, len(BEGINNING))


def _end_of_lines(handle: int) -> int:
    """The size of the file without a last line that has no end."""
    at = os.lseek(handle, 0, os.SEEK_END)
    while at:
        start = max(0, at - _BLOCK)
        os.lseek(handle, start, os.SEEK_SET)
        end = os.read(handle, at - start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        at = start
    return 0


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
