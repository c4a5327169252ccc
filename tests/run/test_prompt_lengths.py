"""Prompts are measured before the model loads: with one tokenizer, which then draws."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from klein_cli.cli.app import main
from klein_cli.text.tokenizer import PromptTokenizer


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_run_parses_the_tokenizer_once_and_reads_each_prompt_once(
    more: list[str], small_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true file has 11 MB, and each parse is paid for before the first image."""
    parsed: list[Path] = []
    read: Counter[str] = Counter()
    from_folder, tokenize = PromptTokenizer.from_folder, PromptTokenizer._tokenize

    def counted(root: Path) -> PromptTokenizer:
        parsed.append(root)
        return from_folder(root)

    def counting(self: PromptTokenizer, prompt: str) -> Any:
        read[prompt] += 1
        return tokenize(self, prompt)

    monkeypatch.setattr(PromptTokenizer, "from_folder", counted)
    monkeypatch.setattr(PromptTokenizer, "_tokenize", counting)
    prompts = tmp_path / "p.txt"
    prompts.write_text("a cat\na dog\na cat\n")
    size = ["--size", "32x32", "--steps", "1", "--device", "cpu", "-q"]
    source = ["--prompts-file", str(prompts), "-o", f"{tmp_path}/d/"]
    assert main(["generate", *source, "-m", str(small_snapshot), *size, *more]) == 0
    assert len(parsed) == 1
    assert read == {"a cat": 1, "a dog": 1}
