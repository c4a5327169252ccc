"""A picture file -> the record that klein wrote into it.

The file may be a stranger's: what it says is data, bounded, checked field by field, never
evaluated.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from klein_cli.errors import KleinError, UsageError
from klein_cli.output.metadata import FORMAT
from klein_cli.output.png import ASCII_COMMENT, EXIF_IFD, USER_COMMENT
from klein_cli.recipe import Recipe, Settings

MAX_RECORD_BYTES = 1_000_000
_PNG_END = b"IEND\xaeB`\x82"
_NOT_OURS = "klein reads the pictures that it made, unless with their metadata taken out"

Fields = TypeVar("Fields", Recipe, Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a picture says of itself.

    `revision` is the model's commit on the hub, None for a folder or the embedded model;
    `provenance` names versions and machine; `step_down` what was done for want of memory.
    """

    klein: str
    recipe: Recipe
    settings: Settings
    revision: str | None
    provenance: dict[str, str]
    step_down: str | None = None


def read_record(path: Path) -> Record:
    """The record in a PNG, JPEG or WebP file.

    Raises UsageError when the file cannot be read, is no picture, or holds no record that makes
    sense.
    """
    text = _text(path)
    if text is None:
        raise UsageError(f"{path} holds no recipe", _NOT_OURS)
    if len(text) > MAX_RECORD_BYTES:
        raise UsageError(f"the recipe in {path} is too long to be klein's", _NOT_OURS)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"the recipe in {path} is damaged", _NOT_OURS) from None
    if not isinstance(table, dict) or not isinstance(table.get("format"), int):
        raise UsageError(f"the recipe in {path} is not klein's", _NOT_OURS)
    if table["format"] > FORMAT:
        raise UsageError(
            f"the recipe in {path} was written by a newer klein", "update klein to read it"
        )
    return _record(path, table)


def is_whole(path: Path) -> bool:
    """Whether `path` is a picture from its first byte to its last. Raises OSError if unreadable."""
    from PIL import Image

    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    # Pillow forgives a PNG that stops after its pixels.
    return kind != "PNG" or data.endswith(_PNG_END)


def _text(path: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if "klein" in image.info:
                return str(image.info["klein"])
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not a picture", "give a PNG, JPEG or WebP file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read {path}: {reason}", "give a picture that klein made"
        ) from None
    if not isinstance(comment, bytes) or not comment.startswith(ASCII_COMMENT):
        return None
    return comment.removeprefix(ASCII_COMMENT).decode("ascii", errors="replace")


def _record(path: Path, table: Mapping[str, Any]) -> Record:
    try:
        model = table["model"]
        revision, step_down = model.get("revision"), table.get("step_down")
        provenance = {str(key): str(value) for key, value in table["provenance"].items()}
        return Record(
            klein=str(table["klein"]),
            recipe=_fields(Recipe, table["recipe"]),
            settings=_fields(Settings, table["settings"]),
            revision=None if revision is None else str(revision),
            provenance=provenance,
            step_down=None if step_down is None else str(step_down),
        )
    except (KeyError, TypeError, AttributeError, KleinError) as error:
        raise UsageError(f"the recipe in {path} does not make sense: {error}", _NOT_OURS) from None


def _fields(kind: type[Fields], table: Mapping[str, Any]) -> Fields:
    """A dataclass from a table that must have its fields, each of its type."""
    types: dict[str, type | tuple[type, ...]] = {
        "str": str,
        "int": int,
        "float": (int, float),
        "str | None": (str, type(None)),
    }
    for field in fields(kind):
        value = table[field.name]
        if not isinstance(value, types[str(field.type)]) or isinstance(value, bool):
            raise TypeError(f"{field.name} is {str(value)[:40]!r}")
    return kind(**{field.name: table[field.name] for field in fields(kind)})
