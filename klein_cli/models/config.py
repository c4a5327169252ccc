"""config.json -> the sizes of one part, each entry checked."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from klein_cli.errors import ModelError
from klein_cli.tables import WrongTypeError, checked, missing

Sizes = TypeVar("Sizes")

MOST = 2**20
"""No size of a model is above it, by far; a matrix of two such still has a length in 64 bits."""

_MOST_LAYERS = 1000
"""A millisecond each to build: a million would look like a hang."""

_LARGEST = 1e9
"""The same for what is not a size: bases of rotary angles reach a few millions."""


def read_sizes(kind: type[Sizes], part: str, entries: Mapping[str, Any]) -> Sizes:
    """A dataclass of positive int, float and tuple[int, ...] fields from the entries of its names.

    `part` names the part in messages. Raises ModelError for an entry that is missing, is not a
    number as its field is, or is larger than any model's.
    """
    given = {name: value for name, value in entries.items() if value is not None}
    if lacking := missing(kind, given):
        raise ModelError(f"{part}'s config.json lacks {', '.join(lacking)}", "download it again")
    try:
        found = checked(kind, given)
    except WrongTypeError as error:
        raise _undescribed(part, error.name, error.value) from None
    for name, hint in get_type_hints(kind).items():
        if not _is_sane(name, found[name], most=_LARGEST if hint is float else MOST):
            raise _undescribed(part, name, found[name])
        found[name] = float(found[name]) if hint is float else found[name]
    return kind(**found)


def refuse_variants(part: str, found: Mapping[str, tuple[Any, Any]], hint: str) -> None:
    """Raise ModelError for the first entry of (found, supported) that differ."""
    for name, (value, supported) in found.items():
        if value != supported:
            shown = reprlib.repr(value)
            raise ModelError(f"{part}'s {name} is {shown}, not {supported!r}", hint)


def check_size(part: str, name: str, value: float) -> None:
    """Raise ModelError for a size that follows from the entries and is larger than any model's."""
    if not 0 < value <= MOST:
        raise ModelError(
            f"{part}'s config.json does not describe it: {name} would be {value:g}",
            "download it again",
        )


def _is_sane(name: str, value: float | tuple[int, ...], most: float) -> bool:
    if isinstance(value, tuple):
        return len(value) > 0 and all(0 < each <= most for each in value)
    return 0 < value <= (_MOST_LAYERS if "layers" in name else most)


def _undescribed(part: str, name: str, value: object) -> ModelError:
    return ModelError(
        f"{part}'s config.json does not describe it: {name} is {reprlib.repr(value)}",
        "download it again",
    )
