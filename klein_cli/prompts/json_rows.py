"""JSON -> rows: an object a line, an array of objects or of prompts, or objects over many lines.

Which of them it is, the first line tells. Objects a line are read as a stream; of the others all
the text is held, and each object is reported with the line that it begins in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.prompts.columns import BadRow, Reading, row_of_values, shown
from klein_cli.prompts.rows import Row
from klein_cli.tables import RepeatedKeyError, parse_json, strict_decoder

_MOST = 2**26
"""Characters of a file that is held as a whole."""
_BLANK = " \t\r\n"
_EXAMPLE = 'write one object a line, as in {"prompt": "a red circle", "seed": 7}'


def parse_jsonl(lines: Iterable[str], reading: Reading | None = None) -> Iterator[Row | BadRow]:
    """Rows with the keys of `columns.KEYS`; blank lines are skipped."""
    lines = iter(lines)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    lines = chain(head, lines)
    if head and begins_many_lines(head[-1]):
        return _whole(lines, reading or Reading())
    return _each_line(lines, reading or Reading())


def begins_many_lines(line: str) -> bool:
    """Whether JSON that goes on for lines begins with this one, or an array."""
    line = line.strip()
    if line.startswith("["):
        return line.endswith(("[", "{", ",", "]")) and not _is_line_of_prompt(line)
    return line.startswith("{") and line.endswith(("{", ",", ":", "["))


def _is_line_of_prompt(line: str) -> bool:
    """Whether a line in brackets is words and no JSON: `[a fox]`."""
    rest = line[1:].lstrip()
    return rest[:1] not in ("", "{", '"', "]")


def _each_line(lines: Iterable[str], reading: Reading) -> Iterator[Row | BadRow]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield row_of_values(number, _object(line.rstrip("\r\n")), reading)
            except UsageError as fault:
                yield BadRow(line=number, message=fault.message, hint=fault.hint)


def _whole(lines: Iterable[str], reading: Reading) -> Iterator[Row | BadRow]:
    """The values of a text, one after another, within one array or within none."""
    text = _joined(lines)
    at = _after(text, 0, _BLANK)
    in_array = text.startswith("[", at)
    at = _after(text, at + in_array, _BLANK)
    decoder = strict_decoder()
    number, counted = 1, 0
    while at < len(text) and not (in_array and text[at] == "]"):
        number, counted = number + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield _malformed(text, number, error)
            return
        try:
            yield row_of_values(number, _as_object(value), reading)
        except UsageError as fault:
            yield BadRow(line=number, message=fault.message, hint=fault.hint)
        at = _after(text, at, _BLANK + ",")
    if in_array and (at >= len(text) or text[at + 1 :].strip()):
        what = "the array has no end" if at >= len(text) else "there is text behind the array"
        yield BadRow(line=number, message=f"malformed JSON: {what}", hint="end it with one ]")


def _joined(lines: Iterable[str]) -> str:
    held, size = [], 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size > _MOST:
            raise UsageError(
                f"the JSON array is longer than {_MOST // 2**20} MB", "write one object a line"
            )
    return "".join(held)


def _after(text: str, at: int, skipped: str) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _malformed(text: str, number: int, error: Exception) -> BadRow:
    line, words = number, str(error)
    if isinstance(error, json.JSONDecodeError):
        line, words = error.lineno, f"{error.msg} at column {error.colno}"
    return BadRow(line=line, message=f"malformed JSON: {words}", hint=_EXAMPLE)


def _as_object(value: Any) -> dict[str, Any]:
    """What one value of an array says; text alone is a prompt."""
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise UsageError(f"expected a JSON object, found {shown(value)}", _EXAMPLE)
    return value


def _object(line: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"malformed JSON: {error.msg} at column {error.colno}", _EXAMPLE) from None
    except RepeatedKeyError as error:
        raise UsageError(str(error), "give each key once") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"malformed JSON: {error}", "write plain numbers and text") from None
    if not isinstance(value, dict):
        raise UsageError(f"expected a JSON object, found {shown(value)}", _EXAMPLE)
    return value
