"""PROMPT, --prompt and --prompts-file -> the rows of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from klein_cli.errors import UsageError
from klein_cli.prompts.files import STDIN, BadRow, name_of, read_prompt, read_rows
from klein_cli.prompts.rows import Row, prompt_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """Where prompts come from: the `file`, "" for one that was typed, and its rows, read once."""

    file: str
    rows: Iterator[Row | BadRow]


def prompt_source(
    *, typed: str | None, option: str | None, file: str | None, stdin: BinaryIO
) -> PromptSource:
    """The one of the three ways that was used. Raises UsageError."""
    given = [text for text in (typed, option, file) if text is not None]
    if not given:
        raise UsageError("there is no prompt", 'say what to draw: klein generate "a red circle"')
    if len(given) > 1:
        raise UsageError(
            "the prompt is given in more than one way", "use PROMPT, or --prompt, or --prompts-file"
        )
    if file is not None:
        return PromptSource(file=file, rows=read_rows(file, stdin))
    return PromptSource(file="", rows=iter([Row(prompt=typed_prompt(given[0], stdin))]))


def typed_prompt(prompt: str, stdin: BinaryIO) -> str:
    """A prompt that was typed; "-" reads it from `stdin`. Raises UsageError for an unusable one."""
    if prompt == STDIN:
        prompt = read_prompt(stdin)
        if not prompt.strip():
            raise UsageError(f"{name_of(STDIN)} holds no prompt", "pipe the prompt's text in")
    fault = prompt_fault(prompt)
    if fault:
        raise UsageError(*fault)
    return prompt
