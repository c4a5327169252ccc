"""Tables -> dataclasses: what a file may say for a field, and how a fault is named."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from klein_cli.tables import (
    RepeatedKeyError,
    WrongTypeError,
    checked,
    fits,
    missing,
    parse_json,
    shortened,
    unknown,
)


@dataclass(kw_only=True)
class Thing:
    name: str
    count: int
    scale: float
    sides: tuple[int, ...]
    note: str | None = None
    tags: list[str] = field(default_factory=list)


TABLE = {"name": "a", "count": 2, "scale": 1.5, "sides": [1, 2]}


def test_a_table_becomes_what_the_dataclass_takes() -> None:
    thing = Thing(**checked(Thing, {**TABLE, "note": None, "other": 1}))
    assert thing == Thing(name="a", count=2, scale=1.5, sides=(1, 2), note=None)


def test_a_whole_number_for_a_float_stays_one() -> None:
    """A record that says 4 would otherwise be written again as 4.0."""
    assert type(checked(Thing, {**TABLE, "scale": 4})["scale"]) is int


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"name": 1}, "text"),
        ({"note": 1}, "text"),
        ({"count": True}, "a whole number"),
        ({"count": 2.0}, "a whole number"),
        ({"scale": "1"}, "a number"),
        ({"scale": True}, "a number"),
        ({"scale": math.nan}, "a number"),
        ({"scale": math.inf}, "a number"),
        ({"sides": 1}, "a list"),
        ({"sides": [1, "2"]}, "a list"),
        ({"sides": "12"}, "a list"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(WrongTypeError) as caught:
        checked(Thing, TABLE | changes)
    ((name, value),) = changes.items()
    assert (caught.value.name, caught.value.wanted) == (name, wanted)
    assert caught.value.value is value


def test_keys_that_are_missing_and_keys_that_no_field_has() -> None:
    assert missing(Thing, {"count": 1, "other": 2}) == ["name", "scale", "sides"]
    assert unknown(Thing, {"count": 1, "other": 2, "another": 3}) == ["other", "another"]


def test_none_fits_where_it_may_stand_and_nowhere_else() -> None:
    assert fits(None, str | None)
    assert not fits(None, str)


def test_a_key_that_stands_twice_is_named() -> None:
    with pytest.raises(RepeatedKeyError, match="'b' is given twice"):
        parse_json('{"a": {"b": 1, "c": 2, "b": 1}}')


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_has_no_word_for_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match=f"{number} is not a number"):
        parse_json(f'{{"a": [{number}]}}')


def test_long_words_are_cut_and_short_ones_are_not() -> None:
    assert shortened("x" * 40) == "x" * 40
    assert shortened("x" * 41) == "x" * 37 + "..."
