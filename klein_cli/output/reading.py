"""An image file -> the record that klein wrote into it.

The file may be a stranger's: what it says is data, bounded, checked field by field, never
evaluated. Whether a value that makes sense is a good idea here (a model to load, a GPU to use) is
for the one who uses it to decide.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klein_cli.errors import KleinError, UsageError
from klein_cli.images.depth import channels
from klein_cli.images.files import MAX_FILE_BYTES, MAX_PIXELS
from klein_cli.output.extras import EXIF_IFD
from klein_cli.output.metadata import FORMAT
from klein_cli.output.png import ASCII_COMMENT, KLEINS_NOTE, MAKER_NOTE, USER_COMMENT
from klein_cli.prompts.rows import prompt_fault
from klein_cli.recipe import Adapter, Mask, PartFile, Recipe, Reference, recorded
from klein_cli.settings import Settings
from klein_cli.tables import built, checked, fits, missing, parse_json, unknown

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

MAX_RECORD_BYTES = 1_000_000

FORMATS = ("PNG", "JPEG", "WEBP")
_MAX_WORD = 1000
_MAX_ENTRIES = 100
"""Characters of a name or a version, and entries of a table of them."""

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_PNG_END = b"IEND\xaeB`\x82"
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
_NOT_OURS = "klein reads the images that it made, unless with their metadata taken out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an image says of itself.

    `repo` and `revision` are the model's place on the hub, None for a folder or the embedded
    model; `weights` is its fingerprint, `parts` the files in place of its own; `sigmas` are the
    noise levels; `provenance` names versions and machine; `step_down` what was done because memory
    ran out. An older `format` leaves some of them empty. `unknown` names what a klein of this
    format said that this klein does not know.
    """

    format: int
    klein: str
    recipe: Recipe
    settings: Settings
    repo: str | None
    revision: str | None
    weights: str | None
    sigmas: tuple[float, ...]
    provenance: dict[str, str]
    step_down: str | None = None
    unknown: tuple[str, ...] = ()
    parts: tuple[PartFile, ...] = ()

    def table(self) -> dict[str, Any]:
        """All of it, ready for JSON; of words alone, as it was before there was anything else."""
        said = {**asdict(self), "recipe": recorded(self.recipe)}
        if not self.parts:
            del said["parts"]
        return said


def read_record(path: Path) -> Record:
    """The record in a PNG, JPEG or WebP file.

    Raises UsageError when the file cannot be read, is not an image, or holds no record that makes
    sense.
    """
    text = _text(path)
    if text is None:
        raise UsageError(f"{path} holds no recipe", _NOT_OURS)
    if len(text) > MAX_RECORD_BYTES:
        raise UsageError(f"the recipe in {path} is too long to be klein's", _NOT_OURS)
    try:
        table = parse_json(text)
    except (ValueError, RecursionError):
        raise UsageError(f"the recipe in {path} is damaged", _NOT_OURS) from None
    if not isinstance(table, dict) or type(table.get("format")) is not int or table["format"] < 1:
        raise UsageError(f"the recipe in {path} is not klein's", _NOT_OURS)
    if table["format"] > FORMAT:
        raise UsageError(
            f"the recipe in {path} was written by a newer klein", "update klein to read it"
        )
    try:
        return _record(table)
    except (KeyError, TypeError, AttributeError, ValueError, KleinError) as error:
        missing = isinstance(error, KeyError)
        reason = f"it has no {error}" if missing else str(error)[:200]
        raise UsageError(f"the recipe in {path} is not valid: {reason}", _NOT_OURS) from None


def read_pixels(path: Path) -> NDArray[numpy.uint8] | NDArray[numpy.uint16]:
    """(H, W, 3 or, with alpha, 4) of 8 or 16 bits: what the image shows, its profile aside.

    Raises UsageError when it cannot be read.
    """
    import numpy

    with _opened(path) as image:
        found = channels(image, path.read_bytes(), str(path))
        pixels = numpy.asarray(found.colours.convert("RGB")) if found.wide is None else found.wide
        alpha = found.alpha if found.wide_alpha is None else found.wide_alpha
    return pixels if alpha is None else numpy.dstack([pixels, numpy.asarray(alpha)])


def is_torn(path: Path) -> bool:
    """Whether `path` is what is left of such an image: nothing, zeros, or no whole one.

    What does not begin as an image is somebody else's file. Raises OSError if it cannot be read.
    """
    data = path.read_bytes()
    begun = any(beginning.startswith(data[: len(beginning)]) for beginning in _BEGINNINGS)
    return not data.strip(b"\0") or (begun and not _is_whole(data))


def _is_whole(data: bytes) -> bool:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                kind = image.format
                image.load()
    except Exception:  # see `_opened`
        return False
    # Pillow forgives a PNG that stops after its pixels.
    return kind != "PNG" or data.endswith(_PNG_END)


def _text(path: Path) -> str | None:
    with _opened(path) as image:
        if "klein" not in image.info and image.format == "PNG":
            # Other tools put text behind the pixels, which Pillow reads after them.
            image.load()
        if "klein" in image.info:
            return str(image.info["klein"])
        exif = image.getexif().get_ifd(EXIF_IFD)
    for tag, beginning in ((MAKER_NOTE, KLEINS_NOTE), (USER_COMMENT, ASCII_COMMENT)):
        said = exif.get(tag)
        if isinstance(said, bytes) and said.startswith(beginning):
            return said.removeprefix(beginning).decode("ascii", errors="replace")
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as an image of a format and a size that klein writes.

    Pillow decodes nothing before the size is known to be sane. Raises UsageError.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # A pipe or a device would never end.
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file", "give an image that klein made")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is too large to be klein's", _NOT_OURS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UsageError(f"{path} is too large to be klein's", _NOT_OURS)
                yield image
    except KleinError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image", "give a PNG, JPEG or WebP file") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{path} is too large to be klein's", _NOT_OURS) from None
    except OSError as error:
        what = f"cannot read {path}: {error.strerror or error}"
        raise UsageError(what, "give an image that klein made") from None
    except Exception as error:  # on a file made to break it, Pillow raises nearly anything
        what = f"{path} is a broken image ({type(error).__name__})"
        raise UsageError(what, "give an image that klein made") from None


def _record(table: Mapping[str, Any]) -> Record:
    """A record from JSON. Raises KeyError, TypeError, ValueError or KleinError."""
    for name in ("recipe", "settings", "model"):
        if not isinstance(table[name], dict):
            raise TypeError(f"{name} is not a table")
    recipe, settings, model = table["recipe"], table["settings"], table["model"]
    strange = [
        *(f"recipe.{_word('a key', name)}" for name in _unknown_of_recipe(recipe)),
        *(f"settings.{_word('a key', name)}" for name in unknown(Settings, settings)),
    ]
    record = Record(
        format=table["format"],
        klein=_word("klein", table["klein"]),
        recipe=_recipe(recipe),
        settings=Settings.as_recorded(checked(Settings, settings)),
        repo=_text_or_none("repo", model.get("repo")),
        revision=_commit("revision", model.get("revision")),
        weights=_commit("weights", model.get("weights")),
        sigmas=_sigmas(table.get("sigmas", [])),
        provenance=_words("provenance", table["provenance"]),
        step_down=_text_or_none("step_down", table.get("step_down")),
        unknown=tuple(strange[:_MAX_ENTRIES]),
        parts=_parts(model.get("parts", [])),
    )
    fault = prompt_fault(record.recipe.prompt, drawn=True)
    if fault:
        raise ValueError(fault[0])
    (record.recipe.negative_prompt or "").encode("utf-8")
    for name, value in (("model", record.recipe.model), *asdict(record.settings).items()):
        if isinstance(value, str):
            _word(name, value)
    if record.sigmas and len(record.sigmas) != record.recipe.steps + 1:
        raise ValueError(f"{record.recipe.steps} steps have {len(record.sigmas)} sigmas")
    return record


def _recipe(table: Mapping[str, Any]) -> Recipe:
    """The recipe in a table; what an older klein did not know yet may be left out."""
    for name in missing(Recipe, table):
        raise KeyError(name)
    recipe = Recipe(**checked(Recipe, table))
    names = [reference.name for reference in recipe.references]
    names += [adapter.name for adapter in recipe.adapters]
    names += [recipe.mask.name or ""] if recipe.mask else []
    for name in names:
        name.encode("utf-8")
    return recipe


def _unknown_of_recipe(recipe: Mapping[str, Any]) -> Iterator[str]:
    """What a recipe, or a file in it, says that this klein does not know."""
    yield from unknown(Recipe, recipe)
    mask = recipe.get("mask")
    given = {
        "references": (Reference, recipe.get("references")),
        "mask": (Mask, None if mask is None else [mask]),
        "adapters": (Adapter, recipe.get("adapters")),
    }
    for name, (kind, tables) in given.items():
        told = [table for table in tables or () if isinstance(table, dict)]
        yield from dict.fromkeys(f"{name}.{key}" for table in told for key in unknown(kind, table))


def _parts(tables: Any) -> tuple[PartFile, ...]:
    wanted = tuple[PartFile, ...]
    if not fits(tables, wanted) or len(tables) > _MAX_ENTRIES:
        raise TypeError("parts are not a short list of tables")
    found: tuple[PartFile, ...] = built(tables, wanted)
    for part in found:
        _word("part", part.part)
        _word("name", part.name)
        _word("kind", part.kind)
        _commit("weights", part.weights)
    return found


def _sigmas(levels: Any) -> tuple[float, ...]:
    if not fits(levels, tuple[float, ...]):
        raise TypeError("sigmas are not numbers")
    if not all(0 <= level <= 1 for level in levels):
        raise ValueError("sigmas are not between 0 and 1")
    return tuple(map(float, levels))


def _words(name: str, table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or len(table) > _MAX_ENTRIES:
        raise TypeError(f"{name} is not a short table")
    return {_word(name, key): _word(key, value) for key, value in table.items()}


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_WORD:
        raise TypeError(f"{name[:40]} is {str(value)[:40]!r}")
    return value


def _text_or_none(name: str, value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise TypeError(f"{name} is {str(value)[:40]!r}")
    return value


def _commit(name: str, value: Any) -> str | None:
    """Hexadecimal digits: nothing that could be a path."""
    if value is not None and not _COMMIT.fullmatch(_word(name, value)):
        raise ValueError(f"{name} is {value[:40]!r}")
    return None if value is None else str(value)
