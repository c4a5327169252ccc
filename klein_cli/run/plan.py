"""Rows -> Jobs: every picture of a run with its recipe and its path, settled before work starts.

Everything that can be wrong with a run is found here, without the model: bad lines, sizes the
model does not make, names that leave the folder, files that would be replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from klein_cli.errors import UsageError
from klein_cli.output.naming import STDOUT, Names, destination
from klein_cli.output.png import check_room, check_writable
from klein_cli.presets import Preset
from klein_cli.prompts import BadRow, Defaults, Row, complain, name_of, recipes
from klein_cli.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture to make: `index` counts from 1; no path means standard output.

    `exact` says that the user spelt the path out: when it is taken after all, no other will do.
    """

    index: int
    recipe: Recipe
    path: Path | None
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The jobs of a run in order, and what the user should be told about them.

    `uses_seed`: some picture takes its seed from the run's. `without_effect`: what rows ask for
    that this model ignores.
    """

    jobs: tuple[Job, ...]
    uses_seed: bool
    without_effect: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the user said about files: -o, -y, and the day that {date} stands for."""

    path: str | None
    overwrite: bool
    today: date


def plan(
    rows: Iterable[Row | BadRow],
    *,
    source: str,
    preset: Preset,
    defaults: Defaults,
    seed: int,
    output: Output,
) -> Plan:
    """Give every picture its recipe and its path; picture k (from 0) gets `seed` + k.

    `source` is the prompts file, or "" for a typed prompt. Raises UsageError, for a prompts file
    one that names all its bad lines.
    """
    rows = list(rows)
    if not rows:
        raise UsageError(f"{name_of(source)} holds no prompts", "write one prompt a line")
    faults = [row for row in rows if isinstance(row, BadRow)]
    good = [row for row in rows if isinstance(row, Row)]
    drawn = list(_draw(good, preset, defaults, seed, faults))
    several = sum(len(pictures) for _, pictures in drawn) + len(faults) > 1
    jobs = list(_name(drawn, output, several, faults))
    if faults:
        complain(source, sorted(faults, key=lambda fault: fault.line))
    return Plan(
        jobs=tuple(jobs),
        uses_seed=any(row.seed is None for row in good),
        without_effect=tuple(_without_effect(good)) if preset.distilled else (),
    )


def check_folders(jobs: Iterable[Job]) -> None:
    """Raise UsageError unless every folder of the run can be written in."""
    for folder in {job.path.parent for job in jobs if job.path is not None}:
        check_writable(folder)


def check_sides(recipe: Recipe, preset: Preset) -> None:
    """Raise UsageError for a picture that the model does not make."""
    for name, pixels in (("width", recipe.width), ("height", recipe.height)):
        if not preset.min_side <= pixels <= preset.max_side:
            raise UsageError(
                f"{name} {pixels} is out of range for {preset.name}",
                f"use {preset.min_side} to {preset.max_side}",
            )


def _draw(
    rows: list[Row], preset: Preset, defaults: Defaults, seed: int, faults: list[BadRow]
) -> Iterator[tuple[Row, list[Recipe]]]:
    made = 0
    for row in rows:
        if preset.distilled:
            row = replace(row, guidance=None, negative_prompt=None)
        try:
            pictures = recipes(row, defaults, seed + made)
            check_sides(pictures[0], preset)
        except UsageError as error:
            faults.append(BadRow(line=row.line, message=error.message, hint=error.hint))
            continue
        made += len(pictures)
        yield row, pictures


def _name(
    drawn: list[tuple[Row, list[Recipe]]], output: Output, several: bool, faults: list[BadRow]
) -> Iterator[Job]:
    if output.path == STDOUT:
        yield from _for_stdout(drawn, several)
        return
    where = destination(output.path, several=several)
    names = Names(where, overwrite=output.overwrite, today=output.today)
    index = 0
    for row, pictures in drawn:
        for number, recipe in enumerate(pictures, start=1):
            index += 1
            try:
                if row.output is None:
                    path = names.of(index, recipe)
                else:
                    path = names.of_row(row.output, number if len(pictures) > 1 else None)
                check_room(recipe, path.suffix)
            except UsageError as error:
                if row.output is None:
                    raise
                faults.append(BadRow(line=row.line, message=error.message, hint=error.hint))
                break
            exact = where.exact and row.output is None
            yield Job(index=index, recipe=recipe, path=path, exact=exact)


def _for_stdout(drawn: list[tuple[Row, list[Recipe]]], several: bool) -> Iterator[Job]:
    if several:
        raise UsageError("-o - writes one picture, and this run makes several", "give a folder")
    for row, pictures in drawn:
        if row.output is not None:
            raise UsageError("-o - leaves no place for a row's output", "give a folder")
        yield Job(index=1, recipe=pictures[0], path=None, exact=True)


def _without_effect(rows: list[Row]) -> Iterator[str]:
    if any(row.guidance is not None for row in rows):
        yield "guidance"
    if any(row.negative_prompt is not None for row in rows):
        yield "negative_prompt"
