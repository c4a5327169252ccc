"""-o, a recipe and a row's `output` -> the path of an image.

    -o                      one image               several
    (none)                  {slug}-{seed}.png         {index:04d}-{slug}-{seed}.png
    name.png                name.png                  name-{index:04d}.png
    folder, or ends in /    folder/{index:04d}-{slug}-{seed}.png
    template                as written

A name that the user spelt out (`name.png` and its numbered series) is refused when it exists; in
a folder and under a template the next free name is taken instead: name-2.png, name-3.png, ...
Only `Names` asks the disk anything, through the `exists` it is given.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from string import Formatter

from klein_cli.errors import UsageError
from klein_cli.images.files import without_controls
from klein_cli.paths import check_path
from klein_cli.recipe import Recipe

STDOUT = "-"
FIELDS = ("index", "seed", "slug", "width", "height", "model", "date", "row", "n", "id")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")

_ONE_NAME = "{slug}-{seed}.png"
_FOLDER_NAME = "{index:04d}-{slug}-{seed}.png"
_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))
_SLUG_LENGTH = 48
_SLUG_BYTES = 120
_NAME_BYTES = 255
_PATH_BYTES = 4000
_FIELD_HINT = "the fields are " + ", ".join(f"{{{field}}}" for field in FIELDS)
# Names that Windows keeps for devices, whatever their extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a run's images go: -o, read once.

    `template` is the whole path with fields in braces, "" for standard output, and `single` that of
    an image which is the only one; `folder` holds the names that rows give themselves; `exact`
    says that the user spelt the name out, so that another will not do.
    """

    template: str
    single: str
    folder: Path
    exact: bool

    @property
    def is_stdout(self) -> bool:
        """Whether the images go to standard output."""
        return not self.template

    def of(self, *, several: bool) -> Destination:
        """That of a run of several images, or of one. Raises UsageError for several to stdout."""
        if several and self.is_stdout:
            raise UsageError("-o - writes one image, and this run makes several", "give a folder")
        return self if several else replace(self, template=self.single)


def destination(output: str | None, *, is_folder: bool = False) -> Destination:
    """Read -o, which names a folder whatever it looks like if `is_folder`. Raises UsageError."""
    if output is None:
        return Destination(template=_FOLDER_NAME, single=_ONE_NAME, folder=Path(), exact=False)
    if output == STDOUT:
        return Destination(template="", single="", folder=Path(), exact=True)
    if not output.strip() or "\0" in output:
        raise UsageError("-o is empty", "give a file, a folder or a template")
    check_path("-o", output)
    if output.startswith("~"):
        output = os.path.expanduser(output)
    if is_folder or os.path.isdir(output):
        return _in_folder(_escape(output), Path(output))
    if "{" in output or "}" in output:
        return _templated(output)
    if output.endswith(_SEPARATORS):
        return _in_folder(_escape(output), Path(output))
    path = Path(output)
    check_extension(path)
    name = f"{_escape(path.stem)}-{{index:04d}}{path.suffix}"
    series = os.path.join(_escape(str(path.parent)), name)
    return Destination(template=series, single=_escape(output), folder=path.parent, exact=True)


def slug(text: str) -> str:
    """`text` as a short file name: never empty, never one Windows reserves.

    Letters and digits of any script, lower-case, composed (NFC), in at most so many characters and
    bytes; accents are left off Latin letters.
    """
    words = _hyphenated(_without_accents(text[:1000]))
    try:
        os.fsencode(words)
    except UnicodeEncodeError:  # a file system of one script alone
        words = _hyphenated(words.encode("ascii", "ignore").decode())
    words = _cut(words)
    if not words:
        return "picture"
    return f"{words}-picture" if _RESERVED.fullmatch(words) else words


def _without_accents(text: str) -> str:
    """The text composed, less the marks on the letters of ASCII."""
    kept: list[str] = []
    base = ""
    for char in unicodedata.normalize("NFKD", text):
        is_mark = unicodedata.category(char) == "Mn"
        base = base if is_mark else char
        if not (is_mark and base.isascii()):
            kept.append(char)
    return unicodedata.normalize("NFC", "".join(kept)).lower()


def _hyphenated(text: str) -> str:
    """Letters, digits and their marks, and hyphens between what else separated them."""
    kept = (char if unicodedata.category(char)[0] in "LNM" else "-" for char in text)
    return re.sub("-+", "-", "".join(kept)).strip("-")


def _cut(words: str) -> str:
    """As many whole words as fit, or as much of the first."""
    fits = len(words) <= _SLUG_LENGTH
    short = words[: _SLUG_LENGTH + 1]
    while len(short.encode("utf-8", "replace")) > _SLUG_BYTES:
        fits, short = False, short[:-1]
    if fits:
        return words
    at = min(len(short), _SLUG_LENGTH)
    while at and unicodedata.category(words[at])[0] == "M":  # not between a letter and its marks
        at -= 1
    return short.rpartition("-")[0] or words[:at]


def possible_name(name: str) -> str:
    """`name` as a result can be called, whatever file it comes from: control characters are
    underscores, and what leaves no room for a number is cut off the stem.
    """
    stem, ending = os.path.splitext(without_controls(name))
    room = _NAME_BYTES - 2 * len("-9999") - len(os.fsencode(ending))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + ending


def check_extension(path: Path) -> None:
    """Raise UsageError unless the ending of `path` is an image format."""
    if path.suffix.lower() in EXTENSIONS:
        return
    if not path.suffix:
        raise UsageError(
            f"{path} has no extension", f"use {path}.png for a file, {path}{os.sep} for a folder"
        )
    raise UsageError(
        f"{path}: images are not written as {path.suffix}", f"use {', '.join(EXTENSIONS)}"
    )


def candidates(path: Path) -> Iterator[Path]:
    """`path`, then name-2.png, name-3.png, ..."""
    yield path
    number = 2
    while True:
        yield _with_number(path, number)
        number += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an image is among its rows: the `n`-th of row number `row`, both from 1, whose own
    `id` is as it is written.
    """

    row: int = 1
    n: int = 1
    id: str = ""


class Names:
    """Gives each image of a run a path of its own, in the order of asking.

    `exists` answers for the disk; with `overwrite` it is not asked. Names that differ only in
    case, or in how Unicode composes a letter, count as the same, because on some disks they are.
    """

    def __init__(
        self,
        where: Destination,
        *,
        overwrite: bool,
        today: date,
        exists: Callable[[Path], bool] = os.path.lexists,
    ) -> None:
        self._where = where
        self._overwrite = overwrite
        self._today = today
        self._exists = exists
        self._given: set[str] = set()
        self._outputs: set[str] = set()
        self._folders: set[str] = set()
        self._numbers: dict[str, int] = {}

    @property
    def needs_id(self) -> bool:
        """Whether rows without an id have no name."""
        return any(name == "id" for _, name, *_ in Formatter().parse(self._where.template))

    def of(self, index: int, recipe: Recipe, place: Place | None = None) -> Path:
        """The path of image `index` (from 1). Raises UsageError."""
        path = Path(
            _fill(self._where.template, _values(index, recipe, self._today, place or Place()))
        )
        check_extension(path)
        _check_length(path)
        if not self._where.exact:
            return self._free(path)
        if name_key(path) in self._outputs:
            raise UsageError(
                f"{path} is the output of a row, and what another would be called",
                "give one of them another name",
            )
        if not self._overwrite and self._exists(path):
            raise UsageError(f"{path} already exists", "-y replaces it; or give another name")
        self._given.add(name_key(path))
        return path

    def of_row(self, output: str, number: int | None) -> Path:
        """The path of a row's own `output`, `number`ed if it makes several. Raises UsageError."""
        path = _inside(self._where.folder, output)
        if number is not None:
            path = path.with_name(f"{path.stem}-{number:04d}{path.suffix}")
        _check_length(path)
        above = [name_key(folder) for folder in path.parents]
        if not self._given.isdisjoint(above) or name_key(path) in self._folders:
            raise UsageError(
                f"output {output!r} needs a folder where another row's image goes",
                "give one of them another name",
            )
        self._folders.update(above)
        given = self._free(path)
        self._outputs.add(name_key(given))
        return given

    def reserve(self, path: Path) -> None:
        """Give this path to nobody else."""
        self._given.add(name_key(path))

    def another(self, path: Path) -> Path:
        """The next free name after `path`, which is somebody else's."""
        self.reserve(path)
        return self._free(path)

    def _free(self, path: Path) -> Path:
        base, tried = name_key(path), path
        while name_key(tried) in self._given or (not self._overwrite and self._exists(tried)):
            number = self._numbers.get(base, 1) + 1
            self._numbers[base] = number
            tried = _with_number(path, number)
        self._given.add(name_key(tried))
        return tried


def _in_folder(template: str, folder: Path) -> Destination:
    template = os.path.join(template, _FOLDER_NAME)
    return Destination(template=template, single=template, folder=folder, exact=False)


def _templated(template: str) -> Destination:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"-o {template} is not a valid template: {error}", "write {{ and }} for plain braces"
        ) from None
    for _, field, spec, conversion in parts:
        if conversion:
            raise UsageError(f"-o has a !{conversion} in {{{field}!{conversion}}}", _FIELD_HINT)
        if field is not None and field not in FIELDS:
            raise UsageError(f"-o has an unknown field {{{field}}}", _FIELD_HINT)
        if spec and spec.endswith("c"):
            raise UsageError(f"-o has a format for letters: {{{field}:{spec}}}", _FIELD_HINT)
        if spec and re.search(r"[{}]|\d{4}", spec):
            raise UsageError(f"-o has a format that is too wide: {{{field}:{spec}}}", _FIELD_HINT)
    if template.endswith(_SEPARATORS):
        template = os.path.join(template, _FOLDER_NAME)
    sample = Recipe(prompt="a", seed=0, width=16, height=16, steps=1, guidance=1.0, model="a")
    values = _values(1, sample, date(2000, 1, 1), Place(id="a"))
    check_extension(Path(_fill(template, values)))
    fixed = ""
    for literal, field, *_ in parts:
        fixed += literal
        if field is not None:
            break
    folder = Path(os.path.dirname(fixed))
    return Destination(template=template, single=template, folder=folder, exact=False)


def _values(index: int, recipe: Recipe, today: date, place: Place) -> dict[str, object]:
    return {
        "row": place.row,
        "n": place.n,
        "id": _as_name(place.id),
        "index": index,
        "seed": recipe.seed,
        "slug": slug(recipe.prompt),
        "width": recipe.width,
        "height": recipe.height,
        "model": slug(recipe.model),
        "date": today,
    }


def _as_name(identity: str) -> str:
    """A row's id as a part of a file's name: what cannot be one is a hyphen."""
    return re.sub(r"[^\w.-]+", "-", identity).strip(".-") or "row"


def _fill(template: str, values: dict[str, object]) -> str:
    try:
        return template.format(**values)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"-o {template} cannot be filled in: {error}", "use formats such as {index:04d}"
        ) from None


def _inside(folder: Path, output: str) -> Path:
    """`output` under `folder`. Raises UsageError when it leaves it, by a symbolic link too."""
    check_path("output", output)
    name = Path(output)
    climbs = Path(os.path.normpath(name)).parts[:1] == ("..",)
    leaves = climbs or name.is_absolute() or name.drive or name.root
    if not name.name or output.endswith(_SEPARATORS) or _is_unprintable(output):
        raise UsageError(
            f"output {output!r} is not a valid file name", "use a name such as cat.png"
        )
    check_extension(name)
    path = folder / name
    if leaves or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"output {output!r} leaves the output folder {folder}", "use a name inside that folder"
        )
    if ".." in name.parts:
        raise UsageError(f"output {output!r} holds a ..", "use a plain name inside the folder")
    return path


def _is_unprintable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a surrogate pair
        return True
    return any(unicodedata.category(char) == "Cc" for char in name)


def _check_length(path: Path) -> None:
    if len(os.fsencode(os.path.abspath(path))) > _PATH_BYTES:
        raise UsageError(
            f"the path {os.fspath(path)[:40]}... is too long", f"use at most {_PATH_BYTES} bytes"
        )
    for part in path.parts:
        if len(os.fsencode(part)) > _NAME_BYTES - len("-9999"):
            raise UsageError(
                f"the file name {part[:40]}... is too long", f"use at most {_NAME_BYTES - 5} bytes"
            )


def _with_number(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def name_key(path: Path) -> str:
    """What paths share that may be one file: on some disks, case and composition do not count."""
    return unicodedata.normalize("NFC", os.path.normpath(path)).casefold()


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
