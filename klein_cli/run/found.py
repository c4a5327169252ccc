"""What lies where a picture should be, when a run is taken up again."""

from __future__ import annotations

import os
from enum import Enum, auto
from pathlib import Path

from klein_cli.errors import KleinError
from klein_cli.output.history import Item, file_hash, recipe_hash
from klein_cli.output.reading import is_wreck, read_record
from klein_cli.recipe import Recipe


class Found(Enum):
    """NOTHING: the name is free. MADE: the picture, as the manifest says. UNRECORDED: the picture,
    though the manifest does not know this file. WRECK: what is left of one. FOREIGN: somebody
    else's.
    """

    NOTHING = auto()
    MADE = auto()
    UNRECORDED = auto()
    WRECK = auto()
    FOREIGN = auto()


def look(path: Path, recipe: Recipe, item: Item) -> Found:
    """What lies at `path`, which the manifest gives to the picture of `recipe`.

    A killed run leaves an unrecorded picture when it dies between the file and its line.
    """
    if not os.path.lexists(path):
        return Found.NOTHING
    try:
        found = recipe_hash(recipe), file_hash(path)
        if found == (item.recipe, item.sha256):
            return Found.MADE
        if found == item.begun:
            return Found.UNRECORDED
        if is_wreck(path):
            return Found.WRECK
        return Found.UNRECORDED if read_record(path).recipe == recipe else Found.FOREIGN
    except (KleinError, OSError):
        return Found.FOREIGN
