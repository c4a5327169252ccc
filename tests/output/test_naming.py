"""-o, recipes and rows -> paths, by the rules of the command line."""

from __future__ import annotations

import itertools
import os
import unicodedata
from datetime import date
from pathlib import Path

import pytest

from klein_cli.errors import UsageError
from klein_cli.output.naming import Names, candidates, destination, slug
from klein_cli.recipe import Recipe

pytestmark = pytest.mark.usefixtures("empty_folder")

DAY = date(2026, 3, 9)


def recipe(prompt: str = "A red circle!", seed: int = 5, model: str = "tiny") -> Recipe:
    return Recipe(
        prompt=prompt, seed=seed, width=256, height=128, steps=4, guidance=1.0, model=model
    )


def names(output: str | None, *, several: bool = False, overwrite: bool = False) -> Names:
    return Names(destination(output).of(several=several), overwrite=overwrite, today=DAY)


def test_one_picture_without_output_is_named_after_its_prompt() -> None:
    assert names(None).of(1, recipe()) == Path("a-red-circle-5.png")


def test_several_pictures_without_output_are_numbered_here() -> None:
    assert names(None, several=True).of(3, recipe()) == Path("0003-a-red-circle-5.png")


def test_a_plain_file_is_taken_as_it_is() -> None:
    assert names("out/My Cat.PNG").of(1, recipe()) == Path("out/My Cat.PNG")


def test_a_plain_file_for_several_is_numbered() -> None:
    several = names("out/cat.v2.jpg", several=True)
    assert several.of(1, recipe()) == Path("out/cat.v2-0001.jpg")
    assert several.of(12345, recipe()) == Path("out/cat.v2-12345.jpg")


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_that_ends_in_a_slash_need_not_exist(several: bool) -> None:
    assert names("new/", several=several).of(2, recipe()) == Path("new/0002-a-red-circle-5.png")


def test_a_folder_that_exists_needs_no_slash_and_may_hold_braces() -> None:
    Path("set{1}").mkdir()
    assert names("set{1}").of(2, recipe()) == Path("set{1}/0002-a-red-circle-5.png")


def test_a_template_fills_every_field() -> None:
    output = "{model}/{date}/{index:04d}-{seed}-{slug}-{width}x{height}.webp"
    path = names(output).of(7, recipe(model="someone/FLUX.2-mine"))
    assert path == Path("someone-flux-2-mine/2026-03-09/0007-5-a-red-circle-256x128.webp")


def test_a_template_takes_format_specs_and_plain_braces() -> None:
    assert names("{date:%y%m}-{{x}}-{seed:>3}.png").of(1, recipe()) == Path("2603-{x}-  5.png")


def test_a_template_that_ends_in_a_slash_is_a_folder() -> None:
    assert names("{model}/").of(1, recipe()) == Path("tiny/0001-a-red-circle-5.png")


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A quoted template keeps the shell from doing it.
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/{seed}.png").of(1, recipe()) == tmp_path / "5.png"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "-o is empty"),
        ("a\0b.png", "-o is empty"),
        ("cat", "cat has no extension"),
        ("cat.gif", "not written as .gif"),
        ("{slug}", "has no extension"),
        ("{slug}.tiff", "not written as .tiff"),
        ("{oops}.png", r"unknown field \{oops\}"),
        ("{}.png", r"unknown field \{\}"),
        ("{seed.real}.png", "unknown field"),
        ("{slug[0]}.png", "unknown field"),
        ("{seed!r}.png", r"has a !r in \{seed!r\}"),
        ("{seed.png", "is not a valid template"),
        ("seed}.png", "is not a valid template"),
        ("{slug:04d}.png", "cannot be filled in"),
        ("{seed:c}.png", "a format for letters"),
        ("{index:0{seed}d}.png", "too wide"),
        ("{index:0999999999d}.png", "too wide"),
    ],
)
def test_outputs_that_cannot_be_used_are_refused_at_once(output: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        destination(output)


def test_an_existing_file_is_refused() -> None:
    Path("cat.png").touch()
    with pytest.raises(UsageError, match=r"cat\.png already exists"):
        names("cat.png").of(1, recipe())
    assert names("cat.png", overwrite=True).of(1, recipe()) == Path("cat.png")


def test_an_existing_file_of_a_numbered_series_is_refused() -> None:
    Path("cat-0002.png").touch()
    several = names("cat.png", several=True)
    several.of(1, recipe())
    with pytest.raises(UsageError, match=r"cat-0002\.png already exists"):
        several.of(2, recipe())


def test_a_dangling_link_counts_as_existing() -> None:
    Path("cat.png").symlink_to("nowhere")
    with pytest.raises(UsageError, match="already exists"):
        names("cat.png").of(1, recipe())


@pytest.mark.parametrize(
    ("output", "first", "free"),
    [
        (None, "a-red-circle-5.png", "a-red-circle-5-3.png"),
        ("d/", "d/0001-a-red-circle-5.png", "d/0001-a-red-circle-5-3.png"),
        ("d/{slug}.jpg", "d/a-red-circle.jpg", "d/a-red-circle-3.jpg"),
    ],
)
def test_elsewhere_the_next_free_name_is_taken(output: str | None, first: str, free: str) -> None:
    Path("d").mkdir()
    Path(first).touch()
    second = Path(first).with_stem(Path(first).stem + "-2")
    second.touch()
    assert names(output).of(1, recipe()) == Path(free)
    assert names(output, overwrite=True).of(1, recipe()) == Path(first)


@pytest.mark.parametrize("overwrite", [False, True])
def test_pictures_of_one_run_never_share_a_name(overwrite: bool) -> None:
    # With -y too: a run must not overwrite what it has just made.
    shared = names("{slug}.png", overwrite=overwrite)
    prompts = ["a cat", "A CAT", "a cat", "a-cat-2"]
    made = [shared.of(index, recipe(prompt)) for index, prompt in enumerate(prompts, start=1)]
    assert [path.name for path in made] == [
        "a-cat.png",
        "a-cat-2.png",
        "a-cat-3.png",
        "a-cat-2-2.png",
    ]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_spelt_out_name_is_not_given_over_a_rows_own(overwrite: bool) -> None:
    series = names("d/x.png", several=True, overwrite=overwrite)
    assert series.of_row("x-0002.png", None) == Path("d/x-0002.png")
    assert series.of(1, recipe()) == Path("d/x-0001.png")
    with pytest.raises(UsageError, match="is the output of a row"):
        series.of(2, recipe())


@pytest.mark.parametrize(
    ("template", "folder"),
    [
        ("a}}b/{index}.png", "a}b"),
        ("a{{b/{index}.png", "a{b"),
        ("a{{b}}/c-{index}/{seed}.png", "a{b}"),
        ("a{{b}}/c.png", "a{b}"),
        ("{index}.png", "."),
    ],
)
def test_the_folder_of_a_template_is_what_comes_before_its_fields(
    template: str, folder: str
) -> None:
    """There the manifest lies, and there --resume looks for it."""
    assert destination(template).folder == Path(folder)


def test_names_that_unicode_composes_otherwise_do_not_share_a_file() -> None:
    rows = names("d/")
    assert rows.of_row("\u00e9.png", None) == Path("d/\u00e9.png")
    assert rows.of_row("e\u0301.png", None) == Path("d/e\u0301-2.png")


def test_names_that_differ_in_case_alone_do_not_share_a_file() -> None:
    rows = names("d/")
    assert rows.of_row("Cat.png", None) == Path("d/Cat.png")
    assert rows.of_row("cat.png", None) == Path("d/cat-2.png")


def test_many_equal_names_take_no_quadratic_time() -> None:
    asked = itertools.count()

    def exists(path: Path) -> bool:
        next(asked)
        return False

    where = destination("{slug}.png")
    many = Names(where, overwrite=False, today=DAY, exists=exists)
    for index in range(1, 2001):
        many.of(index, recipe())
    assert next(asked) <= 4000


def test_a_row_names_its_file_inside_the_folder() -> None:
    assert names("d/").of_row("sub/cat.jpg", None) == Path("d/sub/cat.jpg")
    assert names(None).of_row("cat.png", None) == Path("cat.png")
    assert names("d/x.png").of_row("cat.png", None) == Path("d/cat.png")
    assert names("d/{model}/x-{seed}.png").of_row("cat.png", None) == Path("d/cat.png")


def test_a_row_of_several_numbers_its_own_name() -> None:
    rows = names("d/")
    assert [rows.of_row("cat.png", k).name for k in (1, 2)] == ["cat-0001.png", "cat-0002.png"]


@pytest.mark.parametrize("output", ["{seed}.png", "..cat.png", "..a/cat.png", "a..png"])
def test_a_rows_name_may_hold_braces_and_dots(output: str) -> None:
    assert names("d/").of_row(output, None) == Path("d") / output


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("../cat.png", "leaves the output folder"),
        ("a/../../cat.png", "leaves the output folder"),
        ("a/../cat.png", r"holds a \.\."),
        ("/tmp/cat.png", "leaves the output folder"),
    ],
)
def test_a_row_that_leaves_the_folder_is_refused(output: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        names("d/").of_row(output, None)


@pytest.mark.parametrize(
    "outputs", [("x.png", "X.png/y.png"), ("x.png/y.png", "x.png"), ("a.png", "a.png/b/c.png")]
)
def test_a_picture_is_no_folder_for_another(outputs: tuple[str, str]) -> None:
    rows = names("d/")
    rows.of_row(outputs[0], None)
    with pytest.raises(UsageError, match="needs a folder where another row's image goes"):
        rows.of_row(outputs[1], None)


def test_a_row_that_leaves_by_a_link_is_refused(tmp_path: Path) -> None:
    Path("d").mkdir()
    Path("elsewhere").mkdir()
    Path("d/out").symlink_to(tmp_path / "elsewhere")
    Path("d/in").symlink_to(tmp_path / "d")
    with pytest.raises(UsageError, match="leaves the output folder"):
        names("d/").of_row("out/cat.png", None)
    assert names("d/").of_row("in/cat.png", None) == Path("d/in/cat.png")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "not a valid file name"),
        ("a/", "not a valid file name"),
        ("a\0.png", "not a valid file name"),
        ("a\x1b[31m.png", "not a valid file name"),
        ("a\nb.png", "not a valid file name"),
        ("\ud800.png", "not a valid file name"),
        ("d/" * 2500 + "x.png", "too long"),
        ("cat", "extension"),
    ],
)
def test_a_row_without_a_usable_name_is_refused(output: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        names("d/").of_row(output, None)


def test_a_name_too_long_for_a_disk_is_refused() -> None:
    with pytest.raises(UsageError, match="too long"):
        names("x" * 260 + ".png").of(1, recipe())
    with pytest.raises(UsageError, match="too long"):
        names("d/").of_row("é" * 130 + ".png", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Red Circle, please!", "a-red-circle-please"),
        ("Crème brûlée", "creme-brulee"),
        ("../../etc/passwd", "etc-passwd"),
        ("  --x--  ", "x"),
        ("猫", "猫"),
        ("\N{GRINNING FACE}!", "picture"),
        ("赤い円 円い赤", "赤い円-円い赤"),
        ("Красный круг", "красный-круг"),
        ("й", "й"),
        ("한국어 그림", "한국어-그림"),
        ("नमस्ते दुनिया", "नमस्ते-दुनिया"),
        ("円" * 99, "円" * 40),
        ("a\u0301" * 60, "a" * 48),
        ("क्षि" * 40, "क्षि" * 10),
        ("", "picture"),
        ("CON", "con-picture"),
        ("lpt1", "lpt1-picture"),
        ("console", "console"),
        ("word " * 30, "word-word-word-word-word-word-word-word-word"),
        ("x" * 99, "x" * 48),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected
    assert len(slug(text).encode()) <= 130
    assert unicodedata.is_normalized("NFC", slug(text))


def test_a_file_system_of_one_script_gets_names_that_it_can_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under a locale that is not UTF-8."""

    def latin(name: str) -> bytes:
        return name.encode("latin-1")

    monkeypatch.setattr(os, "fsencode", latin)
    assert slug("a red 円") == "a-red"
    assert slug("円") == "picture"
    assert slug("smørrebrød") == "smørrebrød"


def test_a_slug_of_a_very_long_prompt_is_quick_and_short() -> None:
    assert len(slug("ﷺ" * 1_000_000)) <= 48


def test_candidates_start_with_the_name_itself() -> None:
    first = list(itertools.islice(candidates(Path("d/a.b.png")), 3))
    assert first == [Path("d/a.b.png"), Path("d/a.b-2.png"), Path("d/a.b-3.png")]


def test_the_default_asks_the_disk_about_links_too() -> None:
    os.symlink("nowhere", "a-red-circle-5.png")
    assert names(None).of(1, recipe()) == Path("a-red-circle-5-2.png")
