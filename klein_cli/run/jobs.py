"""A run's jobs: one image each, kept on disk while they wait."""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Any

from klein_cli.errors import KleinError
from klein_cli.recipe import Recipe

_IN_MEMORY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One image to make: `index` counts from 1; no path means standard output.

    `exact` says that the user spelt the path out: when it is taken after all, no other will do.
    `replace` says that what lies there is a torn file of an earlier run. `row` is what a manifest
    knows the job's row by, and `occurrence` tells which of equal rows it is, in a run that is
    resumed; `name` is what an edited image's row would have it called. `recorded` is the number of
    the run in that manifest in which it stands already, 0 if in none, and `altered` says that it
    stands there under another name, or another row. `carried` is what the row says to others than
    klein, its id included.
    """

    index: int
    recipe: Recipe
    path: Path | None
    exact: bool
    replace: bool = False
    row: str = ""
    occurrence: int | None = None
    name: str | None = None
    recorded: int = 0
    altered: bool = False
    carried: Mapping[str, Any] | None = None


class Jobs:
    """Jobs in their order, to be read as often as wanted, in a file without a name.

    A hundred thousand of them take no memory, and the prompts file may change while they are made.
    """

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (closed below)
        weakref.finalize(self, self._file.close)
        self._count = 0

    def add(self, job: Job) -> None:
        """Put a job at the end. Raises KleinError when the temporary folder is full."""
        try:
            self._file.seek(0, os.SEEK_END)
            pickle.dump(job, self._file, pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise KleinError(
                f"cannot keep the plan of the run in {gettempdir()}: {error.strerror or error}",
                "make room there, or point TMPDIR elsewhere",
            ) from None
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        at = 0
        for _ in range(self._count):
            self._file.seek(at)
            job: Job = pickle.load(self._file)
            at = self._file.tell()
            yield job
