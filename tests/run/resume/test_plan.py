"""Resuming a run: which rows find their images, and what the new ones get."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import pytest
from given_images import input_images
from PIL import Image
from records import record

from klein_cli.errors import UsageError
from klein_cli.output.naming import destination
from klein_cli.output.png import encode
from klein_cli.presets import presets
from klein_cli.prompts.rows import Defaults, Row
from klein_cli.recipe import Recipe
from klein_cli.run.jobs import Job
from klein_cli.run.plan import Output, Plan, plan
from klein_cli.run.resume.history import History, file_hash, read_history, recipe_hash
from klein_cli.run.resume.journal import RunJournal
from klein_cli.run.resume.manifest import opened
from klein_cli.settings import Settings

pytestmark = pytest.mark.usefixtures("empty_folder")

TINY = presets()["tiny"]
DEFAULTS = Defaults(preset=TINY, width=128, height=128)
CATS = (Row(prompt="a cat"), Row(prompt="a dog"), Row(prompt="a cow"))


def planned(*rows: Row, history: History | None = None, **changes: Any) -> Plan:
    overwrite, output = changes.pop("overwrite", False), changes.pop("output", "d/")
    return plan(
        rows,
        source="p.jsonl",
        defaults=replace(DEFAULTS, **changes),
        seed=history.seed if history else 10,
        output=Output(where=destination(output), overwrite=overwrite, today=date(2026, 3, 9)),
        images=input_images(),
        history=history,
    )


def begin(*rows: Row, **changes: Any) -> list[Job]:
    """Plan a run and write its plan down."""
    made = planned(*rows, **changes)
    with opened(Path("d")) as manifest:
        journal = RunJournal(manifest, manifest.history(), resumed=False, preset=TINY)
        journal.open(made, model="tiny", seed=10)
    return list(made.jobs)


def make(job: Job) -> None:
    """The job's image, whole and on record."""
    save(job.path, job.recipe)
    with opened(Path("d")) as manifest:
        journal = RunJournal(manifest, manifest.history(), resumed=True, preset=TINY)
        assert job.path is not None
        journal.saved(job, job.path, file_hash(job.path), 1.5)


def save(path: Path | None, recipe: Recipe) -> None:
    assert path is not None
    written = record(recipe, Settings(), provenance={})
    pixels = numpy.full((16, 16, 3), recipe.seed % 256, numpy.uint8)
    path.write_bytes(encode(pixels, ".png", written, "a"))


def resumed(*rows: Row, **changes: Any) -> Plan:
    history = read_history(Path("d"))
    assert history is not None
    return planned(*rows, history=history, **changes)


def told(made: Plan) -> list[tuple[int, str, int, str]]:
    return [(job.index, job.recipe.prompt, job.recipe.seed, str(job.path)) for job in made.jobs]


def test_only_what_is_missing_is_made_under_its_old_name_and_seed() -> None:
    jobs = begin(*CATS)
    make(jobs[1])
    again = resumed(*CATS)
    assert again.done == 1
    assert told(again) == [
        (1, "a cat", 10, "d/0001-a-cat-10.png"),
        (3, "a cow", 12, "d/0003-a-cow-12.png"),
    ]
    assert [job.recorded for job in again.jobs] == [1, 1]


def test_a_file_that_grew_and_was_put_in_another_order() -> None:
    jobs = begin(*CATS)
    make(jobs[0])
    again = resumed(Row(prompt="a hen"), CATS[2], CATS[0], Row(prompt="a pig"), CATS[1])
    assert again.done == 1
    assert told(again) == [
        (4, "a hen", 13, "d/0004-a-hen-13.png"),
        (3, "a cow", 12, "d/0003-a-cow-12.png"),
        (5, "a pig", 14, "d/0005-a-pig-14.png"),
        (2, "a dog", 11, "d/0002-a-dog-11.png"),
    ]
    assert [job.recorded for job in again.jobs] == [0, 1, 0, 1]


def test_equal_rows_are_told_apart_by_their_occurrence() -> None:
    jobs = begin(CATS[0], CATS[1], CATS[0])
    make(jobs[0])
    again = resumed(CATS[0], CATS[0], CATS[0], CATS[1])
    assert told(again) == [
        (3, "a cat", 12, "d/0003-a-cat-12.png"),
        (4, "a cat", 13, "d/0004-a-cat-13.png"),
        (2, "a dog", 11, "d/0002-a-dog-11.png"),
    ]


def test_more_pictures_of_a_row_are_new_ones() -> None:
    for job in begin(CATS[0], CATS[1], n=2):
        make(job)
    again = resumed(CATS[0], CATS[1], n=3)
    assert again.done == 4
    assert [(index, seed) for index, _, seed, _ in told(again)] == [(5, 14), (6, 15)]


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 2},
        {"width": 144},
        {"preset": replace(TINY, guidance=2.0)},
        {"preset": replace(TINY, name="other")},
    ],
)
def test_a_row_with_other_settings_is_a_new_row(changes: dict[str, Any]) -> None:
    for job in begin(*CATS):
        make(job)
    again = resumed(*CATS, **changes)
    assert (again.done, [index for index, *_ in told(again)]) == (0, [4, 5, 6])


def test_a_row_with_its_own_seed_keeps_it_and_finds_its_picture() -> None:
    jobs = begin(Row(prompt="a cat", seed=77, n=2), CATS[1])
    make(jobs[0])
    again = resumed(CATS[1], Row(prompt="a cat", seed=77, n=2))
    assert told(again) == [
        (3, "a dog", 12, "d/0003-a-dog-12.png"),
        (2, "a cat", 78, "d/0002-a-cat-78.png"),
    ]
    assert told(resumed(Row(prompt="a cat", seed=79)))[0][0] == 4


def test_a_row_that_was_corrected_is_made_once() -> None:
    """It is known by its name and seed, and from then on by what it says."""
    typo, right = (Row(prompt=p, seed=4, output="two.png") for p in ("a crcle", "a circle"))
    begin(CATS[0], typo)
    again = resumed(CATS[0], right)
    assert told(again)[1] == (2, "a circle", 4, "d/two.png")
    with opened(Path("d")) as manifest:
        RunJournal(manifest, manifest.history(), resumed=True, preset=TINY).open(
            again, model="tiny", seed=10
        )
    make(list(again.jobs)[1])
    assert [prompt for _, prompt, *_ in told(resumed(CATS[0], right))] == ["a cat"]


def test_a_picture_is_one_rows_alone() -> None:
    """A new row of the same name and seed, above the one that it was planned for."""
    old = Row(prompt="a dog", seed=4, output="two.png")
    begin(CATS[0], old)
    both = told(resumed(Row(prompt="a hen", seed=4, output="two.png"), old))
    assert both == [(2, "a hen", 4, "d/two.png"), (3, "a dog", 4, "d/two-2.png")]


def test_a_row_that_asks_for_seed_0_is_not_one_that_asks_for_none() -> None:
    for job in begin(Row(prompt="a cat")):
        make(job)
    (job,) = resumed(Row(prompt="a cat", seed=0)).jobs
    assert (job.index, job.recipe.seed) == (2, 0)


def test_wildcards_are_found_by_the_row_and_not_by_what_was_chosen() -> None:
    row = Row(prompt="a {red|blue|green|black} cat")
    jobs = begin(row, CATS[0], row, wildcards=True)
    make(jobs[2])
    again = resumed(CATS[0], row, row, wildcards=True)
    assert again.done == 1
    assert [job.recipe for job in again.jobs] == [jobs[1].recipe, jobs[0].recipe]


def test_a_whole_picture_that_nobody_recorded_is_adopted() -> None:
    jobs = begin(*CATS)
    save(jobs[0].path, jobs[0].recipe)
    again = resumed(*CATS)
    ((adopted, _),) = again.adopted
    assert again.done == 1
    assert adopted.recipe == recipe_hash(jobs[0].recipe)
    assert adopted.sha256 == file_hash(Path("d/0001-a-cat-10.png"))
    with opened(Path("d")) as manifest:
        journal = RunJournal(manifest, manifest.history(), resumed=True, preset=TINY)
        journal.open(again, model="tiny", seed=10)
    assert resumed(*CATS).adopted == []
    assert resumed(*CATS).done == 1


def test_a_torn_picture_is_made_again_in_its_place() -> None:
    jobs = begin(*CATS)
    make(jobs[0])
    path = Path("d/0001-a-cat-10.png")
    path.write_bytes(path.read_bytes()[:-20])
    first, *_ = resumed(*CATS).jobs
    assert (first.path, first.replace) == (path, True)


def test_a_picture_that_is_somebody_elses_now_is_left_alone() -> None:
    jobs = begin(*CATS)
    make(jobs[0])
    Image.new("RGB", (16, 16)).save("d/0001-a-cat-10.png")
    first, *_ = resumed(*CATS).jobs
    assert (str(first.path), first.replace, first.index) == ("d/0001-a-cat-10-2.png", False, 1)
    first, *_ = resumed(*CATS, overwrite=True).jobs
    assert str(first.path) == "d/0001-a-cat-10.png"
    # And when it was made beside it, that is where it is looked for from then on.
    first, *_ = resumed(*CATS).jobs
    make(first)
    assert resumed(*CATS).done == 1


def test_a_spelt_out_name_that_is_somebody_elses_now_is_refused() -> None:
    begin(*CATS, output="d/x.png")
    Image.new("RGB", (16, 16)).save("d/x-0002.png")
    with pytest.raises(UsageError, match="is another image now"):
        resumed(*CATS, output="d/x.png")


def test_names_that_are_planned_are_nobody_elses() -> None:
    """A new row must not take the name of an image that another row still waits for."""
    begin(Row(prompt="a cat", output="x.png"))
    again = resumed(Row(prompt="a dog", output="x.png"), Row(prompt="a cat", output="x.png"))
    assert [str(job.path) for job in again.jobs] == ["d/x-2.png", "d/x.png"]


def test_a_plan_that_was_torn_gives_the_rest_what_it_would_have_had() -> None:
    jobs = begin(*CATS)
    lines = Path("d/manifest.jsonl").read_text().splitlines(keepends=True)
    Path("d/manifest.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    again = resumed(*CATS)
    assert [job.recipe for job in again.jobs] == [job.recipe for job in jobs]
    assert [job.path for job in again.jobs] == [job.path for job in jobs]
