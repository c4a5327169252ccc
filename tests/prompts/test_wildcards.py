"""Wildcards: which choice a seed takes, on every machine and for ever, and what is plain text."""

from __future__ import annotations

from collections import Counter

import pytest

from klein_cli.errors import UsageError
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
