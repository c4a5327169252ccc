"""What lies where an image should be, when a run is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum, auto
from pathlib import Path

from klein_cli.errors import KleinError
from klein_cli.output.reading import Record, is_torn, read_record
from klein_cli.recipe import Recipe
from klein_cli.run.resume.history import Item, file_hash, recipe_hash


class Existing(Enum):
    """NOTHING: the name is free. MADE: the image, as the manifest says. UNRECORDED: the image,
    though the manifest does not know this file. TORN: what is left of one. FOREIGN: somebody
    else's.
    """

    NOTHING = auto()
    MADE = auto()
    UNRECORDED = auto()
    TORN = auto()
    FOREIGN = auto()


def look(
    path: Path, recipe: Recipe, item: Item, settings: Mapping[str, str] | None = None
) -> Existing:
    """What lies at `path`, which the manifest gives to the image of `recipe`.

    A killed run leaves an unrecorded image when it dies between the file and its line. One that
    was not computed by the manifest's last `settings` is of an earlier run.
    """
    if not os.path.lexists(path):
        return Existing.NOTHING
    try:
        found = recipe_hash(recipe), file_hash(path)
        if found == (item.recipe, item.sha256):
            return Existing.MADE
        if found == item.begun:
            return Existing.UNRECORDED
        if is_torn(path):
            return Existing.TORN
        record = read_record(path)
        is_it = record.recipe == recipe and _computed_by(settings or {}, record)
        return Existing.UNRECORDED if is_it else Existing.FOREIGN
    except (KleinError, OSError):
        return Existing.FOREIGN


def _computed_by(settings: Mapping[str, str], record: Record) -> bool:
    said = asdict(record.settings)
    if record.weights is not None:
        said["weights"] = record.weights
    return all(settings.get(name, str(value)) == str(value) for name, value in said.items())
