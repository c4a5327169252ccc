"""Out of memory: each step in its turn, said once, standing for what is as large, on record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from klein_cli.errors import OutOfMemoryError
from klein_cli.recipe import Mask, Recipe, Reference
from klein_cli.run.batching import Batch
from klein_cli.run.fallback import MemoryFallback, what_fits
from klein_cli.run.jobs import Job

ERROR = OutOfMemoryError("it did not fit", "use less")


def jobs(count: int, side: int = 512) -> tuple[Job, ...]:
    return tuple(
        Job(
            index=index,
            recipe=Recipe(
                prompt="a",
                seed=index,
                width=side,
                height=side,
                steps=4,
                guidance=1.0,
                model="tiny",
            ),
            path=None,
            exact=True,
        )
        for index in range(1, count + 1)
    )


def shape(batches: Sequence[Batch]) -> list[tuple[int, bool]]:
    return [(len(batch.jobs), batch.tiled) for batch in batches]


def test_a_batch_is_halved_then_decoded_in_tiles_then_given_up() -> None:
    fallback = MemoryFallback()
    (whole,) = fallback.batches(jobs(4))
    assert (shape([whole]), whole.step_down) == ([(4, False)], None)
    halves, said = fallback.step_down(whole, ERROR)
    assert shape(halves) == [(2, False), (2, False)]
    assert said == (
        "it did not fit; from here on, images of 512x512 and larger are made 2 at a time"
    )
    assert halves[0].step_down == "out of memory: made 2 at a time, not 4"
    assert [job.index for half in halves for job in half.jobs] == [1, 2, 3, 4]
    ones, said = fallback.step_down(halves[0], ERROR)
    assert shape(ones) == [(1, False), (1, False)]
    assert said is not None
    assert said.endswith("are made one by one")
    tiled, said = fallback.step_down(ones[0], ERROR)
    assert shape(tiled) == [(1, True)]
    assert said is not None
    assert "decoded in tiles" in said
    assert tiled[0].step_down == (
        "out of memory: made 1 at a time, not 4; out of memory: decoded in tiles"
    )
    assert fallback.step_down(tiled[0], ERROR) == ([], None)


def test_a_step_is_said_once_and_stands() -> None:
    fallback = MemoryFallback()
    first, second = (next(fallback.batches(jobs(4))) for _ in range(2))
    fallback.step_down(first, ERROR)
    # A worker beside it had begun such a batch before the first one failed.
    halves, said = fallback.step_down(second, ERROR)
    assert (shape(halves), said) == ([(2, False), (2, False)], None)
    assert shape(list(fallback.batches(jobs(4)))) == [(2, False), (2, False)]


def test_smaller_pictures_are_left_alone_and_larger_ones_are_not() -> None:
    fallback = MemoryFallback()
    (whole,) = fallback.batches(jobs(2))
    fallback.step_down(fallback.step_down(whole, ERROR)[0][0], ERROR)
    assert shape(list(fallback.batches(jobs(2, 256)))) == [(2, False)]
    assert shape(list(fallback.batches(jobs(2, 1024)))) == [(1, True), (1, True)]


def test_a_batch_that_was_small_anyway_is_no_step_down() -> None:
    fallback = MemoryFallback()
    (whole,) = fallback.batches(jobs(4))
    fallback.step_down(whole, ERROR)
    (last,) = fallback.batches(jobs(1))
    assert last.step_down is None


def test_a_picture_made_alone_says_why() -> None:
    (whole,) = MemoryFallback().batches(jobs(2))
    one, _ = whole.alone("a batch of 2 failed: oops")
    assert one.step_down == "made alone: a batch of 2 failed: oops"


class Memory:
    """Renders images up to so many pixels."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.tried: list[Recipe] = []

    def render(self, recipes: Sequence[Recipe], **options: Any) -> list[Any]:
        assert options == {"tiled": True, "images": None}
        self.tried += recipes
        if recipes[0].width * recipes[0].height > self.most:
            raise ERROR
        return []


@pytest.mark.parametrize(
    ("side", "fits"), [(1024, "896x896"), (900, "896x896"), (600, "512x512"), (129, "128x128")]
)
def test_what_fits_is_found_by_trying(side: int, fits: str) -> None:
    memory = Memory(side * side)
    assert what_fits(memory, jobs(1, 1024)[0].recipe) == fits
    assert len(memory.tried) == 3
    assert {recipe.steps for recipe in memory.tried} == {1}


def test_looking_for_what_fits_raises_nothing_of_its_own() -> None:
    # Where memory is short, a library may fail in words that nobody knows.
    class Strange(Memory):
        def render(self, recipes: Sequence[Recipe], **options: Any) -> list[Any]:
            if recipes[0].width > 300:
                raise RuntimeError("could not execute a primitive")
            return super().render(recipes, **options)

    assert what_fits(Strange(10**9), jobs(1, 1024)[0].recipe) == "256x256"


def test_nothing_fits() -> None:
    assert what_fits(Memory(0), jobs(1, 1024)[0].recipe) is None


def test_what_fits_is_a_size_that_can_be_asked_for() -> None:
    recipe = Recipe(prompt="a", seed=1, width=16, height=336, steps=4, guidance=1.0, model="tiny")
    assert what_fits(Memory(16 * 200), recipe) == "16x160"


def edits(count: int, side: int = 512, *, masked: Mask | None = None) -> tuple[Job, ...]:
    """The same, each with two references of that size."""
    given = tuple(
        Reference(sha256=str(k) * 64, name="a.png", width=side, height=side) for k in range(2)
    )
    return tuple(
        replace(job, recipe=replace(job.recipe, references=given, mask=masked))
        for job in jobs(count, side)
    )


def test_references_count_in_what_is_as_large() -> None:
    """An edit takes the memory of a larger image: words alone are not slowed down by it."""
    fallback = MemoryFallback()
    (whole,) = fallback.batches(edits(4))
    _, said = fallback.step_down(whole, ERROR)
    assert said == (
        "it did not fit; from here on, images of 512x512 with 2 references and larger are made "
        "2 at a time"
    )
    assert shape(list(fallback.batches(jobs(4)))) == [(4, False)]
    assert shape(list(fallback.batches(edits(4)))) == [(2, False), (2, False)]
    assert shape(list(fallback.batches(jobs(4, 1024)))) == [(2, False), (2, False)]


def test_no_size_fits_a_part_of_an_image() -> None:
    """It is the image's own: a hint to choose another would be refused."""
    masked = Mask(sha256="a" * 64, name="m.png", box=(0, 0, 512, 512))
    memory = Memory(512 * 512)
    assert what_fits(memory, edits(1, masked=masked)[0].recipe) is None
    assert memory.tried == []
