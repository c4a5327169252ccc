"""The journal of a run that can be resumed: its manifest, and the rows that failed.

Both lie in the output folder. `failed.jsonl` is a prompts file: what failed can be tried again by
itself. A row leaves it at the end of a run when its image is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klein_cli.errors import KleinError
from klein_cli.output.metadata import Origin
from klein_cli.output.png import save, sweep
from klein_cli.presets import Preset
from klein_cli.prompts.files import STDIN
from klein_cli.prompts.rows import Row, row_of
from klein_cli.recipe import ALPHA, Adapter, Recipe
from klein_cli.run.jobs import Job
from klein_cli.run.plan import Plan
from klein_cli.run.resume.history import FILE, History, Item, recipe_hash
from klein_cli.run.resume.manifest import Manifest

if TYPE_CHECKING:
    from klein_cli.checkpoints.lora.store import AdapterStore
    from klein_cli.images.store import ImageStore

FAILED = "failed.jsonl"

_BEGINNING = b'{"prompt": '
"""Of a row that was written here."""


class RunJournal:
    """What is written down while a run goes on.

    `saved` may be called from several threads. When the disk refuses, `open` and `computed_with`
    raise KleinError, the other methods that write OSError, for the run to tell.
    """

    def __init__(
        self,
        manifest: Manifest,
        history: History,
        *,
        resumed: bool,
        preset: Preset,
        images: ImageStore | None = None,
        adapters: AdapterStore | None = None,
    ) -> None:
        self.manifest = manifest.folder / FILE
        self.failures = manifest.folder / FAILED
        self._manifest = manifest
        self._preset = preset
        self._images = images
        self._adapters = adapters
        self._base = history.base if resumed else 0
        self._last = history.run
        self._resumed = resumed
        self._run = 0
        self._failed: set[str] = set()
        self._settings = history.settings if resumed else None

    def open(self, planned: Plan, *, model: str, seed: int) -> None:
        """Write down what is planned, after clearing away what a killed run left half written."""
        with self._disk_errors():
            sweep(self._folders(planned))
            self._begin(model, seed if planned.uses_seed else None)
            new = (job for job in planned.jobs if not job.recorded or job.altered)
            self._manifest.plan((job.row, self._item(job)) for job in new)
            for item, recipe in planned.adopted:
                self._manifest.made(item, recipe, None)

    def _begin(self, model: str, seed: int | None) -> None:
        if self._base or (self._resumed and seed is None):
            self._run = self._base or self._last
        else:
            self._run = self._last + 1
            self._manifest.begin(self._run, model=model, seed=seed)

    def computed_with(self, origin: Origin, *, no_metadata: bool) -> str | None:
        """Write down by which weights and how images are computed, and whether they tell of it
        (not if `no_metadata`); what to say if the earlier ones were made otherwise.
        """
        now = {"weights": str(origin.model.weights)}
        now |= {name: str(value) for name, value in asdict(origin.settings).items()}
        if "threads" in origin.provenance:
            now["threads"] = origin.provenance["threads"]
        now["metadata"] = "no" if no_metadata else "yes"
        before = self._settings or {}
        if now == before:
            return None
        with self._disk_errors():
            self._manifest.computed_with(self._run, now)
        # An older manifest does not tell of everything.
        changed = [name for name in now if before.get(name, now[name]) != now[name]]
        if not changed:
            return None
        return "the images so far were made with " + ", ".join(
            f"{name} {before[name]}, not {now[name]}" for name in changed
        )

    def check_place(self) -> None:
        """Raise OSError when the folder or its manifest was moved or removed since then."""
        self._manifest.check_place()

    def begun(self, job: Job, sha256: str) -> None:
        """An image is about to be written whose file tells nothing of it."""
        self._manifest.begun(self._made(job, job.path, sha256))

    def saved(self, job: Job, path: Path, sha256: str, seconds: float) -> None:
        """An image is whole at `path`."""
        self._manifest.made(self._made(job, path, sha256), job.recipe, seconds)

    def failed(self, job: Job, error: str) -> None:
        """An image could not be made."""
        output = self._item(job).file
        given = self._given(job.recipe)
        row = {**row_of(job.recipe, self._preset), **given, "n": 1, "output": output}
        row |= {name: said for name, said in (job.carried or {}).items() if name not in row}
        self._fail(row, output, error)

    def refused(self, row: Row, error: str) -> None:
        """A row of a folder of images cannot be edited; it is known by the name it would have."""
        assert row.name is not None
        images = [self._from_here(path) for path in row.image or ()]
        self._fail({"prompt": row.prompt, "image": images, "output": row.name}, row.name, error)

    def _given(self, recipe: Recipe) -> dict[str, Any]:
        """What a row says of a recipe's images and adapters: their files, as they are found from
        here.
        """
        said: dict[str, Any] = {}
        if recipe.references:
            said["image"] = [self._file(reference.sha256) for reference in recipe.references]
        if recipe.mask is not None:
            mask = recipe.mask
            said["mask"] = ALPHA if mask.alpha else mask.sha256 and self._file(mask.sha256)
            said["expand"] = mask.expand
        said["lora"] = [self._lora(adapter) for adapter in recipe.adapters]
        return {name: value for name, value in said.items() if value}

    def _lora(self, adapter: Adapter) -> str:
        assert self._adapters is not None
        return f"{self._from_here(self._adapters.file(adapter).path)}={adapter.weight!r}"

    def _file(self, sha256: str) -> str:
        assert self._images is not None
        source = self._images.source(sha256)
        return self._from_here(source) if isinstance(source, Path) else STDIN

    def _from_here(self, path: str | Path) -> str:
        """A path from the folder in which failed.jsonl lies."""
        return os.path.relpath(path, self._manifest.folder)

    def _fail(self, row: dict[str, Any], output: str, error: str) -> None:
        self._failed.add(output)
        line = _json_line({**row, "error": error})
        with open(self.failures, "a+b") as file:
            if file.tell():  # a line without an end is somebody's, or torn
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """At the end of a run: leave in failed.jsonl what is still missing, each row once, and what
        is none of ours.
        """
        try:
            data = self.failures.read_bytes()
        except FileNotFoundError:
            return
        rows = dict(_rows(data))
        missing = b"".join(line for output, line in rows.items() if self._is_missing(output))
        if not missing:
            self.failures.unlink()
        elif missing != data:
            save(missing, self.failures, overwrite=True, swept=True)

    def _is_missing(self, output: str | bytes) -> bool:
        return (
            isinstance(output, bytes)
            or output in self._failed
            or not os.path.lexists(self._manifest.folder / output)
        )

    def _folders(self, planned: Plan) -> set[Path]:
        """Every folder that a run like this one may have left something in."""
        top = self._manifest.folder
        lowest = {(top / item.file).parent for item, _ in planned.adopted} | planned.folders
        inside = {
            place
            for folder in lowest
            for place in (folder, *folder.parents)
            if place.is_relative_to(top)
        }
        # A folder with a manifest of its own may have a run of its own.
        return {place for place in inside if not os.path.lexists(place / FILE)} | {top}

    def _made(self, job: Job, path: Path | None, sha256: str) -> Item:
        item = self._item(job, path)
        item.recipe, item.sha256 = recipe_hash(job.recipe), sha256
        return item

    def _item(self, job: Job, path: Path | None = None) -> Item:
        file = os.path.relpath(path or job.path or "", self._manifest.folder)
        run = job.recorded or self._run
        return Item(
            run=run,
            index=job.index,
            seed=job.recipe.seed,
            file=file,
            occurrence=job.occurrence,
            name=job.name,
            carried=job.carried,
        )

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KleinError(
                f"cannot write {self.manifest}: {error.strerror or error}",
                "make room there, or give another -o",
            ) from None


def _json_line(row: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return (json.dumps(row) + "\n").encode()


def _rows(data: bytes) -> Iterator[tuple[str | bytes, bytes]]:
    """(output, line) of each row; of a line that is no row of ours it is the line itself, and one
    that a crash tore is left out.
    """
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line)
            yield (row["output"] if isinstance(row["output"], str) else line), line
        except (ValueError, RecursionError):
            if not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
                yield line, line
        except (KeyError, TypeError):
            yield line, line
