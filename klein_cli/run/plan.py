"""Rows -> Jobs: every picture of a run with its recipe and its path, settled before work starts.

Everything that can be wrong with a run is found here, without the model: bad lines, sizes the
model does not make, names that leave the folder, files that would be replaced. Rows are read as a
stream and jobs are kept on disk, so that their number does not matter.

When a run is taken up again, rows find their pictures in the manifest's history: by what they say
and by which of the equal ones they are. What is there is not made again, and what is not keeps its
seed and its name, wherever its row has moved to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import chain, islice
from pathlib import Path

from klein_cli.errors import UsageError
from klein_cli.output.naming import STDOUT, Destination, Names, destination
from klein_cli.output.png import check_room, check_writable
from klein_cli.presets import Preset
from klein_cli.prompts.files import BadRow, complain, name_of
from klein_cli.prompts.rows import Defaults, Row, own_seeds, recipe_of
from klein_cli.recipe import CPU_SEEDS, Recipe, check_guidance
from klein_cli.run.jobs import Job, Jobs
from klein_cli.run.resume.existing import Found, look
from klein_cli.run.resume.history import History, Item, file_hash, recipe_hash, row_hash

__all__ = ["Adopted", "Job", "Output", "Plan", "check_folders", "check_sides", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A picture that was found whole, and that the manifest does not know yet."""

    item: Item
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The jobs of a run in order, and what the user should be told about them.

    `done` pictures are there already, `adopted` are those of them that want recording. `folders`
    are those that are written in. `uses_seed`: some picture takes its seed from the run's.
    `without_effect`: what rows ask for that this model ignores. `long_seed`: the first that has
    more bits than the CPU's generator reads, or None.
    """

    jobs: Jobs
    done: int
    adopted: tuple[Adopted, ...]
    folders: frozenset[Path]
    uses_seed: bool
    without_effect: tuple[str, ...]
    long_seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the user said about files: -o, -y, and the day that {date} stands for.

    `bare` files hold no recipe, so that it need not fit.
    """

    path: str | None
    overwrite: bool
    today: date
    bare: bool = False


def plan(
    rows: Iterable[Row | BadRow],
    *,
    source: str,
    preset: Preset,
    defaults: Defaults,
    seed: int,
    output: Output,
    history: History | None = None,
) -> Plan:
    """Give every picture its recipe and its path; picture k (from 0) gets `seed` + k.

    `source` is the prompts file, or "" for a typed prompt. With a `history`, whose seed `seed`
    then is, only what is missing becomes a job. Raises UsageError, for a prompts file one that
    names all its bad lines.
    """
    rows = iter(rows)
    head = list(islice(rows, 2))
    if not head:
        raise UsageError(f"{name_of(source)} holds no prompts", "write one prompt a line")
    # What is wrong with all rows is no row's fault.
    check_sides(recipe_of(Row(prompt="a"), replace(defaults, wildcards=False), seed), preset)
    where = _destination(head, output, defaults)
    names = Names(where, overwrite=output.overwrite, today=output.today)
    planner = _Planner(preset, defaults, seed, history, where, names, output)
    for row in chain(head, rows):
        planner.add(row)
    if planner.faults:
        complain(source, sorted(planner.faults, key=lambda fault: fault.line))
    return planner.plan()


def check_folders(folders: Iterable[Path], *, swept: bool = False) -> None:
    """Raise UsageError unless every folder of the run can be written in.

    `swept` if the run keeps a manifest, and with it the right to clear up after killed ones.
    """
    for folder in folders:
        check_writable(folder, swept=swept)


def check_sides(recipe: Recipe, preset: Preset) -> None:
    """Raise UsageError for a picture that the model does not make."""
    for name, pixels in (("width", recipe.width), ("height", recipe.height)):
        if not preset.min_side <= pixels <= preset.max_side:
            raise UsageError(
                f"{name} {pixels} is out of range for {preset.name}",
                f"use {preset.min_side} to {preset.max_side}",
            )


@dataclass(slots=True)
class _Planner:
    """Takes rows one by one; what is wrong with them gathers in `faults`."""

    preset: Preset
    defaults: Defaults
    seed: int
    history: History | None
    where: Destination
    names: Names
    output: Output
    faults: list[BadRow] = field(default_factory=list)
    _jobs: Jobs = field(default_factory=Jobs)
    _adopted: list[Adopted] = field(default_factory=list)
    _done: int = 0
    _folders: set[Path] = field(default_factory=set)
    _uses_seed: bool = False
    _ignored: set[str] = field(default_factory=set)
    _long_seed: int | None = None
    _next_index: int = 1
    _as_written: Defaults = field(init=False)

    def __post_init__(self) -> None:
        self._as_written = replace(self.defaults, wildcards=False)
        if self.history:
            self._next_index = self.history.next_index
            for file in self.history.files():
                self.names.reserve(self.where.folder / file)

    def add(self, row: Row | BadRow) -> None:
        """Plan the pictures of a row. Raises UsageError for what is no row's fault."""
        if isinstance(row, BadRow):
            self.faults.append(row)
            return
        several = _makes_several(row, self.defaults)
        try:
            with _row_faults():
                seeds, row = own_seeds(row, self.defaults), self._guided(row)
            for number, seed in enumerate(seeds, start=1):
                self._uses_seed |= seed is None
                self._add_picture(row, seed, number if several else None)
        except _RowFault as fault:
            message, hint = fault.args
            self.faults.append(BadRow(line=row.line, message=message, hint=hint))

    def plan(self) -> Plan:
        """What has been planned, when there are no faults."""
        return Plan(
            jobs=self._jobs,
            done=self._done,
            adopted=tuple(self._adopted),
            folders=frozenset(self._folders),
            uses_seed=self._uses_seed,
            without_effect=tuple(sorted(self._ignored)),
            long_seed=self._long_seed,
        )

    def _guided(self, row: Row) -> Row:
        """The row less what its model ignores. Raises UsageError for what is no guidance."""
        if row.guidance is not None:
            check_guidance(row.guidance)
        if not self.preset.distilled:
            return row
        self._ignored.update(
            name for name in ("guidance", "negative_prompt") if getattr(row, name) is not None
        )
        return replace(row, guidance=None, negative_prompt=None)

    def _add_picture(self, row: Row, own: int | None, number: int | None) -> None:
        with _row_faults():
            asked = recipe_of(row, self._as_written, own or 0)
            check_sides(asked, self.preset)
        key = _row_key(row, own, asked, self.defaults)
        occurrence, item = self._known(key, own)
        by_name = item is None
        item = item or self._waiting(row, own)
        if item is None:
            index = self._next_index
            seed = self.seed + index - 1 if own is None else own
        else:
            index, seed = item.index, item.seed
        if seed >= CPU_SEEDS and self._long_seed is None:
            self._long_seed = seed
        with _row_faults():
            recipe = recipe_of(row, self.defaults, seed)
        if item is None:
            self._next_index += 1
            path, wreck = self._new_path(row, index, number, recipe), False
        else:
            settings = self.history.settings if self.history else None
            found = look(self.where.folder / item.file, recipe, item, settings)
            if found in (Found.MADE, Found.UNRECORDED):
                self._keep(item, recipe, found)
                return
            path, wreck = self._known_path(row, item, found), found is Found.WRECK
        if path is not None:
            if not self.output.bare:
                with _row_faults():
                    check_room(recipe, path.suffix)
            self._folders.add(path.parent)
        exact = self.where.exact and row.output is None
        recorded = item.run if item else 0
        altered = item is not None and (by_name or path != self.where.folder / item.file)
        self._jobs.add(
            Job(
                index=index,
                recipe=recipe,
                path=path,
                exact=exact,
                replace=wreck,
                row=key,
                occurrence=occurrence,
                recorded=recorded,
                altered=altered,
            )
        )

    def _known(self, key: str, own: int | None) -> tuple[int | None, Item | None]:
        """Which of equal rows it is, and its picture in the history."""
        if self.history is None:
            return None, None
        return self.history.take(key, own_seed=own is not None)

    def _waiting(self, row: Row, own: int | None) -> Item | None:
        """What was planned for a row's own name and seed and is not made: that of a row in
        failed.jsonl, or of one that has been corrected.
        """
        if self.history is None or row.output is None or own is None:
            return None
        return self.history.waiting(row.output, own)

    def _new_path(self, row: Row, index: int, number: int | None, recipe: Recipe) -> Path | None:
        if not self.where.template:
            return None
        if row.output is None:
            return self.names.of(index, recipe)
        with _row_faults():
            return self.names.of_row(row.output, number)

    def _known_path(self, row: Row, item: Item, found: Found) -> Path:
        path = self.where.folder / item.file
        if found is not Found.FOREIGN or self.output.overwrite:
            return path
        if self.where.exact and row.output is None:
            raise UsageError(f"{path} is another picture now", "-y replaces it; or move it away")
        return self.names.another(path)

    def _keep(self, item: Item, recipe: Recipe, found: Found) -> None:
        self._done += 1
        if found is Found.UNRECORDED:
            sha256 = file_hash(self.where.folder / item.file)
            known = replace(item, recipe=recipe_hash(recipe), sha256=sha256)
            self._adopted.append(Adopted(item=known, recipe=recipe))


class _RowFault(Exception):
    """What is wrong with a row: (message, hint)."""


@contextmanager
def _row_faults() -> Iterator[None]:
    """Errors in here are a row's own, to be reported with its line."""
    try:
        yield
    except UsageError as error:
        raise _RowFault(error.message, error.hint) from None


def _destination(rows: list[Row | BadRow], output: Output, defaults: Defaults) -> Destination:
    """Where the pictures go, given the first two rows of a run."""
    several = len(rows) > 1 or any(
        isinstance(row, Row) and _makes_several(row, defaults) for row in rows
    )
    if output.path != STDOUT:
        return destination(output.path, several=several)
    if several:
        raise UsageError("-o - writes one picture, and this run makes several", "give a folder")
    if any(isinstance(row, Row) and row.output is not None for row in rows):
        raise UsageError("-o - leaves no place for a row's output", "give a folder")
    return Destination(template="", folder=Path(), exact=True)


def _makes_several(row: Row, defaults: Defaults) -> bool:
    try:
        return len(list(islice(own_seeds(row, defaults), 2))) > 1
    except UsageError:
        return False  # it is reported when the row is planned


def _row_key(row: Row, own: int | None, asked: Recipe, defaults: Defaults) -> str:
    """A hash of all that a row says of one of its pictures: what it is known by in a manifest.

    The run's seed is no part of it, so that the row finds its picture, and with it its seed, again.
    """
    wildcards = defaults.wildcards or None
    return row_hash(asdict(asked) | {"seed": own, "output": row.output, "wildcards": wildcards})
