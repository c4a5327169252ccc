"""Rows -> jobs: seeds, names and every complaint, before any work starts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from given_images import input_images

from klein_cli.errors import UsageError
from klein_cli.output.naming import destination
from klein_cli.presets import presets
from klein_cli.prompts.columns import BadRow
from klein_cli.prompts.rows import Defaults, Row
from klein_cli.run.jobs import Job
from klein_cli.run.plan import Output, Plan, check_folders, plan
from klein_cli.run.resume.history import History

pytestmark = pytest.mark.usefixtures("empty_folder")

TINY = presets()["tiny"]
BASE = presets()["klein-base-4b"]


def planned(
    *rows: Row | BadRow,
    output: str | None = "d/",
    n: int = 1,
    seed: int = 10,
    overwrite: bool = False,
    source: str = "p.jsonl",
    base: bool = False,
    history: History | None = None,
    seeds: tuple[range, ...] = (),
    wildcards: bool = False,
) -> Plan:
    preset = BASE if base else TINY
    defaults = Defaults(preset=preset, n=n, seeds=seeds, wildcards=wildcards)
    return plan(
        rows,
        source=source,
        defaults=defaults,
        seed=seed,
        output=Output(where=destination(output), overwrite=overwrite, today=date(2026, 3, 9)),
        images=input_images(),
        history=history,
    )


def first(made: Plan) -> Job:
    return next(iter(made.jobs))


def seeds_of(made: Plan) -> list[int]:
    return [job.recipe.seed for job in made.jobs]


def paths(made: Plan) -> list[str]:
    return [str(job.path) for job in made.jobs]


def test_picture_k_of_a_run_gets_seed_plus_k_unless_its_row_says_otherwise() -> None:
    made = planned(
        Row(prompt="a"), Row(prompt="b", seed=100, n=2), Row(prompt="c"), Row(prompt="d", n=2)
    )
    assert seeds_of(made) == [10, 100, 101, 13, 14, 15]
    assert [job.index for job in made.jobs] == [1, 2, 3, 4, 5, 6]
    assert made.uses_seed


def test_num_images_is_per_prompt() -> None:
    assert seeds_of(planned(Row(prompt="a"), Row(prompt="b"), n=2)) == [10, 11, 12, 13]


def test_a_run_whose_rows_all_have_seeds_uses_none_of_its_own() -> None:
    assert not planned(Row(prompt="a", seed=1), Row(prompt="b", seed=2)).uses_seed


def test_one_picture_keeps_its_name_and_several_are_numbered() -> None:
    assert paths(planned(Row(prompt="a"), output="x.png")) == ["x.png"]
    assert paths(planned(Row(prompt="a"), output="x.png", n=2)) == ["x-0001.png", "x-0002.png"]
    assert paths(planned(Row(prompt="a cat"), output=None)) == ["a-cat-10.png"]


def test_rows_name_their_own_files() -> None:
    made = planned(
        Row(prompt="a", output="one.png"), Row(prompt="b", output="two.jpg", n=2), Row(prompt="c")
    )
    assert paths(made) == ["d/one.png", "d/two-0001.jpg", "d/two-0002.jpg", "d/0004-c-13.png"]


def test_only_a_name_typed_at_the_shell_is_exact() -> None:
    assert first(planned(Row(prompt="a"), output="x.png")).exact
    assert not first(planned(Row(prompt="a", output="y.png"), output="x.png")).exact
    assert not first(planned(Row(prompt="a"))).exact


def test_all_bad_lines_are_reported_together_in_order() -> None:
    with pytest.raises(UsageError) as caught:
        planned(
            Row(prompt="a", line=1, width=100),
            Row(prompt="fine", line=2),
            Row(prompt="b", line=3, output="../x.png"),
            BadRow(line=4, message="malformed JSON", hint="fix it"),
            Row(prompt="c", line=5, height=512),
            Row(prompt="d", line=6, seed=2**63 - 1, n=2),
        )
    lines = caught.value.message.splitlines()
    assert lines[0] == "p.jsonl has 5 bad lines"
    for line, number, what in zip(
        lines[1:],
        (1, 3, 4, 5, 6),
        ("width 100", "leaves the output folder", "malformed", "height 512", "seed"),
        strict=True,
    ):
        assert line.startswith(f"  line {number}: ")
        assert what in line


def test_a_typed_prompts_fault_names_no_line() -> None:
    with pytest.raises(UsageError) as caught:
        planned(Row(prompt="a", width=512), source="", n=3)
    assert caught.value.message == "width 512 is out of range for tiny"
    assert caught.value.hint == "use 128 to 384"


@pytest.mark.parametrize(("side", "right"), [(112, False), (128, True), (384, True), (400, False)])
def test_sides_are_those_the_model_makes(side: int, right: bool) -> None:
    if right:
        assert first(planned(Row(prompt="a", width=side))).recipe.width == side
    else:
        with pytest.raises(UsageError, match="out of range for tiny"):
            planned(Row(prompt="a", width=side))


def test_no_rows_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"p\.jsonl holds no prompts"):
        planned()


def test_an_existing_file_is_refused_and_with_overwrite_it_is_not() -> None:
    Path("x.png").touch()
    with pytest.raises(UsageError, match="already exists"):
        planned(Row(prompt="a"), output="x.png")
    assert paths(planned(Row(prompt="a"), output="x.png", overwrite=True)) == ["x.png"]


def test_standard_output_takes_one_picture_without_a_name() -> None:
    assert first(planned(Row(prompt="a"), output="-")).path is None
    with pytest.raises(UsageError, match="one image"):
        planned(Row(prompt="a"), output="-", n=2)
    with pytest.raises(UsageError, match="cannot be combined with a row's output"):
        planned(Row(prompt="a", output="x.png"), output="-")


def test_a_distilled_model_ignores_a_rows_guidance_and_says_so() -> None:
    # Left in, guidance above 1 would turn classifier-free guidance on.
    row = Row(prompt="a", guidance=4.0, negative_prompt="b")
    made = planned(row)
    assert (first(made).recipe.guidance, first(made).recipe.negative_prompt) == (1.0, None)
    assert made.without_effect == {"guidance", "negative_prompt"}


def test_a_base_model_uses_a_rows_guidance() -> None:
    made = planned(Row(prompt="a", guidance=7.0, negative_prompt="b"), base=True)
    assert (first(made).recipe.guidance, first(made).recipe.negative_prompt) == (7.0, "b")
    assert made.without_effect == set()


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("guidance", [-1.0, 1e9, float("inf"), float("nan")])
def test_a_number_that_is_no_guidance_is_refused_of_every_model(
    guidance: float, base: bool
) -> None:
    """A distilled one ignores it, and would hide what the next model finds."""
    with pytest.raises(UsageError, match=r"guidance .* is out of range"):
        planned(Row(prompt="a", guidance=guidance, line=1), base=base)


def test_a_prompt_too_long_for_jpeg_is_refused_beforehand() -> None:
    with pytest.raises(UsageError, match="does not fit in a JPEG"):
        planned(Row(prompt="\u00e9" * 40_000), output="x.jpg", source="")


def test_check_folders_looks_at_every_folder() -> None:
    Path("file").touch()
    good = planned(Row(prompt="a"), Row(prompt="b"))
    check_folders(good.folders)
    with pytest.raises(UsageError, match="cannot write in the folder file"):
        check_folders(good.folders | planned(Row(prompt="a"), output="file/").folders)
    assert sorted(path.name for path in Path().iterdir()) == ["file"]


def test_a_sweep_draws_every_row_with_each_seed() -> None:
    made = planned(Row(prompt="a"), Row(prompt="b", seed=40), seeds=(range(1, 3), range(9, 10)))
    assert seeds_of(made) == [1, 2, 9, 40]
    assert paths(made) == ["d/0001-a-1.png", "d/0002-a-2.png", "d/0003-a-9.png", "d/0004-b-40.png"]
    assert not made.uses_seed


def test_a_row_that_wants_a_number_of_pictures_in_a_sweep_is_a_bad_line() -> None:
    with pytest.raises(UsageError) as caught:
        planned(Row(prompt="a", line=3, n=2), Row(prompt="b", line=4), seeds=(range(2),))
    assert caught.value.message == "p.jsonl line 3: n and --seeds both say how many images"


def test_wildcards_name_the_file_by_what_was_chosen() -> None:
    made = planned(Row(prompt="a {red|blue} cat", n=4), wildcards=True)
    assert {job.recipe.prompt for job in made.jobs} == {"a red cat", "a blue cat"}
    for job in made.jobs:
        assert job.recipe.prompt.replace(" ", "-") in str(job.path)


def test_bad_wildcards_are_a_bad_line() -> None:
    with pytest.raises(UsageError, match="line 2: the wildcards have a"):
        planned(Row(prompt="{a|b}", line=1), Row(prompt="{a|b", line=2), wildcards=True)


def test_rows_are_taken_one_by_one() -> None:
    """A hundred thousand of them, or a pipe that is still being written."""
    taken: list[int] = []
    seen: list[int] = []

    def rows() -> Iterator[Row]:
        for number in range(1, 6):
            taken.append(number)
            yield Row(prompt="a", line=number)

    class Seeing(History):
        def take(self, row: str, *, own_seed: bool) -> tuple[int, None]:
            seen.append(len(taken))
            return 0, None

    plan(
        rows(),
        source="p.txt",
        defaults=Defaults(preset=TINY),
        seed=1,
        output=Output(where=destination("d/"), overwrite=False, today=date(2026, 3, 9)),
        images=input_images(),
        history=Seeing(),
    )
    assert seen == [2, 2, 3, 4, 5]


@pytest.mark.parametrize("wrong", [{"width": 64}, {"steps": 0}])
def test_a_fault_of_the_options_is_no_lines(wrong: dict[str, int]) -> None:
    """Else it would be told of a hundred thousand lines."""
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} .* is out of range"):
        plan(
            [Row(prompt="a", line=1), Row(prompt="b", line=2)],
            source="p.txt",
            defaults=Defaults(preset=TINY, **wrong),
            seed=1,
            output=Output(where=destination("d/"), overwrite=False, today=date(2026, 3, 9)),
            images=input_images(),
        )
