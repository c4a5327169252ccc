"""Prompts for timing differ from each other, and in length where that matters."""

from __future__ import annotations

from klein_cli.bench.prompts import alike, of_all_lengths
from klein_cli.checkpoints.resolve import resolve
from klein_cli.text.tokenizer import PromptTokenizer

TOKENIZER = PromptTokenizer.from_snapshot(resolve("tiny").root)


def lengths(prompts: list[str]) -> list[int]:
    return [TOKENIZER.tokenize(prompt).length for prompt in prompts]


def test_no_two_are_equal() -> None:
    for prompts in ([alike(number) for number in range(500)], of_all_lengths(500)):
        assert len(set(prompts)) == 500


def test_alike_in_length_or_of_all_lengths() -> None:
    same, all_ = lengths([alike(number) for number in range(50)]), lengths(of_all_lengths(50))
    assert max(same) < 1.5 * min(same)
    assert max(all_) > 4 * min(all_)
    assert max(all_) < 512


def test_a_few_already_have_short_and_long_ones() -> None:
    few = lengths(of_all_lengths(10))
    assert max(few) > 3 * min(few)
