"""config.json -> the sizes of one part, each entry checked."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from klein_cli.errors import ModelError

Sizes = TypeVar("Sizes")

MOST = 2**20
"""No size of a model is above it, by far; a matrix of two such still has a length in 64 bits."""

_MOST_LAYERS = 1000
"""A millisecond each to build: a million would look like a hang."""

_LARGEST = 1e9
"""The same for what is no size: bases of rotary angles reach a few millions."""


def read_sizes(kind: type[Sizes], part: str, entries: Mapping[str, Any]) -> Sizes:
    """A dataclass of positive int, float and tuple[int, ...] fields from the entries of its names.

    `part` names the part in messages. Raises ModelError for an entry that is missing, is not a
    number as its field is, or is larger than any model's.
    """
    hints = get_type_hints(kind)
    missing = [name for name in hints if entries.get(name) is None]
    if missing:
        raise ModelError(f"{part}'s config.json lacks {', '.join(missing)}", "download it again")
    return kind(**{name: _value(part, name, entries[name], hints[name]) for name in hints})


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


def _value(part: str, name: str, value: Any, hint: Any) -> Any:
    if hint is int and _is_size(value) and ("layers" not in name or value <= _MOST_LAYERS):
        return value
    if hint is float and type(value) in (int, float) and 0 < value <= _LARGEST:
        return float(value)
    whole = isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_size, value))
    if hint not in (int, float) and whole:
        return tuple(value)
    raise ModelError(
        f"{part}'s config.json does not describe it: {name} is {reprlib.repr(value)}",
        "download it again",
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST
