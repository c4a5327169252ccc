"""Qwen3's own tokenizer, as it comes with klein."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from klein_cli.text.qwen3 import qwen3_tokenizer
from klein_cli.text.tokenizer import PromptTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return qwen3_tokenizer()


def test_its_ids_are_qwens(tokenizer: Any) -> None:
    """Ids that are published: of words, and of every token that the template needs."""
    assert tokenizer.encode("Hello world").ids == [9707, 1879]
    known = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    known |= {"<tool_call>": 151657, "<think>": 151667, "</think>": 151668}
    for token, number in known.items():
        assert tokenizer.encode(token).ids == [number]
    assert tokenizer.get_vocab_size(with_added_tokens=True) == 151669


def test_any_text_comes_back(tokenizer: Any) -> None:
    """A byte without a character, or two with one, would lose it."""
    text = "".join(map(chr, range(1, 256))) + "猫 \U0001f642 e\u0301\n\n  x"
    import unicodedata

    found = tokenizer.decode(tokenizer.encode(text).ids)
    assert found == unicodedata.normalize("NFC", text)


def test_prompts_are_tokenised_with_it() -> None:
    found = PromptTokenizer(qwen3_tokenizer()).tokenize("a red fox")
    assert found.ids[:3] == (151644, 872, 198)  # <|im_start|>user and a new line
    assert found.tokens == 3


@pytest.mark.slow
def test_it_takes_no_longer_than_to_read_the_official_file(tokenizer: Any, tmp_path: Path) -> None:
    """By the time of the process, the best of some. Only where nothing else is at work."""
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))

    def seconds(make: Any) -> float:
        spent = []
        for _ in range(3):
            started = time.process_time()
            make()
            spent.append(time.process_time() - started)
        return min(spent)

    text = lambda: Tokenizer.from_str(file.read_text(encoding="utf-8"))  # noqa: E731
    assert seconds(qwen3_tokenizer) < 1.5 * seconds(text)
