"""Prompts files, and prompts typed at a shell -> Rows.

Three formats, chosen by the file's ending: `.txt` (one prompt a line), `.jsonl` and `.csv` (rows
with the keys of `KEYS`). A file is read as a stream, once. A line that cannot be used becomes a
BadRow and reading goes on, so that all of them are reported together; nothing here opens a file
but `read_rows`.

A prompt is never stripped, because the model's own pipeline does not strip it and a blank at its
end is a token: a `.txt` line loses its line ending and nothing else. Lines of blanks are skipped,
and so are lines whose first visible character is `#`; a prompt that needs either goes in a
`.jsonl` file. Only `\\n`, `\\r\\n` and `\\r` end a line, not the other separators of Unicode.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from klein_cli.addresses import check_path
from klein_cli.errors import UsageError
from klein_cli.prompts.rows import MAX_IMAGES, Row, prompt_fault, text_fault
from klein_cli.prompts.sizes import checked_expand, parse_expand
from klein_cli.prompts.utf8 import MAX_LINE, decode, lines_of, too_long
from klein_cli.tables import RepeatedKeyError, WrongTypeError, checked, parse_json, shortened

STDIN = "-"
KEYS = tuple(field.name for field in fields(Row) if field.name not in ("line", "name"))
IGNORED_KEYS = ("error",)
"""What klein itself writes into failed.jsonl and does not need to read again."""

_NUMBERS = ("seed", "width", "height", "steps", "guidance", "n")
_SEVERAL = ("image",)
"""Of these a .csv file may have several columns, and a cell several values between semicolons."""
_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A line that cannot be used: what is wrong with it and what to do."""

    line: int
    message: str
    hint: str


def read_rows(source: str, stdin: BinaryIO) -> Iterator[Row | BadRow]:
    """The rows of the prompts file `source`, read as they are asked for; `-` reads `stdin`.

    Raises UsageError when the file cannot be read as text or its ending is unknown.
    """
    check_path("--prompts-file", source)
    parse = _parser(source)
    with _opened(source, stdin) as file:
        yield from parse(lines_of(file, name_of(source)))


def read_prompt(stdin: BinaryIO) -> str:
    """All of `stdin` as one prompt, less the line ending that `echo` adds. Raises UsageError."""
    data = stdin.read(MAX_LINE + 1)
    if len(data) > MAX_LINE:
        raise too_long(f"what comes from {name_of(STDIN)}")
    text = decode(data, name_of(STDIN))
    return text.removesuffix("\n").removesuffix("\r")


def name_of(source: str) -> str:
    """How messages name a prompts file; `source` is "" for a prompt typed at the shell."""
    return "standard input" if source == STDIN else source


def parse_txt(lines: Iterable[str]) -> Iterator[Row | BadRow]:
    """One prompt a line; blank lines and `#` comments are skipped."""
    for number, line in enumerate(map(_without_ending, lines), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _row_or_fault(number, _whole_line, line)


def _whole_line(line: str) -> dict[str, Any]:
    return {"prompt": line}


def parse_undeclared(lines: Iterable[str]) -> Iterator[Row | BadRow]:
    """From a pipe, which has no name to tell its format: JSON Lines where the first line that is
    not blank is an object with a prompt, else a prompt a line.
    """
    lines = iter(lines)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    parse = parse_jsonl if head and _is_row(head[-1]) else parse_txt
    return parse(chain(head, lines))


def _is_row(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "prompt" in value


def parse_jsonl(lines: Iterable[str]) -> Iterator[Row | BadRow]:
    """One JSON object a line, with the keys of `KEYS`; blank lines are skipped."""
    for number, line in enumerate(map(_without_ending, lines), start=1):
        if line.strip():
            yield _row_or_fault(number, _json_object, line)


def parse_csv(lines: Iterable[str]) -> Iterator[Row | BadRow]:
    """Comma-separated rows under a header with the names of `KEYS`; an empty cell is unsaid, and a
    row of them is skipped.
    """
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # After a broken quote nothing tells where the next row begins.
            yield BadRow(line=number, message=f"malformed CSV: {error}", hint="fix the quotes")
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _without_empty_end([name.strip() for name in cells])
            fault = _header_fault(header)
            if fault:
                yield BadRow(line=number, message=fault[0], hint=fault[1])
                return
        else:
            yield _row_or_fault(number, _csv_values, header, cells)


def refuse_rows(source: str, bad_rows: Iterable[BadRow]) -> NoReturn:
    """Raise one UsageError that names every bad line of `source`, the first twenty in full."""
    bad_rows = list(bad_rows)
    name = name_of(source)
    if len(bad_rows) == 1:
        fault = bad_rows[0]
        where = f"{name} line {fault.line}: " if source else ""
        raise UsageError(where + fault.message, fault.hint)
    shown = [f"  line {fault.line}: {fault.message} ({fault.hint})" for fault in bad_rows[:_LISTED]]
    if len(bad_rows) > _LISTED:
        shown.append(f"  and {len(bad_rows) - _LISTED} more")
    raise UsageError(
        "\n".join([f"{name} has {len(bad_rows)} bad lines", *shown]),
        "fix these lines; no image was made",
    )


def _row_or_fault(line: int, values_of: Callable[..., dict[str, Any]], *text: Any) -> Row | BadRow:
    try:
        return _row(line, values_of(*text))
    except UsageError as fault:
        return BadRow(line=line, message=fault.message, hint=fault.hint)


def _row(line: int, values: dict[str, Any]) -> Row:
    unknown = [key for key in values if key not in (*KEYS, *IGNORED_KEYS)]
    if unknown:
        raise UsageError(f"unknown key {unknown[0]!r}", f"the keys are {', '.join(KEYS)}")
    given = {key: values[key] for key in KEYS if values.get(key) is not None}
    if "prompt" not in given:
        raise UsageError("there is no prompt", 'every row needs a "prompt"')
    for key, read in (("image", _paths), ("expand", _expand)):
        if key in given:
            given[key] = read(given[key])
    try:
        given = checked(Row, given)
    except WrongTypeError as error:
        raise UsageError(
            f"{error.name} must be {error.wanted}, not {_shown(error.value)}",
            f"write {error.name} as {error.wanted}",
        ) from None
    fault = prompt_fault(given["prompt"]) or text_fault(
        "negative_prompt", given.get("negative_prompt", "")
    )
    if fault:
        raise UsageError(*fault)
    if not 1 <= given.get("n", 1) <= MAX_IMAGES:
        raise UsageError(f"n {given['n']} is out of range", f"use 1 to {MAX_IMAGES}")
    if "guidance" in given:
        given["guidance"] = _decimal(given["guidance"])
    return Row(line=line, **given)


def _paths(value: Any) -> list[str]:
    """A path or a list of paths."""
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UsageError(
            f"image must be a path or a list of paths, not {_shown(value)}",
            'write it as "photo.jpg" or ["photo.jpg", "style.png"]',
        )
    if not all(path.strip() and "\0" not in path for path in paths):
        raise UsageError("image holds an empty path", "leave it out")
    return paths


def _expand(value: Any) -> tuple[int, int, int, int]:
    """Pixels for all edges, or for each, as numbers or as --expand takes them."""
    if isinstance(value, str):
        return parse_expand(value)
    sides = [value] * 4 if type(value) is int else value
    if not isinstance(sides, list) or [type(side) for side in sides] != [int] * 4:
        raise UsageError(
            f"expand must be pixels, not {_shown(value)}",
            "write 64 for all edges, or [left, top, right, bottom]",
        )
    return checked_expand(sides)


def _decimal(value: float) -> float:
    """4 and 4.0 are one guidance, and rows that differ in nothing else are one row."""
    try:
        return float(value)
    except OverflowError:
        raise UsageError("guidance is out of range", "use a number such as 4") from None


def _json_object(line: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"malformed JSON: {error.msg} at column {error.colno}",
            'write one object a line, as in {"prompt": "a red circle", "seed": 7}',
        ) from None
    except RepeatedKeyError as error:
        raise UsageError(str(error), "give each key once") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"malformed JSON: {error}", "write plain numbers and text") from None
    if not isinstance(value, dict):
        raise UsageError(
            f"expected a JSON object, found {_shown(value)}",
            'write one object a line, as in {"prompt": "a red circle"}',
        )
    return value


def _header_fault(header: list[str]) -> tuple[str, str] | None:
    names = f"the names are {', '.join(KEYS)}, separated by commas"
    for name in header:
        if name not in KEYS:
            return f"unknown column {name!r} in the header", names
        if header.count(name) > 1 and name not in _SEVERAL:
            return f"the column {name!r} is there twice", "give each column once"
    if "prompt" not in header:
        return "the header has no prompt column", names
    return None


def _without_empty_end(cells: list[str]) -> list[str]:
    """The cells without the empty columns that spreadsheets leave at the right."""
    filled = [place for place, cell in enumerate(cells, start=1) if cell.strip()]
    return cells[: filled[-1]]


def _csv_values(header: list[str], cells: list[str]) -> dict[str, Any]:
    cells = _without_empty_end(cells)
    if len(cells) > len(header):
        raise UsageError(
            f"{len(cells)} cells under {len(header)} columns",
            "put text that holds a comma in double quotes",
        )
    given = [(name, cell) for name, cell in zip(header, cells, strict=False) if cell.strip()]
    values: dict[str, Any] = {name: _csv_number(name, cell) for name, cell in given}
    for several in _SEVERAL:
        if several in values:
            parts = (cell.split(";") for name, cell in given if name == several)
            values[several] = [part.strip() for part in chain.from_iterable(parts) if part.strip()]
    return values


def _csv_number(name: str, cell: str) -> Any:
    if name not in _NUMBERS:
        return cell
    if not cell.isascii() or "_" in cell:  # Python reads more as numbers than people do
        return cell.strip()
    try:
        number = float(cell)
        if name == "guidance":
            return number
        # A spreadsheet may write 7 as 7.0.
        return int(number) if "." in cell and number.is_integer() else int(cell)
    except ValueError:
        return cell.strip()


def _parser(source: str) -> Callable[[Iterable[str]], Iterator[Row | BadRow]]:
    suffix = "" if source == STDIN else Path(source).suffix.lower()
    # No ending is what a shell's process substitution gives.
    parsers = {"": parse_undeclared, ".txt": parse_txt, ".jsonl": parse_jsonl, ".csv": parse_csv}
    if suffix not in parsers:
        raise UsageError(
            f"{source} is not a prompts file that klein can read",
            "use .txt (one prompt a line), .jsonl or .csv",
        )
    return parsers[suffix]


@contextmanager
def _opened(source: str, stdin: BinaryIO) -> Iterator[BinaryIO]:
    try:
        if source == STDIN:
            yield stdin
        else:
            with open(source, "rb") as file:
                yield file
    except OSError as error:
        raise UsageError(
            f"cannot read {name_of(source)}: {error.strerror or error}",
            "check the path and its permissions",
        ) from None


def _without_ending(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))
