"""A table of JSON, TOML or a spreadsheet -> the fields of a dataclass, each value checked.

What a preset, a prompts file, an image's record and a model's config.json share: which keys a
dataclass has, which it needs, and whether a value is of its field's type. Bounds, and the words in
which a user hears of a fault, are the caller's.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, NoReturn

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class WrongTypeError(TypeError):
    """`value` of the key `name` is not `wanted`, a noun such as "a whole number"."""

    def __init__(self, name: str, value: object, wanted: str) -> None:
        super().__init__(f"{name} is {shortened(str(value))!r}, not {wanted}")
        self.name, self.value, self.wanted = name, value, wanted


class RepeatedKeyError(ValueError):
    """A key that stands twice in one JSON object, of which Python would take the last."""


def unknown(kind: type, table: Iterable[str]) -> list[str]:
    """The keys of `table` that no field of the dataclass has, in their order."""
    known = {field.name for field in fields(kind)}
    return [key for key in table if key not in known]


def missing(kind: type, table: Mapping[str, Any]) -> list[str]:
    """The fields of the dataclass that have no default and are not in `table`, in their order."""
    return [field.name for field in fields(kind) if _is_needed(field) and field.name not in table]


def checked(kind: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `table` that are fields of the dataclass, a list as the tuple it becomes, and
    a table as the dataclass of its field.

    A whole number will do for a float and stays one, so that a record keeps its bytes; true and
    false are not numbers. Raises WrongTypeError for the first value that its field cannot hold.
    """
    hints = typing.get_type_hints(kind)
    found = {name: table[name] for name in hints if name in table}
    for name, value in found.items():
        if not fits(value, hints[name]):
            raise WrongTypeError(name, value, described(hints[name]))
    return {name: built(value, hints[name]) for name, value in found.items()}


def built(value: Any, hint: Any) -> Any:
    """A value that `fits` its field's type -> that type: tables become dataclasses, lists tuples.

    Raises WrongTypeError, and what the dataclasses raise for values that make no sense.
    """
    if _is_union(hint):
        return built(value, next(each for each in typing.get_args(hint) if fits(value, each)))
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return hint(**checked(hint, value))
    if isinstance(value, list | tuple):
        inner = typing.get_args(hint)[0]
        return typing.get_origin(hint)(built(each, inner) for each in value)
    return value


def fits(value: object, hint: Any) -> bool:
    """Whether a value from a file is of a field's type: bool, int, float, str, None, tuple, list,
    a table for a mapping or for a dataclass, whose needed keys it has, or a union of them. NaN and
    infinity are not numbers.
    """
    if _is_union(hint):
        return any(fits(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) in (tuple, list):
        inner = typing.get_args(hint)[0]
        return isinstance(value, list | tuple) and all(fits(each, inner) for each in value)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return isinstance(value, dict) and not missing(hint, value)
    if typing.get_origin(hint) is Mapping:
        inner = typing.get_args(hint)[1]
        return isinstance(value, dict) and all(fits(each, inner) for each in value.values())
    if hint is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is hint


def described(hint: Any) -> str:
    """What a value of a field's type is to a user: "a whole number", "text", "a list"."""
    if _is_union(hint):
        hint = typing.get_args(hint)[0]
    return "a table" if is_dataclass(hint) else _KINDS.get(hint, "a list")


def parse_json(text: str) -> Any:
    """JSON as its standard has it, less repeated keys. Raises ValueError or RecursionError.

    A RepeatedKeyError says which key; Python's own NaN and Infinity are refused too.
    """
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)


def strict_decoder() -> json.JSONDecoder:
    """A decoder that reads as `parse_json` does, of several values the next."""
    return json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse)


def shortened(text: str, most: int = 40) -> str:
    """`text` in at most so many characters, for a message."""
    return text if len(text) <= most else text[: most - 3] + "..."


def _is_needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise RepeatedKeyError(f"the key {key!r} is given twice")
        table[key] = value
    return table


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
