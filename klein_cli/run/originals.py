"""A recipe's images -> the files that they are here: what `klein reproduce` edits again.

The recipe may be a stranger's. Its names are looked for beside the image, in the present folder
and where the user says, at regular files of bounded size; a file is used if its digest is the
recipe's, and decoded after that only. Another image is used where the user names it, and said.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from klein_cli.errors import UsageError
from klein_cli.images.finding import digest_of, find_images
from klein_cli.prompts.rows import Defaults, Row
from klein_cli.recipe import ALPHA, Recipe
from klein_cli.run.differences import row_of_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a row names for the images of a recipe, and `others`: those that are not as then."""

    image: tuple[str, ...]
    mask: str | None
    others: tuple[str, ...] = ()


class Originals:
    """Where the images of some `recipes` may be: the files and folders that the user `named`, and
    a `mask`'s file.

    A file that none of the recipes knows is to be edited instead of what they name, in its place,
    and so are those that were named with it.
    """

    def __init__(self, named: Sequence[str], mask: str | None, recipes: Iterable[Recipe]) -> None:
        self._files = [Path(name) for name in named if not os.path.isdir(name)]
        self._folders = [Path(name) for name in named if os.path.isdir(name)]
        self._mask = mask
        self._digests: dict[Path, str | None] = {}
        known = {sha256 for recipe in recipes for sha256 in recipe.digests()}
        self._are_others = any(self._digest(path) not in known for path in self._files)

    def of(self, recipe: Recipe, beside: Path) -> Found:
        """The files for the recipe of the image at `beside`. Raises UsageError for one that is
        not there.
        """
        named = self._files if self._are_others else []
        rest = recipe.references[len(named) :]
        images = [*named, *(self._find(each.sha256, each.name, beside) for each in rest)]
        others = self._unlike(named, [each.sha256 for each in recipe.references])
        mask = self._mask_of(recipe, beside)
        if self._mask is not None and self._mask != ALPHA:
            was = recipe.mask.sha256 if recipe.mask else None
            others += self._unlike([Path(self._mask)], [was])
        return Found(image=tuple(map(str, images)), mask=mask, others=tuple(map(str, others)))

    def _unlike(self, files: Sequence[Path], then: Sequence[str | None]) -> list[Path]:
        """Those of the files that are not, each in its place, what there was then."""
        pairs = zip_longest(files, then[: len(files)])
        return [path for path, sha256 in pairs if self._digest(path) != sha256]

    def _mask_of(self, recipe: Recipe, beside: Path) -> str | None:
        if self._mask is not None:
            return self._mask
        mask = recipe.mask
        if mask is None or mask.sha256 is None:
            return ALPHA if mask is not None and mask.alpha else None
        return str(self._find(mask.sha256, mask.name or "", beside))

    def _find(self, sha256: str, name: str, beside: Path) -> Path:
        places = list(self._places(name, beside))
        for path in places:
            if self._digest(path) == sha256:
                return path
        folders = (*self._folders, beside.parent, Path())
        if renamed := find_images({sha256: name}, folders):
            return renamed[sha256]
        there = [path for path in places if self._digest(path) is not None]
        found = f"{there[0]} is another image than the one" if there else f"{name} is not here,"
        raise UsageError(
            f"{found} that {beside} was made of",
            f"-i FILE says where it is, or what to edit instead; {name} is looked for beside "
            "the image and here",
        )

    def _places(self, name: str, beside: Path) -> Iterator[Path]:
        yield from self._files
        if name and name == os.path.basename(name):
            for folder in (*self._folders, beside.parent, Path()):
                yield folder / name

    def _digest(self, path: Path) -> str | None:
        """The SHA-256 of a regular file of bounded size, read once; None for anything else."""
        if path not in self._digests:
            self._digests[path] = digest_of(path)
        return self._digests[path]


def edited_again(
    then: Recipe, found: Found, defaults: Defaults, *, prompt: str | None
) -> tuple[Defaults, Row]:
    """The row that makes a recipe's image again of what was found, but for what `defaults` and
    `prompt` say instead; and the defaults with what else the recipe says of its mask.
    """
    mask = then.mask
    expand = defaults.expand or (mask.expand if mask else None)
    row = replace(row_of_recipe(then, defaults, prompt=prompt), image=found.image, mask=found.mask)
    if found.mask is not None or expand is not None:  # the image keeps its own size
        row = replace(row, width=None, height=None, expand=expand)
    if mask is not None:
        blur = defaults.blur or mask.blur
        defaults = replace(defaults, keep=defaults.keep and mask.keep, blur=blur)
    return replace(defaults, image=(), mask=None, expand=None), row
