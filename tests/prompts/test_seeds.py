"""--seeds: what a sweep is, and what is none."""

from __future__ import annotations

from itertools import chain

import pytest

from klein_cli.errors import UsageError
from klein_cli.prompts.seeds import parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("1-4", [1, 2, 3, 4]),
        ("3,7,10-12", [3, 7, 10, 11, 12]),
        (" 9 - 10 , 0 ", [9, 10, 0]),
        ("5-5", [5]),
        ("9223372036854775807", [2**63 - 1]),
    ],
)
def test_ranges_and_lists(text: str, seeds: list[int]) -> None:
    assert list(chain.from_iterable(parse_seeds(text))) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a valid sweep"),
        ("a", "is not a valid sweep"),
        ("-1", "is not a valid sweep"),
        ("1-", "is not a valid sweep"),
        ("1,,2", "is not a valid sweep"),
        ("1-2-3", "is not a valid sweep"),
        ("٣", "is not a valid sweep"),
        ("20-1", "runs backwards"),
        ("1-5,3", "names 3 twice"),
        ("9223372036854775808", "out of range"),
        ("0-9223372036854775807", "too many"),
    ],
)
def test_what_is_no_sweep(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_seeds(text)
