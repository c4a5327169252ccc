"""Wildcards: which choice a seed takes, on every machine and for ever, and what is plain text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from klein_cli.errors import UsageError
from klein_cli.prompts.wildcard_files import WildcardFiles
from klein_cli.prompts.wildcards import chosen

SEEDS = range(600)


def all_of(template: str) -> set[str]:
    return {chosen(template, seed) for seed in SEEDS}


def test_a_prompt_without_groups_stays_as_it_is() -> None:
    assert chosen(" a cat ", 5) == " a cat "


def test_choices_are_the_same_on_every_machine() -> None:
    # A choice that moved would change every picture that was made under --wildcards.
    made = [chosen("a {red|green|blue} {cat|dog}", seed) for seed in (0, 1, 2, 3, 2**62)]
    assert made == [
        "a blue cat",
        "a red dog",
        "a green dog",
        "a blue dog",
        "a blue dog",
    ]


def test_every_choice_is_taken_about_as_often_as_the_others() -> None:
    counts = Counter(chosen("{a|b|c}", seed) for seed in SEEDS)
    assert set(counts) == {"a", "b", "c"}
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_groups_choose_apart_from_each_other() -> None:
    # One choice for all groups would give two of these four.
    assert all_of("{a|b}{c|d}") == {"ac", "ad", "bc", "bd"}


def test_a_word_changed_elsewhere_moves_no_choice() -> None:
    for seed in SEEDS:
        first = chosen("a {red|blue} cat, {by day|by night}", seed)
        second = chosen("one {red|blue} dog in the snow, {by day|by night}", seed)
        assert ("red" in first) == ("red" in second)
        assert ("day" in first) == ("day" in second)


def test_groups_stand_inside_groups() -> None:
    assert all_of("a {cat|{big|small} dog}") == {"a cat", "a big dog", "a small dog"}


def test_a_choice_may_be_empty() -> None:
    assert all_of("a {|very }red cat") == {"a red cat", "a very red cat"}


def test_a_backslash_makes_plain_text() -> None:
    assert chosen(r"\{a|b\} {c|c\|d\\}".replace("{c|", "{c\\|"), 1) == "{a|b} {c|c|d\\}"
    assert all_of(r"{a\|b|c}") == {"a|b", "c"}
    assert chosen("a\\n {x|x}\\", 1) == "a\\n x\\"


def test_braces_around_no_choice_are_plain_text() -> None:
    assert all_of('{"subject": "a {cat|dog}", "n": {}}') == {
        '{"subject": "a cat", "n": {}}',
        '{"subject": "a dog", "n": {}}',
    }


def test_a_bar_outside_groups_is_plain_text() -> None:
    assert chosen("a | b {c|c}", 1) == "a | b c"


@pytest.mark.parametrize(
    ("template", "brace", "place"),
    [("a {red|blue cat", "{", 3), ("a red|blue} cat", "}", 11), ("{a|{b|c}", "{", 1)],
)
def test_a_brace_without_its_pair_is_named(template: str, brace: str, place: int) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(template, 1)
    assert caught.value.message == (
        f"the wildcards have a {brace} without its pair at character {place}"
    )


@pytest.fixture
def files(tmp_path: Path) -> WildcardFiles:
    (tmp_path / "animals").mkdir()
    (tmp_path / "colour.txt").write_bytes(
        b"\xef\xbb\xbf# colours\nred\n\n  # more\r\ndark {blue|green}\n"
    )
    (tmp_path / "animals" / "cats.txt").write_text("cat\n__colour__ lion\n")
    (tmp_path / "loop.txt").write_text("a __loop__\n")
    (tmp_path / "none.txt").write_text("# nothing yet\n")
    (tmp_path / "many.txt").write_text("\n".join(f"word {number}" for number in range(600)))
    return WildcardFiles(tmp_path)


def drawn(template: str, files: WildcardFiles | None = None) -> set[str]:
    return {chosen(template, seed, files) for seed in SEEDS}


def test_several_are_taken_and_none_twice() -> None:
    pairs = {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}
    assert drawn("{2$$a|b|c}") == pairs
    assert drawn("{1-2$$ and $$a|b} x") == {"a x", "b x", "a and b x", "b and a x"}
    assert drawn("{-1$$a|b}") == {"a", "b"}
    assert drawn("{2-$$+$$a|b}") == {"a+b", "b+a"}
    assert drawn("{0$$a|b}c") == {"c"}


def test_weights_make_a_choice_rarer() -> None:
    counts = Counter(chosen("{0.5::a|b}", seed) for seed in range(3000))
    assert 0.42 < counts["a"] / counts["b"] < 0.58
    assert drawn("{0::a|.5::b}") == {"b"}
    assert drawn("{2$$0::a|b|c}") == {"b, c", "c, b"}


def test_a_wildcard_is_a_line_of_its_file_with_what_is_in_it(files: WildcardFiles) -> None:
    colours = {"red", "dark blue", "dark green"}
    assert drawn("__colour__", files) == colours
    assert drawn("a __animals/cats__", files) == {"a cat", *(f"a {one} lion" for one in colours)}
    assert len(drawn("__many__", files)) > 300
    assert drawn("{2$$__colour__}", files) == {
        f"{first}, {second}" for first in colours for second in colours if first[:3] != second[:3]
    }


def test_choices_with_operators_are_the_same_on_every_machine(files: WildcardFiles) -> None:
    template = "{2$$a|b|c} {0.2::x|y} __animals/cats__"
    known = ["a, c y dark blue lion", "c, b x dark green lion", "b, a y red lion"]
    assert [chosen(template, seed, files) for seed in (0, 1, 2)] == known


def test_a_wildcard_moves_no_group_behind_it_by_its_choice(files: WildcardFiles) -> None:
    """Those within its line are numbered below it."""
    for seed in SEEDS:
        first = chosen("__colour__ {cat|dog}", seed, files)
        second = chosen("{a|b} {cat|dog}", seed)
        assert first.rpartition(" ")[2] == second.rpartition(" ")[2]


@pytest.mark.parametrize(
    ("template", "message", "hint"),
    [
        ("a __color__", "__color__ at character 3 has no file", "did you mean __colour__?"),
        ("__cats__", "__cats__ at character 1 has no file", "did you mean __animals/cats__?"),
        ("__../secret__", "__../secret__ at character 1 has no file", ""),
        ("__loop__", "__loop__ leads to itself", "take it out"),
        ("__none__", "holds no choices", "one a line"),
        ("{3$$a|b}", "the group at character 1 asks for 3 of 2", "fewer"),
        ("x {2-1$$a|b}", "the group at character 3 asks for 2 of 2", "smaller number first"),
        ("{a|2$$b}", "a $$ that is not understood in the group at character 1", r"\$$"),
        ("{$$a|b}", "a $$ that is not understood in the group at character 1", r"\$$"),
        ("{x::a|b}", "a :: that is not understood in the group at character 1", r"\::"),
        ("{0::a|0::b}", "all weights of the group at character 1 are 0", "another"),
    ],
)
def test_what_is_not_understood_is_an_error_with_its_place(
    template: str, message: str, hint: str, files: WildcardFiles
) -> None:
    """It was silently a part of the image."""
    with pytest.raises(UsageError) as caught:
        chosen(template, 1, files)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_wildcard_without_a_folder_says_which_option_names_one() -> None:
    with pytest.raises(UsageError, match="__colour__ at character 3") as caught:
        chosen("a __colour__", 1)
    assert "--wildcards-dir" in caught.value.hint


def test_operators_are_plain_text_behind_a_backslash_and_outside_of_groups() -> None:
    assert chosen(r"{\$$a|\$$a} \__b__ 5$$ x::y", 1) == "$$a __b__ 5$$ x::y"
    assert chosen('{"a": "b::c $$"}', 1) == '{"a": "b::c $$"}'
    assert chosen("__ and ____ and a_b__c", 1) == "__ and ____ and a_b__c"


def test_a_folder_of_wildcards_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        WildcardFiles(tmp_path / "none")
