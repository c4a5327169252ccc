"""The five filters of PNG, against the specification's own words, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy
import pytest
from numpy.typing import NDArray

from klein_cli.output import row_filters
from klein_cli.output.row_filters import filtered

Rows = NDArray[numpy.uint8]


def paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    return min((a, b, c), key=lambda value: abs(p - value))


PREDICTORS: list[Callable[[int, int, int], int]] = [
    lambda a, b, c: 0,
    lambda a, b, c: a,
    lambda a, b, c: b,
    lambda a, b, c: (a + b) // 2,
    paeth,
]


def by_the_book(rows: Rows, pixel_bytes: int, number: int, row: int) -> list[int]:
    """What filter `number` makes of a row: each byte less its prediction, modulo 256."""
    out = []
    for place, value in enumerate(rows[row].tolist()):
        back = place - pixel_bytes
        left = int(rows[row, back]) if back >= 0 else 0
        corner = int(rows[row - 1, back]) if back >= 0 else 0
        prediction = PREDICTORS[number](left, int(rows[row - 1, place]), corner)
        out.append((value - prediction) % 256)
    return out


def size(differences: list[int]) -> int:
    return sum(min(value, 256 - value) for value in differences)


def kinds() -> dict[str, Rows]:
    """Rows for each of which another filter is the best."""
    generator = numpy.random.default_rng(0)
    few = generator.integers(0, 2, (9, 48), dtype=numpy.uint8) * 255
    across = numpy.repeat(generator.integers(0, 256, (9, 1), dtype=numpy.uint8), 48, axis=1)
    down = numpy.repeat(generator.integers(0, 256, (1, 48), dtype=numpy.uint8), 9, axis=0)
    noise = generator.integers(0, 256, (9, 48), dtype=numpy.uint8)
    walk = generator.integers(-6, 7, (9, 48)).cumsum(0).cumsum(1)
    return {"few": few, "across": across, "down": down, "noise": noise, "walk": walk.astype("u1")}


@pytest.mark.parametrize("pixel_bytes", [1, 3, 8])
@pytest.mark.parametrize("kind", kinds())
def test_each_row_has_the_filter_of_the_smallest_differences(kind: str, pixel_bytes: int) -> None:
    rows = kinds()[kind]
    written = filtered(rows, pixel_bytes).tolist()
    assert len(written) == len(rows) - 1
    for row, (number, *differences) in enumerate(written, start=1):
        candidates = [by_the_book(rows, pixel_bytes, n, row) for n in range(5)]
        assert differences == candidates[number]
        assert number == min(range(5), key=lambda n: (size(candidates[n]), n))


def test_every_filter_is_met() -> None:
    # Else the test above would say nothing of one that is wrong and never chosen.
    chosen = [filtered(rows, bytes_)[:, 0] for rows in kinds().values() for bytes_ in (1, 3, 8)]
    assert set(numpy.concatenate(chosen).tolist()) == {0, 1, 2, 3, 4}


def test_paeth_is_right_for_all_neighbours() -> None:
    # Distances reach 510, and the arithmetic here is in bytes.
    values = [*range(0, 256, 15), 1, 2, 63, 64, 65, 126, 127, 128, 129, 191, 192, 253, 254]
    triples = numpy.array(list(product(values, repeat=3)), dtype=numpy.uint8)
    found = row_filters.paeth(*triples.T)
    assert found.tolist() == [paeth(*triple) for triple in triples.tolist()]
