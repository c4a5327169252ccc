"""What manifest.jsonl tells: the runs of a folder, and every image that they planned and made.

The file may be a stranger's: what it says is data, checked line by line, and no name in it leaves
the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.output.naming import EXTENSIONS
from klein_cli.recipe import Recipe, identity

FILE = "manifest.jsonl"
FORMAT = 1
BEGINNING = b'{"kind":"run",'

_LONGEST_SECONDS = 1e6


@dataclass(slots=True)
class Item:
    """An image that a manifest knows. `file` is its path within the folder.

    `recipe` and `sha256` are the hashes of what was asked for and of the file's bytes; None until
    it is made. `begun` are those of an image whose file says nothing of itself, from just before
    it is written. `occurrence` tells the images of equal rows apart, from 0; None as long as
    their order tells it. `name` is what its row would have it called, where that is not `file`.
    `carried` is what the row says to others, and is only written. `given` says that a
    row has it already.
    """

    run: int
    index: int
    seed: int
    file: str
    occurrence: int | None = None
    recipe: str | None = None
    sha256: str | None = None
    begun: tuple[str, str] | None = None
    carried: Mapping[str, Any] | None = field(default=None, compare=False)
    name: str | None = field(default=None, compare=False)
    given: bool = field(default=False, compare=False)

    @property
    def own_name(self) -> str:
        """What its row would have it called."""
        return self.name or self.file


@dataclass(slots=True)
class History:
    """What a manifest tells: its runs, and every image by its row.

    `run` is the last run's number, `base` that of the one to resume, whose images count from
    `seed`: the last that had one, unless `resume_from` says otherwise; 0 for none. (Rows that all
    bring seeds, as those of failed.jsonl, need no base.) `settings` is how images were last
    computed; `damaged` counts lines that cannot be read.
    """

    run: int = 0
    base: int = 0
    seed: int | None = None
    settings: dict[str, str] | None = None
    damaged: int = 0
    _bases: dict[int, int] = field(default_factory=dict)
    _others: set[int] = field(default_factory=set)
    _items: dict[tuple[int, int], Item] = field(default_factory=dict)
    _rows: dict[str, list[Item]] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _made: dict[str, Item] = field(default_factory=dict)
    _unmade: dict[tuple[str, int], Item] = field(default_factory=dict)
    _seconds: dict[tuple[int, int, int], tuple[int, float]] = field(default_factory=dict)

    @property
    def next_index(self) -> int:
        """The one behind the images of the base run, or of the last where there is no base."""
        run = self.base or self.run
        return max((index for of, index in self._items if of == run), default=0) + 1

    def resume_from(self, seed: int) -> bool:
        """Make the last run that began with `seed` the base, if there is one, and it alone."""
        if seed in self._bases:
            self.base, self.seed = self._bases[seed], seed
            self._others = set(self._bases.values()) - {self.base}
        return seed in self._bases

    def take(self, row: str, *, own_seed: bool) -> tuple[int, Item | None]:
        """The next occurrence of a row, from 0, and its image; None for a new one.

        Rows are looked for in the last run that knows them. Once `resume_from` has named a run, a
        row without an `own_seed` is looked for in no other that has a seed.
        """
        taken, items = self._taken.get(row, 0), self._last_of(row, own_seed=own_seed)
        self._taken[row] = taken + 1
        item = items[taken] if taken < len(items) else None
        return taken, None if item is None or item.given else item

    def take_named(self, row: str, name: str, *, own_seed: bool) -> Item | None:
        """The image of a row that was planned under the `name` that the row has; given once."""
        items = self._last_of(row, own_seed=own_seed)
        return _give(item for item in items if item.own_name == name)

    def take_renamed(self, row: str, names: Set[str], *, own_seed: bool) -> Item | None:
        """One of a row that was planned under none of the `names` that rows have now: whose source
        was renamed since. Given once.
        """
        items = self._last_of(row, own_seed=own_seed)
        return _give(item for item in items if item.own_name not in names)

    def _last_of(self, row: str, *, own_seed: bool) -> list[Item]:
        """A row's images of the last run that knows it, as `take` tells."""
        if row not in self._rows:
            return []
        if row not in self._settled:
            self._settled.add(row)
            self._rows[row] = _last_known(self._rows[row], set() if own_seed else self._others)
        return self._rows[row]

    def take_unmade(self, file: str, seed: int) -> Item | None:
        """The image that was planned for `file` with this seed and is not made; given once."""
        item = self._unmade.pop((file, seed), None)
        if item is not None:
            item.given = True
        return item

    def made_as(self, file: str) -> Item | None:
        """The image that was last made under this name, and that no row has yet."""
        item = self._made.get(file)
        return None if item is None or item.given else item

    def files(self) -> Iterator[str]:
        """Every name that was ever planned or given, within the folder."""
        return (item.file for item in self._items.values())

    def progress(self) -> tuple[int, int]:
        """(made, planned) images of the last run."""
        last = [item for item in self._items.values() if item.run == self.run]
        return sum(item.sha256 is not None for item in last), len(last)

    def seconds(self, recipe: Recipe) -> float | None:
        """How long an image of this size and number of steps took on average, or None."""
        count, total = self._seconds.get((recipe.width, recipe.height, recipe.steps), (0, 0.0))
        return total / count if count else None

    def add(self, line: dict[str, Any]) -> None:
        """One line of the file. Raises KeyError, TypeError or ValueError when it cannot be read."""
        kind = line["kind"]
        if kind == "run":
            self.run = int(line["run"])
            if line["seed"] is not None:
                self.base, self.seed = self.run, int(line["seed"])
                self._bases[self.seed] = self.base
        elif kind == "planned":
            self._plan(str(line["row"]), _item(line))
        elif kind == "settings":
            self.settings = {str(k): str(v) for k, v in line.items() if k not in ("kind", "run")}
        elif kind == "begun":
            self._known(line).begun = str(line["recipe"]), str(line["sha256"])
        elif kind == "picture":
            self._make(line)

    def settle(self) -> None:
        """When all lines are read: what one run planned and a later one made, as a row of
        failed.jsonl, is made.
        """
        unmade = {(i.file, i.seed): i for i in self._items.values() if i.sha256 is None}
        for item in self._items.values():
            earlier = unmade.get((item.file, item.seed))
            if earlier is None or earlier.run >= item.run:
                continue
            earlier.begun = item.begun or earlier.begun
            if item.sha256 is not None:
                earlier.recipe, earlier.sha256 = item.recipe, item.sha256
        self._unmade = {name: item for name, item in unmade.items() if item.sha256 is None}

    def _known(self, line: dict[str, Any]) -> Item:
        return self._items[int(line["run"]), int(line["index"])]

    def _plan(self, row: str, item: Item) -> None:
        items = self._rows.setdefault(row, [])
        known = self._items.setdefault((item.run, item.index), item)
        if known is item:
            items.append(item)
            return
        # It gets another name, or another row.
        known.file, known.name = item.file, item.name
        if known not in items:
            known.occurrence = item.occurrence
            items.append(known)

    def _make(self, line: dict[str, Any]) -> None:
        item, file = self._known(line), _item(line).file
        hashes = str(line["recipe"]), str(line["sha256"])
        if line["seconds"] is not None:
            shape = int(line["width"]), int(line["height"]), int(line["steps"])
            seconds = float(line["seconds"])
            if not 0 <= seconds <= _LONGEST_SECONDS:
                raise ValueError(f"no image takes {seconds} seconds")
            count, total = self._seconds.get(shape, (0, 0.0))
            self._seconds[shape] = count + 1, total + seconds
        if file != item.file:
            item.name = item.own_name
        item.file, (item.recipe, item.sha256) = file, hashes
        self._made[file] = item


def _give(items: Iterator[Item]) -> Item | None:
    """The first that no row has yet, which from now on has one."""
    item = next((item for item in items if not item.given), None)
    if item is not None:
        item.given = True
    return item


def _last_known(items: list[Item], others: set[int]) -> list[Item]:
    """A row's images, each where it was planned last, not in `others`: a run that begins anew
    forgets all.
    """
    known: list[Item] = []
    for item in items:
        if item.run in others:
            continue
        if item.occurrence is not None:
            del known[item.occurrence :]
        elif known and known[-1].run != item.run:
            known.clear()
        known.append(item)
    return known


def read_history(folder: Path) -> History | None:
    """What the manifest of `folder` tells; None when there is none.

    Raises UsageError when it cannot be read or is not klein's.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    history = History()
    try:
        with open(path, "rb") as file:
            if is_foreign(file.peek()[: len(BEGINNING)]):
                raise _not_ours(path)
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    _read_line(path, number, line, history)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}", "check its permissions"
        ) from None
    history.settle()
    return history


def is_foreign(beginning: bytes) -> bool:
    """Whether a file does not begin as a manifest, not even as a torn one."""
    return not BEGINNING.startswith(beginning)


def recipe_hash(recipe: Recipe) -> str:
    """A hash of everything that an image depends on but how it is computed, in hexadecimal."""
    return hashlib.sha256(_canonical(identity(recipe))).hexdigest()


def row_hash(said: Mapping[str, object]) -> str:
    """A shorter one, of what a row says of one of its images."""
    return hashlib.blake2b(_canonical(said), digest_size=12).hexdigest()


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(table: Mapping[str, object]) -> bytes:
    """One text for one content. What is unsaid leaves no trace, so that fields can be added."""
    said = {key: value for key, value in table.items() if value is not None}
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")


def _read_line(path: Path, number: int, line: bytes, history: History) -> None:
    try:
        entry = json.loads(line)
        if number == 1:
            _check_format(path, entry)
        history.add(entry)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        if number == 1:
            raise _not_ours(path) from None
        history.damaged += 1


def _check_format(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict) or entry.get("kind") != "run" or "format" not in entry:
        raise _not_ours(path)
    if int(entry["format"]) > FORMAT:
        raise UsageError(f"{path} was written by a newer klein", "update klein to resume it")


def _not_ours(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not a manifest of klein's", "move it away, or give another folder"
    )


def _item(line: dict[str, Any]) -> Item:
    file = line["file"]
    if PurePath(file).is_absolute() or ".." in PurePath(file).parts or not file:
        raise ValueError(f"{file} leaves the folder")
    if PurePath(file).suffix.lower() not in EXTENSIONS:
        raise ValueError(f"{file} is not an image")
    occurrence, name = line.get("occurrence"), line.get("name")
    return Item(
        run=int(line["run"]),
        index=int(line["index"]),
        seed=int(line["seed"]),
        file=file,
        occurrence=None if occurrence is None else max(0, int(occurrence)),
        name=None if name is None else str(name),
    )
