"""config.json -> the sizes of one part, each entry checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from klein_cli.errors import ModelError

Sizes = TypeVar("Sizes")


def read_sizes(kind: type[Sizes], part: str, entries: Mapping[str, Any]) -> Sizes:
    """A dataclass of positive int, float and tuple[int, ...] fields from the entries of its names.

    `part` names the part in messages. Raises ModelError for an entry that is missing or is not a
    number as its field is.
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
            raise ModelError(f"{part}'s {name} is {value!r}, not {supported!r}", hint)


def _value(part: str, name: str, value: Any, hint: Any) -> Any:
    if hint is int and _positive(value, (int,)):
        return value
    if hint is float and _positive(value, (int, float)):
        return float(value)
    whole = isinstance(value, (list, tuple)) and all(_positive(n, (int,)) for n in value)
    if hint not in (int, float) and whole:
        return tuple(value)
    raise ModelError(
        f"{part}'s config.json does not describe it: {name} is {value!r}", "download it again"
    )


def _positive(value: Any, kind: tuple[type, ...]) -> bool:
    return type(value) in kind and float(value) > 0
