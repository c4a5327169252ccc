"""Rows -> Jobs: every image of a run with its recipe and its path, settled before work starts.

Everything that can be wrong with a run is found here, without the model: bad lines, sizes the
model does not make, names that leave the folder, files that would be replaced. Rows are read as a
stream and jobs are kept on disk, so that their number does not matter.

When a run is resumed, rows find their images in the manifest's history: by what they say
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
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.output.naming import Destination, Names, Place
from klein_cli.output.png import check_kept, check_room, check_writable, keeps_pixels
from klein_cli.prompts.columns import BadRow
from klein_cli.prompts.files import name_of, refuse_rows
from klein_cli.prompts.rows import (
    Defaults,
    Inputs,
    Row,
    asked_for,
    ignored,
    makes_several,
    own_seeds,
    recipe_of,
)
from klein_cli.recipe import CPU_SEEDS, Adapter, Mask, Recipe, Reference, check_guidance
from klein_cli.run.adapters import InputAdapters, tags_in
from klein_cli.run.inputs import InputImages
from klein_cli.run.jobs import Job, Jobs
from klein_cli.run.resume.existing import Existing, look
from klein_cli.run.resume.history import History, Item, file_hash, recipe_hash, row_hash


@dataclass(slots=True, kw_only=True)
class Plan:
    """The jobs of a run in order, and what the user should know about them.

    `done` images are there already, `adopted` are those of them that were found whole and that
    the manifest does not know yet. `folders` are those that are written in. `uses_seed`: some
    image takes its seed from the run's. `without_effect`: what rows ask for that this model
    ignores. `long_seed`: the first that has more bits than the CPU's generator reads, or None.
    `refused` are the rows of a folder of images that cannot be edited, each with the reason.
    `resized` says of the first edit that does not get its image's size why that is so;
    `encoded_again`: some file does not keep, bit for bit, what its mask keeps; `tag` says what the
    first prompt means that names an adapter in another program's way.
    """

    jobs: Jobs = field(default_factory=Jobs)
    done: int = 0
    adopted: list[tuple[Item, Recipe]] = field(default_factory=list)
    folders: set[Path] = field(default_factory=set)
    uses_seed: bool = False
    without_effect: set[str] = field(default_factory=set)
    long_seed: int | None = None
    refused: list[tuple[Row, UsageError]] = field(default_factory=list)
    resized: str | None = None
    tag: str | None = None
    encoded_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the user asked of files: -o, -y, and the day that {date} stands for.

    With `no_metadata`, files hold no recipe, so that it need not fit. With `keep_format`, pixels
    that a mask keeps may be encoded again.
    """

    where: Destination
    overwrite: bool
    today: date
    no_metadata: bool = False
    keep_format: bool = False

    def check(self, recipe: Recipe, path: Path) -> None:
        """Raise UsageError when the file at `path` cannot hold what the image of `recipe` is to."""
        if not self.no_metadata:
            check_room(recipe, path.suffix)
        if not self.keep_format:
            check_kept(recipe, path.suffix)


def plan(
    rows: Iterable[Row | BadRow],
    *,
    source: str,
    defaults: Defaults,
    seed: int,
    output: Output,
    images: InputImages,
    adapters: InputAdapters | None = None,
    history: History | None = None,
    one_by_one: bool = False,
) -> Plan:
    """Give every image its recipe and its path; image k (from 0) gets `seed` + k.

    `source` is the prompts file, or "" for a typed prompt; `images` finds what its rows are to
    edit, and `adapters` what is to change the model. With a `history`, whose seed `seed` then is,
    only what is missing becomes a job. Raises UsageError, for a prompts file one that names all its
    bad lines; rows that stand `one_by_one` do not stop each other, and gather in the plan.
    """
    rows = list(rows) if one_by_one else iter(rows)  # no more of them than a folder holds
    row_names = _names(rows) if isinstance(rows, list) else frozenset()
    rows = iter(rows)
    head = list(islice(rows, 2))
    if not head:
        raise UsageError(f"{name_of(source)} holds no prompts", "write one prompt a line")
    # What is wrong with all rows is not the fault of one.
    silent = Row(prompt="a")
    inputs = _with_adapters(images.of_options(defaults), silent, defaults, adapters)
    recipe_of(silent, defaults, seed, inputs)
    where = output.where.of(several=_several(head, defaults))
    if where.is_stdout and any(isinstance(row, Row) and row.output is not None for row in head):
        raise UsageError("-o - cannot be combined with a row's output", "give a folder")
    names = Names(where, overwrite=output.overwrite, today=output.today)
    planner = Planner(
        defaults, seed, history, where, names, output, images, adapters, one_by_one, row_names
    )
    for row in chain(head, rows):
        planner.add(row)
    if planner.bad_rows:
        refuse_rows(source, sorted(planner.bad_rows, key=lambda fault: fault.line))
    return planner.plan


def check_folders(folders: Iterable[Path], *, swept: bool = False) -> None:
    """Raise UsageError unless every folder of the run can be written in.

    `swept` if the run keeps a manifest, and with it the right to clear up after killed ones.
    """
    for folder in folders:
        check_writable(folder, swept=swept)


@dataclass(slots=True)
class Planner:
    """Takes rows one by one into a `plan`; what is wrong with them gathers in `bad_rows`."""

    defaults: Defaults
    seed: int
    history: History | None
    where: Destination
    names: Names
    output: Output
    images: InputImages
    adapters: InputAdapters | None
    one_by_one: bool
    row_names: frozenset[str] = frozenset()
    bad_rows: list[BadRow] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    _next_index: int = 1
    _rows: int = 0

    def __post_init__(self) -> None:
        if self.history:
            self._next_index = self.history.next_index
            for file in self.history.files():
                self.names.reserve(self.where.folder / file)

    def add(self, row: Row | BadRow) -> None:
        """Plan the images of a row. Raises UsageError for what is not a row's fault."""
        if isinstance(row, BadRow):
            self.bad_rows.append(row)
            return
        self._rows += 1
        try:
            with _row_faults():
                several = makes_several(row, self.defaults)
                if row.guidance is not None:  # even one that is ignored
                    check_guidance(row.guidance)
                inputs = self.images.of(row, self.defaults)
                inputs = _with_adapters(inputs, row, self.defaults, self.adapters)
            self.plan.without_effect.update(ignored(row, self.defaults.preset))
            self.plan.tag = self.plan.tag or next(tags_in(row.prompt), None)
            for number, seed in enumerate(own_seeds(row, self.defaults), start=1):
                self.plan.uses_seed |= seed is None
                self._add_image(row, inputs, seed, number if several else None)
        except _RowFault as fault:
            message, hint = fault.args
            if self.one_by_one:
                self.plan.refused.append((row, UsageError(message, hint)))
            else:
                self.bad_rows.append(BadRow(line=row.line, message=message, hint=hint))

    def _add_image(self, row: Row, inputs: Inputs, own: int | None, number: int | None) -> None:
        with _row_faults():
            key = _row_key(row, own, self.defaults, inputs)
        occurrence: int | None = None
        item: Item | None = None
        if self.history is not None and row.name is None:
            occurrence, item = self.history.take(key, own_seed=own is not None)
        elif self.history is not None and row.name is not None:
            item = self._named(row, row.name, key, inputs, own_seed=own is not None)
        unmade = None if item else self._unmade(row, own)
        known = item or unmade
        if known:
            job = self._planned_before(row, inputs, known)
        else:
            job = self._new(row, inputs, own, number)
        if job is None:
            return
        if job.path is not None:
            with _row_faults():
                self.output.check(job.recipe, job.path)
            self.plan.encoded_again |= not keeps_pixels(job.recipe, job.path.suffix)
            self.plan.folders.add(job.path.parent)
        altered = job.altered or unmade is not None
        carried = dict(row.carried) if row.id is None else {"id": row.id, **row.carried}
        planned = replace(
            job, row=key, occurrence=occurrence, name=row.name, altered=altered, carried=carried
        )
        self.plan.jobs.add(planned)

    def _named(
        self, row: Row, name: str, key: str, inputs: Inputs, *, own_seed: bool
    ) -> Item | None:
        """The image of a row of a folder, whose files may be copies of each other: its own by its
        name, and before it makes a new one, that of a file that was renamed.
        """
        assert self.history is not None
        return (
            self.history.take_named(key, name, own_seed=own_seed)
            or self._made_by_name(row, name, inputs)
            or self.history.take_renamed(key, self.row_names, own_seed=own_seed)
        )

    def _made_by_name(self, row: Row, name: str, inputs: Inputs) -> Item | None:
        """The image that an edit's own name belongs to, if it is the row's: also one that was
        refused at first, and made as a row of failed.jsonl.
        """
        assert self.history is not None
        item = self.history.made_as(name)
        if item is None or recipe_hash(self._recipe(row, inputs, item.seed)) != item.recipe:
            return None
        return item

    def _unmade(self, row: Row, own: int | None) -> Item | None:
        """What was planned for a row's own name and seed and is not made: that of a row in
        failed.jsonl, or of one that has been corrected.
        """
        if self.history is None or row.output is None or own is None:
            return None
        return self.history.take_unmade(row.output, own)

    def _new(self, row: Row, inputs: Inputs, own: int | None, number: int | None) -> Job:
        """An image that no earlier run planned."""
        index = self._next_index
        recipe = self._recipe(row, inputs, self.seed + index - 1 if own is None else own)
        named = row.output or row.name
        self._next_index += 1
        if self.where.is_stdout:
            path = None
        elif named is None:
            with _row_faults():
                place = self._place(row, number)
            path = self.names.of(index, recipe, place)
        else:
            with _row_faults():
                path = self.names.of_row(named, number)
        return Job(index=index, recipe=recipe, path=path, exact=self._is_exact(row))

    def _place(self, row: Row, number: int | None) -> Place:
        if row.id is None and self.names.needs_id:
            raise UsageError("there is no id, and -o names images by it", "give every row an id")
        return Place(row=self._rows, n=number or 1, id=row.id or "")

    def _planned_before(self, row: Row, inputs: Inputs, item: Item) -> Job | None:
        """An image that an earlier run planned, or None when it is there."""
        recipe, planned = self._recipe(row, inputs, item.seed), self.where.folder / item.file
        found = look(planned, recipe, item, self.history.settings if self.history else None)
        if found in (Existing.MADE, Existing.UNRECORDED):
            self._keep(item, recipe, found)
            return None
        path = planned
        if found is Existing.FOREIGN and not self.output.overwrite:
            if self._is_exact(row):
                raise UsageError(f"{path} is another image now", "-y replaces it; or move it away")
            path = self.names.another(path)
        return Job(
            index=item.index,
            recipe=recipe,
            path=path,
            exact=self._is_exact(row),
            replace=found is Existing.TORN,
            recorded=item.run,
            altered=path != planned,
        )

    def _recipe(self, row: Row, inputs: Inputs, seed: int) -> Recipe:
        if seed >= CPU_SEEDS and self.plan.long_seed is None:
            self.plan.long_seed = seed
        with _row_faults():
            recipe = recipe_of(row, self.defaults, seed, inputs)
        self._note_size(row, recipe)
        return recipe

    def _note_size(self, row: Row, recipe: Recipe) -> None:
        """When a size that nobody asked for is not the image's own, because of the model."""
        asked = row.width, row.height, self.defaults.width, self.defaults.height
        if self.plan.resized or not recipe.references or any(asked):
            return
        first, preset = recipe.references[0], self.defaults.preset
        if (recipe.width, recipe.height) != (first.width, first.height):
            self.plan.resized = (
                f"{first.name}, {first.width}x{first.height} to the model, is edited at "
                f"{recipe.width}x{recipe.height}: {preset.name} makes sides of {preset.min_side} "
                f"to {preset.max_side}"
            )

    def _is_exact(self, row: Row) -> bool:
        return self.where.exact and row.output is None

    def _keep(self, item: Item, recipe: Recipe, found: Existing) -> None:
        self.plan.done += 1
        if found is Existing.UNRECORDED:
            sha256 = file_hash(self.where.folder / item.file)
            known = replace(item, recipe=recipe_hash(recipe), sha256=sha256)
            self.plan.adopted.append((known, recipe))


class _RowFault(Exception):
    """What is wrong with a row: (message, hint)."""


@contextmanager
def _row_faults() -> Iterator[None]:
    """Errors in here are a row's own, to be reported with its line."""
    try:
        yield
    except UsageError as error:
        raise _RowFault(error.message, error.hint) from None


def _names(rows: list[Row | BadRow]) -> frozenset[str]:
    """What the rows of a folder call their images."""
    return frozenset(row.name for row in rows if isinstance(row, Row) and row.name is not None)


def _several(rows: list[Row | BadRow], defaults: Defaults) -> bool:
    """Whether a run with these first rows makes several images."""
    try:
        if len(rows) > 1:
            return True
        return any(makes_several(row, defaults) for row in rows if isinstance(row, Row))
    except UsageError:
        return False  # it is reported when the row is planned


def _with_adapters(
    inputs: Inputs, row: Row, defaults: Defaults, adapters: InputAdapters | None
) -> Inputs:
    return inputs if adapters is None else replace(inputs, adapters=adapters.of(row, defaults))


def _row_key(row: Row, own: int | None, defaults: Defaults, inputs: Inputs) -> str:
    """A hash of all that a row says of one of its images: what it is known by in a manifest.

    The run's seed is not part of it, so that the row finds its image, and with it its seed, again.
    Files that are given count by what is in them: another one is another row, and one that was
    renamed or moved is the same.
    """
    said = {"seed": own, "output": row.output, "wildcards": defaults.wildcards or None}
    given = {
        "references": [_nameless(reference) for reference in inputs.references] or None,
        "mask": _nameless(inputs.mask) if inputs.mask else None,
        "adapters": [_nameless(adapter) for adapter in inputs.adapters] or None,
    }
    return row_hash(asked_for(row, defaults, inputs) | said | given)


def _nameless(file: Reference | Mask | Adapter) -> dict[str, Any]:
    return {name: value for name, value in asdict(file).items() if name != "name"}
