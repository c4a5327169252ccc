"""The list of mutations keeps up with the code, and the report tells the truth.

The page of docs/ is what scripts/mutate.py found when it last ran: no test holds it to the list.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mutate import ROOT, SURVIVED, Mutation, mutations, report

NUMERICS = ("mask", "taps", "position ids", "schedule", "packing", "noise")


@pytest.mark.parametrize("mutation", mutations(), ids=lambda one: f"{one.part}: {one.what}")
def test_a_mutation_has_its_line_and_its_tests(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    mutated = mutation.applied(source)
    assert mutated != source
    if Path(mutation.file).suffix == ".py":
        compile(mutated, mutation.file, "exec")
    assert all((ROOT / test).exists() for test in mutation.tests)


def test_a_line_that_is_gone_is_told() -> None:
    lost = Mutation("mask", "x", "a.py", "old", "new", ())
    with pytest.raises(ValueError, match=r"a\.py holds 'old' 2 times"):
        lost.applied("old old")


def test_every_part_of_the_numerics_is_there() -> None:
    found = [mutation.part for mutation in mutations()]
    assert len(found) >= 20
    assert set(NUMERICS) <= set(found)
    assert len({(m.file, m.old, m.new) for m in mutations()}) == len(found)


def test_a_survivor_is_reported() -> None:
    pair = mutations()[:2]
    text = report(pair, ["tests/a.py::test_b", None])
    assert "2 mutations, 1 caught" in text
    assert "`a.py::test_b`" in text
    assert text.count(SURVIVED) == 1
