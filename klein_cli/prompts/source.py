"""PROMPT, --prompt and --prompts-file -> the rows of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from klein_cli.errors import UsageError
from klein_cli.prompts.columns import BadRow, Reading
from klein_cli.prompts.files import STDIN, name_of, read_prompt, read_rows
from klein_cli.prompts.remarks import Remarks, remark_on_words
from klein_cli.prompts.rows import Row, prompt_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """Where prompts come from: the `file`, "" for one that was typed, and its rows, read once."""

    file: str
    rows: Iterator[Row | BadRow]
    remarks: Remarks = field(default_factory=Remarks)


def prompt_source(
    *,
    typed: str | None,
    option: str | None,
    file: str | None,
    stdin: BinaryIO,
    reading: Reading | None = None,
) -> PromptSource:
    """The one of the three ways that was used; a file is read as `reading` says.

    Raises UsageError.
    """
    reading = reading or Reading()
    given = [text for text in (typed, option, file) if text is not None]
    if not given:
        raise UsageError("there is no prompt", 'say what to draw: klein generate "a red circle"')
    if len(given) > 1:
        raise UsageError(
            "the prompt is given in more than one way", "use PROMPT, or --prompt, or --prompts-file"
        )
    if file is not None:
        rows = read_rows(file, stdin, reading)
    else:
        if reading.prompt_column is not None or reading.options_in_prompts:
            name = "--prompt-column" if reading.prompt_column else "--options-in-prompts"
            raise UsageError(f"{name} is for a prompts file", "leave it out, or --prompts-file")
        rows = iter([Row(prompt=typed_prompt(given[0], stdin))])
    watched = _remarked(rows, reading.remarks)
    return PromptSource(file=file or "", rows=watched, remarks=reading.remarks)


def _remarked(rows: Iterator[Row | BadRow], remarks: Remarks) -> Iterator[Row | BadRow]:
    for row in rows:
        if isinstance(row, Row):
            remark_on_words(row.prompt, row.line, remarks)
        yield row


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
